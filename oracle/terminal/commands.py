# SPDX-License-Identifier: MIT OR Apache-2.0
"""The commands, a function each, and the exit code of a run. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oracle import errors
from oracle.errors import BadUse, counted
from oracle.job import DEMO_OWNER
from oracle.terminal import github
from oracle.terminal.options import demo_words, job_of, origin_of, origin_words, parse
from oracle.terminal.output import check_folder, check_output, dump, json_text, write_text
from oracle.terminal.text import fits, in_bytes, output_width, printable, say, shows_colours

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from oracle.checking.verdict import Comparison, Verification
    from oracle.diagnosis.explanation import Explanation
    from oracle.job import Job
    from oracle.references.document import Candidate, CaseId, Reference

ANY_OUTPUT = "reference.json"  # until the plan says what it is called: the folder is looked at before any work


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Products of a few rows are bound by memory, and the second core has the checksums: OpenBLAS's own threads,
    # which spin while they wait, make a job slower. OPENBLAS_NUM_THREADS overrides; the bytes are the same.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        for name in ("mirror", "cache_dir", "folder", "destination"):
            check_folder(getattr(options, name, None), "DEST" if name == "destination" else f"--{name.replace('_', '-')}")
        if getattr(options, "reference", None) == "-" == getattr(options, "candidate", None):
            raise BadUse("standard input is read once, and `-` stands for both files: name a file for one of them")
        return COMMANDS[options.command](options) or errors.DONE
    except KeyboardInterrupt:
        say("interrupted")
        return errors.INTERRUPTED
    except Exception as error:
        if options.debug:
            say("".join(traceback.format_exception(error)).rstrip())
        has_mirror, is_offline = bool(getattr(options, "mirror", None)), bool(getattr(options, "offline", None))
        demo = shlex.join(demo_words(options)) if DEMO_OWNER in str(error) else ""
        line = errors.one_line(error, has_mirror=has_mirror, is_offline=is_offline, demo=demo)
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
        check_output(ANY_OUTPUT if options.output is None else options.output, [job.residuals])
    if options.dry_run:
        _list_files(job, options)
        return
    executor: AbstractContextManager[Executor | None] = contextlib.nullcontext()
    if options.dask:
        executor = executors.dask(options.dask)
    elif options.workers > 1:
        executor = executors.threads(options.workers)
    with ProgressReporter(quiet=options.quiet, output=options.output, inputs=[job.residuals]) as reporter, executor as pool:
        reference = generate(job, reporter, pool)
    path = reporter.output or ANY_OUTPUT
    write_text(dump(to_json(reference, with_residuals=not options.omit_residuals)), path)
    github.summarize_reference(reference, "standard output" if path == "-" else path)
    if path != "-":
        line = f"{counted(len(reference.cases), 'case')} -> {path}"
        with_size = f"{line} ({os.path.getsize(path) / 1024:.1f} KiB)"
        say(with_size if fits(with_size) else line, quiet=options.quiet)


def _list_files(job: Job, options: argparse.Namespace) -> None:
    """Print what files a job reads: how large each is, and which are here already."""
    from oracle.references.generate import files_of
    from oracle.sources.source import Source
    from oracle.terminal.progress import ProgressReporter

    with ProgressReporter(quiet=options.quiet) as reporter:
        source = Source(job.origin, reporter)
        files = files_of(job, source)[0]
        sizes = [source.size_of(file) for file in files]
    lines = [
        f"{'size unknown' if size is None else f'{size:,} bytes':>18}  {'here' if is_here else 'to fetch':8}  {file.repo}/{file.path}"
        for file, (size, is_here) in zip(files, sizes)
    ]
    here, whole = sum(size or 0 for size, is_here in sizes if is_here), sum(size or 0 for size, _ in sizes)
    lines.append(f"{counted(len(files), 'file')}, {in_bytes(whole)}: {in_bytes(here)} are here, {in_bytes(whole - here)} would be fetched")
    write_text([f"{printable(line, sys.stdout)}\n" for line in lines], "-")


def _verify(options: argparse.Namespace) -> int:
    from oracle.checking.verify import verify
    from oracle.references.reading import read_reference
    from oracle.references.recorded import RecordedWeights
    from oracle.terminal.progress import ProgressReporter

    reference = read_reference(options.reference)
    _chosen([case.id for case in reference.cases], options)
    if options.layer is not None:  # of other layers nothing is fetched; a layer's seeds are looked at as a whole
        layer_cases = tuple(case for case in reference.cases if case.id.layer == options.layer)
        reference = replace(reference, cases=layer_cases, layers=tuple(record for record in reference.layers if record.layer == options.layer))
    with ProgressReporter(quiet=options.quiet) as reporter:
        verification = verify(RecordedWeights.of(reference, origin_of(options), reporter))
    ids = _chosen([case.id for case in verification.cases], options)
    return _conclude(replace(verification, cases=tuple(case for case in verification.cases if case.id in ids)), options)


def _compare(options: argparse.Namespace) -> int:
    from oracle.references.reading import are_vectors, read_json

    document = read_json(options.reference)
    if not are_vectors(document):
        _, _, comparison, explanation = _compared(options, document)
        return _conclude(comparison, options, explanation)
    from oracle.checking import vectors

    if options.explain:
        raise BadUse("--explain is about references: the flags of exact vectors say themselves which mistake it is; leave it out")
    exact = vectors.parse_vectors(document, options.reference)
    answers = vectors.parse_answers(read_json(options.candidate), options.candidate)
    ids = _chosen([case.id for case in exact.cases], options)
    if options.layer is not None or options.seed is not None:
        exact = replace(exact, cases=tuple(case for case in exact.cases if case.id in ids))
        answers = {number: case for number, case in answers.items() if number in {case_id.number for case_id in ids}}
    return _conclude(vectors.compare(exact, answers), options)


def _compared(options: argparse.Namespace, document: Any) -> tuple[Reference, Candidate, Comparison, Explanation | None]:
    """The reference of a JSON, the options' candidate, their comparison, and the cause where they disagree and --explain asks."""
    from oracle.checking.compare import compare
    from oracle.references.reading import are_answers, is_reference, parse_candidate, parse_reference, read_json

    answers = read_json(options.candidate)
    if are_answers(document) and is_reference(answers):
        turned = shlex.join(["python", "-m", "oracle", "compare", options.candidate, options.reference])
        raise BadUse(f"{options.reference} holds a port's answers, and {options.candidate} the reference, which comes first: {turned}")
    reference = parse_reference(document, options.reference)
    candidate = parse_candidate(answers, reference.top_k, options.candidate)
    if is_reference(answers):
        say(f"{options.candidate} is a reference itself, not what a port printed: it is compared all the same", quiet=options.quiet)
    ids = _chosen([case.id for case in reference.cases], options)
    if options.layer is not None or options.seed is not None:
        reference = replace(reference, cases=tuple(case for case in reference.cases if case.id in ids))
        candidate = replace(candidate, cases={case_id: case for case_id, case in candidate.cases.items() if case_id in ids})
    comparison = compare(reference, candidate)
    if comparison.agrees or not options.explain:
        return reference, candidate, comparison, None
    from oracle.diagnosis.explain import explain
    from oracle.diagnosis.explanation import Explanation
    from oracle.references.recorded import RecordedWeights
    from oracle.terminal.progress import ProgressReporter

    with ProgressReporter(quiet=options.quiet, output=getattr(options, "output", None)) as reporter:
        try:
            weights = RecordedWeights.of(reference, origin_of(options), reporter)
            explanation = explain(reference, candidate, comparison, weights)
        except Exception as error:  # the comparison needs no weights, and stands
            if errors.exit_code(error) != errors.SOURCE:
                raise
            explanation = Explanation((), 0, unsearched=errors.one_line(error))
        return reference, candidate, comparison, explanation


def _chosen(ids: Collection[CaseId], options: argparse.Namespace) -> set[CaseId]:
    """Those of the cases that --layer and --seed name. Raises BadUse where there are none."""
    chosen = {case_id for case_id in ids if options.layer in (None, case_id.layer) and options.seed in (None, case_id.number)}
    if not chosen:
        wanted = " ".join(f"--{name} {getattr(options, name)}" for name in ("layer", "seed") if getattr(options, name) is not None)
        raise BadUse(f"{options.reference} has no case of {wanted}; its first is of {next(iter(ids), 'no layer')}")
    return chosen


def _conclude(outcome: Comparison | Verification, options: argparse.Namespace, explanation: Explanation | None = None) -> int:
    """Print an outcome, tell GitHub of it, and return its exit code."""
    from oracle.terminal import tables

    title, closing = f"oracle {options.command}", tables.closing(outcome, explanation)
    github.summarize_verdicts(title, outcome.cases, closing)
    if not (outcome.agrees or options.quiet):
        github.annotate(title, " / ".join(closing))
    shown = replace(outcome, cases=tuple(case for case in outcome.cases if not case.agrees)) if options.failed_only else outcome
    if options.format == "json":
        names = {name: getattr(options, name) for name in ("reference", "candidate") if hasattr(options, name)}
        write_text([tables.outcome_json(outcome, shown.cases, names, explanation)], "-")
    elif options.format == "junit":
        write_text([tables.outcome_junit(outcome, shown.cases, explanation)], "-")
    elif not options.quiet:
        screen = tables.Screen(output_width(), options.verbose, options.failed_only, shows_colours(sys.stdout))
        lines = screen.lines(outcome, explanation)
        if commands := list(_next_commands(outcome, options)):
            lines += ["try next:", *(line for words in commands for line in screen.command_lines(words))]
        write_text([f"{line}\n" for line in lines], "-")
    return errors.DONE if outcome.agrees else errors.DISAGREE


def _next_commands(outcome: Comparison | Verification, options: argparse.Namespace) -> Iterator[list[str]]:
    """What to try where they disagree: the search for the cause, and one feature step by step, from the same weights."""
    from oracle.terminal import tables

    if outcome.agrees:
        return
    program, files = ["python", "-m", "oracle"], ["--candidate", options.candidate] if options.command == "compare" else []
    origin = [*origin_words(options), *demo_words(options)]
    if files and not options.explain and not tables.has_flags(outcome):
        yield [*program, "compare", options.reference, options.candidate, "--explain", *origin]
    of_features = ((case.id, problem.feature) for case in outcome.cases for problem in case.problems if problem.feature is not None)
    for case_id, feature in of_features:
        if case_id.kind != "case":  # of exact vectors: their flags say it
            place = ["--layer", str(case_id.layer), f"--{case_id.kind}", str(case_id.number), "--feature", str(feature)]
            yield [*program, "inspect", options.reference, *place, *files, *origin]
            return


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
    text = f"{json_text(inspection.to_dict(), 2)}\n" if options.format == "json" else "".join(f"{printable(line, sys.stdout)}\n" for line in inspection.lines)
    write_text([text], "-")


def _report(options: argparse.Namespace) -> None:
    from oracle.page.differences import FileNames
    from oracle.page.page import page
    from oracle.references.reading import parse_reference, read_json

    if options.explain and options.candidate is None:
        raise BadUse("--explain is about a candidate, and none is named: name one after the reference")
    if options.output != "-":
        check_output(options.output, [options.reference, options.candidate])
    document, names = read_json(options.reference), FileNames(options.reference, options.candidate or "")
    if options.candidate is None:
        reference, verdict = parse_reference(document, options.reference), ""
        text = page(reference, names=names)
    else:
        reference, candidate, comparison, explanation = _compared(options, document)
        text, verdict = page(reference, candidate, comparison, explanation, names), f"; {comparison.verdict}"
        if explanation is not None and explanation.unsearched:
            say(explanation.lines[0], quiet=options.quiet)
    write_text([text], options.output)
    say(f"{counted(len(reference.cases), 'case')} -> {options.output} ({len(text) / 1024:.1f} KiB){verdict}", quiet=options.quiet)


def _mirror(options: argparse.Namespace) -> None:
    from oracle.sources import mirror

    if "://" in options.destination:
        raise BadUse(f"{options.destination} is an address, and a mirror is built in a folder: name one; --mirror URL reads from a server")
    if options.mirror and os.path.realpath(options.mirror) == os.path.realpath(options.destination):
        raise BadUse(f"--mirror {options.mirror} is the folder that is built: leave it out, or name another")
    destination = Path(options.destination)
    if not options.check:
        _build_mirror(destination, options)
        return
    sizes, bad = list[int](), list[str]()

    def checked(entry: mirror.Entry, problem: str | None) -> None:
        sizes.append(entry.size)
        if problem:
            bad.append(f"{entry.place} {problem}")
        else:
            say(f"{entry.place} is right", quiet=options.quiet)

    mirror.check(destination, checked)
    for line in bad:
        say(line)
    size = in_bytes(sum(sizes))
    if bad:
        raise mirror.MirrorError(f"{len(bad)} of {len(sizes)} files of {destination} ({size}) are not what its manifest says: delete them and build it again")
    say(f"{counted(len(sizes), 'file')}, {size}: all are what the manifest says", quiet=options.quiet)


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
            rest = f" ({in_bytes(entry.size)}{', there already' if kept else ''})"
            reporter.say(f"{entry.place}{rest}", f"{entry.path}{rest}", entry.path)

        source = Source(job.origin, reporter, commits)
        try:
            files, listing = files_of(job, source)
            entries = mirror.build(destination, files, listing, source.fetch, built)
        except PermissionError as error:
            raise BadUse(f"{destination} cannot be written to: {error.strerror}") from error
    used = replace(job.origin, mirror=str(destination), cache_dir=None, offline=None)
    command = shlex.join(["python", "-m", "oracle", *origin_words(used)])
    say(f"{counted(len(entries), 'file')} -> {destination}; serve it as it is, or use it with: {command}", quiet=options.quiet)


def _demo(options: argparse.Namespace) -> None:
    from oracle.vectors import demo

    weights, quiet = demo.make(options.folder, options.schema, decode=options.decode), options.quiet
    options.output = weights.output
    say(f"synthetic weights: {weights.n_layers} layers of [{weights.d_model}, {weights.n_features}] in {weights.folder}", quiet=quiet)
    _generate(options, weights.job)
    candidate = weights.folder / demo.CANDIDATE
    write_text(dump(demo.wrong_candidate(weights)), str(candidate))
    say(f"answers of a port that leaves b_enc out in one layer -> {candidate}", quiet=quiet)
    origin = weights.job.origin
    command = ["python", "-m", "oracle", *origin_words(origin), *["--decode"] * options.decode]
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
    place = os.path.join(options.folder, written[0][0], "vectors.json")
    for name, n_cases in written:
        say(f"{counted(n_cases, 'case')} -> {os.path.join(options.folder, name, 'vectors.json')}", quiet=options.quiet)
    say(f"Check a port's answers with: python -m oracle compare {shlex.quote(place)} CANDIDATE", quiet=options.quiet)


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
