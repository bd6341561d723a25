# SPDX-License-Identifier: MIT OR Apache-2.0
"""Arguments, exit codes, and what a person sees. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oracle import errors
from oracle.errors import BadUse
from oracle.terminal import github as actions
from oracle.terminal.options import parsers
from oracle.terminal.progress import Narrator, fits, say

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from oracle.checking.compare import Comparison
    from oracle.diagnosis.explanation import Explanation
    from oracle.job import Events, Job

    Spread = Callable[[Events], AbstractContextManager[Executor]] | None

ANY_OUTPUT = "reference.json"  # until the plan says what it is called: the folder is looked at before any work


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser, commands = parsers()
    if not arguments or (arguments[0] not in commands and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["generate", *arguments]
    options = parser.parse_args(arguments)
    try:
        return RUNS[options.command](options)
    except KeyboardInterrupt:
        say("interrupted")
        return errors.INTERRUPTED
    except Exception as error:
        code = errors.exit_code(error)
        if options.debug:
            traceback.print_exc()
        line = errors.one_line(error)
        say(f"error: {line}")
        actions.annotate("oracle", line)
        return code


def _generate(options: argparse.Namespace) -> int:
    # Products of a few rows are bound by memory, and the second core has the checksums: OpenBLAS's own threads,
    # which spin while they wait, make the job slower. OPENBLAS_NUM_THREADS overrides; the bytes are the same.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle.references import document

    if options.output != "-":
        document.check_output(ANY_OUTPUT if options.output is None else options.output)
    job = replace(
        _job(options),
        n_seeds=options.seeds,
        top_k=options.top_k,
        tolerance=options.tolerance,
        robust=options.robust,
        stream=options.stream,
    )
    if options.stream and options.offline:
        from oracle.sources.source import mirror_of

        if mirror_of(job) is None:  # not a folder
            raise BadUse("--stream needs a server or a mirror, and --offline forbids servers: leave one out")
    spread: Spread = None
    if options.dask or options.workers > 1:
        from oracle.references import workers

        def spread(events: Events) -> AbstractContextManager[Executor]:
            return workers.dask(options.dask) if options.dask else workers.processes(options.workers, events)

    _run_job(job, options.output, omit_residuals=options.omit_residuals, quiet=options.quiet, spread=spread)
    return errors.DONE


def _job(options: argparse.Namespace) -> Job:
    """The source options that several commands share, as a job."""
    from oracle.job import CURATION_REPO, SAMPLE, Job

    return Job(
        repo=options.repo or CURATION_REPO,
        paths=tuple(options.path),
        schema=options.schema,
        revision=options.revision,
        weights_revision=options.weights_revision,
        layers=getattr(options, "layers", SAMPLE),
        decode=getattr(options, "decode", False),
        endpoint=options.mirror or os.environ.get("ORACLE_MIRROR") or None,
        cache_dir=options.cache_dir,
        offline=options.offline,
        connections=options.connections,
    )


def _verify(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle.checking.verify import verify
    from oracle.references import reading
    from oracle.terminal import tables

    recorded = reading.read_reference(options.reference)
    with Narrator(quiet=options.quiet) as narrator:
        made = verify(
            recorded, _source(options, recorded), _events(narrator), by_curation=_by_curation(options)
        )
    if not options.quiet:
        say(tables.verification(made))
    closing = tables.verification_closing(made)
    actions.summarize_verdicts("oracle verify", made.cases, closing)
    if not (made.agrees or options.quiet):
        actions.annotate("oracle verify", closing[-1])
    return errors.DONE if made.agrees else errors.DISAGREE


def _compare(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle.checking.compare import compare
    from oracle.references import document, reading
    from oracle.terminal import tables

    recorded = reading.read_reference(options.reference)
    candidate = reading.read_candidate(options.candidate, document.top_key(recorded))
    made = compare(recorded, candidate)
    explanation = _explained(options, recorded, candidate, made)
    if options.format == "json":
        document.write_text([tables.comparison_json(made, explanation)], "-")
    elif options.format == "junit":
        document.write_text([tables.comparison_junit(made, explanation)], "-")
    elif not options.quiet:
        say(tables.comparison(made, explanation))
    closing = tables.comparison_closing(made) + (tables.explanation_lines(explanation) if explanation else [])
    actions.summarize_verdicts("oracle compare", made.cases, closing)
    if not (made.agrees or options.quiet):
        actions.annotate("oracle compare", " / ".join(closing))
    return errors.DONE if made.agrees else errors.DISAGREE


def _explained(
    options: argparse.Namespace, recorded: dict[str, Any], candidate: dict[str, Any], made: Comparison
) -> Explanation | None:
    """The cause of what disagrees, where --explain asks for it."""
    if made.agrees or not options.explain:
        return None
    from oracle.diagnosis import explain

    source = _source(options, recorded)
    with Narrator(quiet=options.quiet) as narrator:
        return explain.explain(recorded, candidate, made, source, _events(narrator), by_curation=_by_curation(options))


def _report(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle.checking.compare import compare
    from oracle.page import page as report
    from oracle.references import document, reading

    if options.explain and options.candidate is None:
        raise BadUse("--explain is about a candidate, and none is named: name one after the reference")
    if options.output != "-":
        document.check_output(options.output)
    recorded = reading.read_reference(options.reference)
    if options.candidate is None:
        page, said = report.page(recorded), ""
    else:
        candidate = reading.read_candidate(options.candidate, document.top_key(recorded))
        made = compare(recorded, candidate)
        page = report.page(recorded, candidate, made, _explained(options, recorded, candidate, made))
        said = f"; the candidate {'agrees' if made.agrees else 'DISAGREES'}"
    document.write_text([page], options.output)
    if not options.quiet:
        say(f"{len(recorded['test_cases'])} cases -> {options.output} ({len(page) / 1024:.1f} KiB){said}")
    return errors.DONE


def _source(options: argparse.Namespace, recorded: dict[str, Any]) -> Job:
    """Where the weights of a reference come from: as the reference has it, unless an option says otherwise."""
    job = _job(options)
    if options.repo:
        return job
    from oracle.references import document

    curated = "curation_repo" in recorded
    return replace(
        job,
        repo=recorded["curation_repo"] if curated else document.weights_repo(recorded),
        revision=options.revision or recorded.get("curation_revision" if curated else "weights_revision"),
    )


def _by_curation(options: argparse.Namespace) -> bool:
    return bool(options.repo or options.path or options.revision or options.weights_revision)


def _events(narrator: Narrator) -> Events:
    from oracle.job import Events

    return Events(
        layers=narrator.layers,
        fetching=narrator.fetching,
        fetched=narrator.fetched,
        streaming=narrator.streaming,
        encoded=narrator.encoded,
        layer_done=narrator.layer_done,
    )


def _run_job(job: Job, output: str | None, *, omit_residuals: bool, quiet: bool, spread: Spread = None) -> None:
    """Run a job and write its reference, by default where the plan has it; `spread` gives an executor for the layers."""
    from oracle.references import document
    from oracle.references import generate as reference

    place = ANY_OUTPUT if output is None else output

    def planned(default: str) -> None:
        nonlocal place
        if output is None:
            document.check_output(default)
            place = default

    with Narrator(quiet=quiet) as narrator, contextlib.ExitStack() as stack:
        events = replace(_events(narrator), planned=planned)
        executor = stack.enter_context(spread(events)) if spread else None
        made = reference.generate(job, events, executor)
    document.write(document.omit_residuals(made) if omit_residuals else made, place)
    actions.summarize_reference(made, "standard output" if place == "-" else place)
    if place != "-" and not quiet:
        written = f"{len(made['test_cases'])} cases -> {place}"
        with_size = f"{written} ({os.path.getsize(place) / 1024:.1f} KiB)"
        say(with_size if fits(with_size) else written)


def _mirror(options: argparse.Namespace) -> int:
    from pathlib import Path

    from oracle.references import generate as reference
    from oracle.sources import mirror
    from oracle.sources.source import Source

    destination = Path(options.destination)
    if options.check:

        def checked(entry: mirror.Entry, problem: str | None) -> None:
            if problem or not options.quiet:
                say(f"{entry.place} {problem or 'is right'}")

        n_bad = mirror.check(destination, checked)
        if n_bad:
            raise mirror.MirrorError(f"{n_bad} files of {destination} are not what its manifest says: build it again")
        return errors.DONE
    commits = mirror.commits_of(destination)
    with Narrator(quiet=options.quiet) as narrator:
        for (repo, revision), commit in commits.items():
            if revision != commit:
                narrator.say(f"{repo} at {revision} stays at the mirror's commit {commit}; a newer one takes a folder of its own")
        source = Source(_job(options), _events(narrator), commits)

        def built(entry: mirror.Entry, kept: bool) -> None:
            rest = f" ({entry.size / 1e6:.1f} MB{', there already' if kept else ''})"
            narrator.say(f"{entry.place}{rest}", f"{entry.path}{rest}", f"{entry.path}")

        try:
            files, listing = reference.files_of(_job(options), source)
            entries = mirror.build(destination, files, listing, source.fetch, built)
        except PermissionError as error:
            raise BadUse(f"{destination} cannot be written to: {error.strerror}") from error
    if not options.quiet:
        say(f"{len(entries)} files -> {destination}; use it with --mirror {destination}, or serve it as it is")
    return errors.DONE


def _demo(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle.vectors import demo

    made = demo.make(options.folder, options.schema, decode=options.decode)
    if not options.quiet:
        say(f"synthetic weights: {made.n_layers} layers of [{made.d_model}, {made.n_features}] in {made.folder}")
    _run_job(made.job, made.output, omit_residuals=False, quiet=options.quiet)
    if not options.quiet:
        say("These weights are synthetic: the numbers test a port's arithmetic, they say nothing about a real model.")
        command = ["python", "-m", "oracle", "--offline", "--cache-dir", str(made.job.cache_dir), "--repo", made.job.repo]
        command += [word for path in made.job.paths for word in ("--path", path)] + ["--decode"] * made.job.decode
        say(f"Again, by hand: {shlex.join(command)}")
    return errors.DONE


def _residual(options: argparse.Namespace) -> int:
    from oracle.references import document

    if options.rust:
        from importlib.resources import files

        document.write_text([files("oracle.arithmetic").joinpath("residual.rs").read_text(encoding="utf-8")], "-")
    else:
        from oracle.arithmetic.residual import residual

        values = residual(options.seed, options.stream, options.length)
        lines = (f"{bits:08x}\n" for bits in values.view("u4").tolist()) if options.hex else (f"{v!r}\n" for v in values.tolist())
        document.write_text(lines, "-")
    return errors.DONE


RUNS: dict[str, Callable[[argparse.Namespace], int]] = {
    "generate": _generate,
    "verify": _verify,
    "compare": _compare,
    "report": _report,
    "mirror": _mirror,
    "demo": _demo,
    "residual": _residual,
}
