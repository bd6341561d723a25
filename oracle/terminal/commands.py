# SPDX-License-Identifier: MIT OR Apache-2.0
"""The commands, a function each, and the exit code of a run. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oracle import errors
from oracle.errors import BadUse
from oracle.terminal import github, tables
from oracle.terminal.options import job_of, origin_of, parser
from oracle.terminal.output import check_output, dump, json_text, write_text
from oracle.terminal.text import fits, printable, say

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from oracle.checking.verdict import Comparison, Verification
    from oracle.diagnosis.explanation import Explanation
    from oracle.job import Job
    from oracle.references.document import Candidate, Reference

ANY_OUTPUT = "reference.json"  # until the plan says what it is called: the folder is looked at before any work


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Products of a few rows are bound by memory, and the second core has the checksums: OpenBLAS's own threads,
    # which spin while they wait, make a job slower. OPENBLAS_NUM_THREADS overrides; the bytes are the same.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in (*COMMANDS, "-h", "--help", "--version"):
        arguments = ["generate", *arguments]
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options) or errors.DONE
    except KeyboardInterrupt:
        say("interrupted")
        return errors.INTERRUPTED
    except Exception as error:
        if options.debug:
            say("".join(traceback.format_exception(error)).rstrip())
        line = errors.one_line(error)
        say(f"error: {line}")
        github.annotate("oracle", line)
        return errors.exit_code(error)


def _generate(options: argparse.Namespace, job: Job | None = None) -> None:
    """Run a job, by default the one that the options ask for, and write its reference, by default where the plan has it."""
    from oracle import executors
    from oracle.references.document import to_json
    from oracle.references.generate import generate
    from oracle.terminal.progress import ProgressReporter

    job = job or job_of(options)
    if job.residuals is not None and options.omit_residuals:
        raise BadUse("--omit-residuals leaves out what can be made again, and the rows of a file of residuals cannot: leave it out")
    if options.output != "-":
        check_output(ANY_OUTPUT if options.output is None else options.output)
    executor: AbstractContextManager[Executor | None] = contextlib.nullcontext()
    if options.dask:
        executor = executors.dask(options.dask)
    elif options.workers > 1:
        executor = executors.threads(options.workers)
    with ProgressReporter(quiet=options.quiet, output=options.output) as reporter, executor as pool:
        reference = generate(job, reporter, pool)
    path = reporter.output or ANY_OUTPUT
    write_text(dump(to_json(reference, with_residuals=not options.omit_residuals)), path)
    github.summarize_reference(reference, "standard output" if path == "-" else path)
    if path != "-":
        line = f"{len(reference.cases)} cases -> {path}"
        with_size = f"{line} ({os.path.getsize(path) / 1024:.1f} KiB)"
        say(with_size if fits(with_size) else line, quiet=options.quiet)


def _verify(options: argparse.Namespace) -> int:
    from oracle.checking.verify import verify
    from oracle.references.reading import read_reference
    from oracle.references.recorded import RecordedWeights
    from oracle.terminal.progress import ProgressReporter

    reference = read_reference(options.reference)
    with ProgressReporter(quiet=options.quiet) as reporter:
        verification = verify(RecordedWeights.of(reference, origin_of(options), reporter))
    say(tables.table(verification), quiet=options.quiet)
    return _conclude(verification, options)


def _compare(options: argparse.Namespace) -> int:
    from oracle.references.reading import are_vectors, read_json

    document, explanation = read_json(options.reference), None
    if are_vectors(document):
        from oracle.checking.vectors import compare_documents

        if options.explain:
            raise BadUse("--explain is about references: the flags of exact vectors say themselves which mistake it is; leave it out")
        comparison = compare_documents(document, read_json(options.candidate), (options.reference, options.candidate))
    else:
        _, _, comparison, explanation = _compared(options, document)
    if options.format == "table":
        say(tables.table(comparison, explanation), quiet=options.quiet)
    else:
        text = tables.comparison_json if options.format == "json" else tables.comparison_junit
        write_text([text(comparison, explanation)], "-")
    return _conclude(comparison, options, explanation)


def _compared(options: argparse.Namespace, document: Any) -> tuple[Reference, Candidate, Comparison, Explanation | None]:
    """The reference of a JSON, the options' candidate, their comparison, and the cause where they disagree and --explain asks."""
    from oracle.checking.compare import compare
    from oracle.references.reading import parse_reference, read_candidate

    reference = parse_reference(document, options.reference)
    candidate = read_candidate(options.candidate, reference.top_k)
    comparison = compare(reference, candidate)
    if comparison.agrees or not options.explain:
        return reference, candidate, comparison, None
    from oracle.diagnosis.explain import explain
    from oracle.diagnosis.explanation import Explanation
    from oracle.references.recorded import RecordedWeights
    from oracle.terminal.progress import ProgressReporter

    with ProgressReporter(quiet=options.quiet) as reporter:
        try:
            weights = RecordedWeights.of(reference, origin_of(options), reporter)
            explanation = explain(reference, candidate, comparison, weights)
        except Exception as error:  # the comparison needs no weights, and stands
            if errors.exit_code(error) != errors.SOURCE:
                raise
            explanation = Explanation((), 0, unsearched=errors.one_line(error))
        return reference, candidate, comparison, explanation


def _conclude(outcome: Comparison | Verification, options: argparse.Namespace, explanation: Explanation | None = None) -> int:
    """Tell GitHub of an outcome, and return its exit code."""
    title, closing = f"oracle {options.command}", [*tables.flags(outcome), *tables.closing(outcome, explanation)]
    github.summarize_verdicts(title, outcome.cases, closing)
    if not (outcome.agrees or options.quiet):
        github.annotate(title, " / ".join(closing))
    return errors.DONE if outcome.agrees else errors.DISAGREE


def _inspect(options: argparse.Namespace) -> None:
    from oracle.checking.inspect import inspect
    from oracle.references.reading import read_candidate, read_reference
    from oracle.references.recorded import RecordedWeights
    from oracle.terminal.progress import ProgressReporter

    reference = read_reference(options.reference)
    candidate = read_candidate(options.candidate, reference.top_k) if options.candidate else None
    with ProgressReporter(quiet=options.quiet) as reporter:
        weights = RecordedWeights.of(reference, origin_of(options), reporter)
        inspection = inspect(weights, options.layer, options.seed, options.feature, candidate, with_generator=options.residual)
    text = f"{json_text(inspection.document, 2)}\n" if options.format == "json" else "".join(f"{printable(line)}\n" for line in inspection.lines)
    write_text([text], "-")


def _report(options: argparse.Namespace) -> None:
    from oracle.page.page import page
    from oracle.references.reading import parse_reference, read_json

    if options.explain and options.candidate is None:
        raise BadUse("--explain is about a candidate, and none is named: name one after the reference")
    if options.output != "-":
        check_output(options.output)
    document = read_json(options.reference)
    if options.candidate is None:
        reference, verdict = parse_reference(document, options.reference), ""
        text = page(reference)
    else:
        reference, candidate, comparison, explanation = _compared(options, document)
        text, verdict = page(reference, candidate, comparison, explanation), f"; {comparison.verdict}"
    write_text([text], options.output)
    say(f"{len(reference.cases)} cases -> {options.output} ({len(text) / 1024:.1f} KiB){verdict}", quiet=options.quiet)


def _mirror(options: argparse.Namespace) -> None:
    from oracle.sources import mirror

    def checked(entry: mirror.Entry, problem: str | None) -> None:
        say(f"{entry.place} {problem or 'is right'}", quiet=options.quiet and problem is None)

    destination = Path(options.destination)
    if not options.check:
        _build_mirror(destination, options)
    elif n_bad := mirror.check(destination, checked):
        raise mirror.MirrorError(f"{n_bad} files of {destination} are not what its manifest says: build it again")


def _build_mirror(destination: Path, options: argparse.Namespace) -> None:
    from oracle.references.generate import files_of
    from oracle.sources import mirror
    from oracle.sources.source import Source
    from oracle.terminal.progress import ProgressReporter

    job, commits = job_of(options), mirror.commits_of(destination)
    with ProgressReporter(quiet=options.quiet) as reporter:
        for (repo, revision), commit in commits.items():
            if revision != commit:
                reporter.say(f"{repo} at {revision} stays at the mirror's commit {commit}; a newer one takes a folder of its own")

        def built(entry: mirror.Entry, kept: bool) -> None:
            rest = f" ({entry.size / 1e6:.1f} MB{', there already' if kept else ''})"
            reporter.say(f"{entry.place}{rest}", f"{entry.path}{rest}", entry.path)

        source = Source(job.origin, reporter, commits)
        try:
            files, listing = files_of(job, source)
            entries = mirror.build(destination, files, listing, source.fetch, built)
        except PermissionError as error:
            raise BadUse(f"{destination} cannot be written to: {error.strerror}") from error
    say(f"{len(entries)} files -> {destination}; use it with --mirror {destination}, or serve it as it is", quiet=options.quiet)


def _demo(options: argparse.Namespace) -> None:
    from oracle.vectors import demo

    weights, quiet = demo.make(options.folder, options.schema, decode=options.decode), options.quiet
    options.output = weights.output
    say(f"synthetic weights: {weights.n_layers} layers of [{weights.d_model}, {weights.n_features}] in {weights.folder}", quiet=quiet)
    _generate(options, weights.job)
    origin = weights.job.origin
    command = ["python", "-m", "oracle", "--offline", "--cache-dir", str(origin.cache_dir), "--repo", str(origin.repo)]
    command += [word for path in origin.path for word in ("--path", path)] + ["--decode"] * options.decode
    say("These weights are synthetic: the numbers test a port's arithmetic, they say nothing about a real model.", quiet=quiet)
    say(f"Again, by hand: {shlex.join(command)}", quiet=quiet)


def _schema(options: argparse.Namespace) -> None:
    from oracle.checking import vectors
    from oracle.references import reading

    schemas = {
        "reference": reading.reference_schema, "candidate": reading.candidate_schema,
        "vectors": vectors.vectors_schema, "answers": vectors.answers_schema,
    }  # fmt: skip
    write_text(dump(schemas[options.name]()), "-")


def _vectors(options: argparse.Namespace) -> None:
    if options.consumer:
        from importlib.resources import files

        write_text([files("oracle.vectors").joinpath(options.consumer).read_text(encoding="utf-8")], "-")
        return
    from oracle.vectors import variants

    written = variants.write(options.format, Path(options.folder))
    for name, n_cases in written:
        say(f"{n_cases} cases -> {os.path.join(options.folder, name, 'vectors.json')}", quiet=options.quiet)
    say("Check a port's answers with: python -m oracle compare FOLDER/vectors.json candidate.json", quiet=options.quiet)


def _residual(options: argparse.Namespace) -> None:
    lines: Iterable[str]
    if options.rust:
        from importlib.resources import files

        lines = [files("oracle.arithmetic").joinpath("residual.rs").read_text(encoding="utf-8")]
    else:
        from oracle.arithmetic.residual import residual

        values = residual(options.seed, options.stream, options.length)
        lines = (f"{bits:08x}\n" for bits in values.astype("<f4").view("<u4").tolist()) if options.hex else (f"{v!r}\n" for v in values.tolist())
    write_text(lines, "-")


# Without an exit code of its own a command is done.
COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "generate": _generate,
    "verify": _verify,
    "compare": _compare,
    "inspect": _inspect,
    "report": _report,
    "mirror": _mirror,
    "demo": _demo,
    "schema": _schema,
    "vectors": _vectors,
    "residual": _residual,
}
