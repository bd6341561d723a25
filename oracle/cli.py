# SPDX-License-Identifier: MIT OR Apache-2.0
"""Arguments, exit codes, and what a person sees. Heavy modules are imported when a command needs them."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oracle import __version__
from oracle.options import add_source_options, integer, layers, tolerance

if TYPE_CHECKING:
    from oracle.reference import Job

EXIT_DONE, EXIT_DISAGREE, EXIT_USAGE, EXIT_SOURCE, EXIT_DATA, EXIT_OURS, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 70, 130

DEFAULT_OUTPUT = "plt_gemma_reference.json"
MAX_LENGTH = 1 << 24
MAX_SEEDS = 10_000

DESCRIPTION = """\
Reference encodings of transcoders for people who port them.

  python -m oracle [generate]   write a reference: fetch the weights, encode, say how near each answer is to flipping
  python -m oracle verify       recompute a reference from its weights
  python -m oracle compare      check a port's answers against a reference; with --explain, name its mistake
  python -m oracle mirror       build a mirror that any file server, or a folder, can serve behind an air gap
  python -m oracle residual     print one residual, or the Rust port of the generator
  python -m oracle demo         the whole way on small synthetic weights that it makes: no network needed

`python -m oracle COMMAND --help` lists a command's options; without a command it is `generate`."""

EXIT_CODES = (
    "exit codes: 0 done, and verify or compare agree; 1 they disagree; 2 wrong usage; "
    "3 the source cannot be reached or refuses; 4 the data is broken; 70 a mistake in oracle; 130 interrupted"
)


class UsageError(ValueError):
    """Options that contradict each other or the machine."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    parser, commands = _parsers()
    if not arguments or (arguments[0] not in commands and arguments[0] not in ("-h", "--help", "--version")):
        arguments = ["generate", *arguments]
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our standard output has seen enough; keep Python from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except Exception as error:
        code = _exit_code(error)
        if options.debug:
            traceback.print_exc()
        _say(f"error: {_one_line(error, code)}")
        return code


def _parsers() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m oracle",
        usage="python -m oracle [COMMAND] [OPTIONS]",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"oracle {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, prog="python -m oracle")

    def command(name: str, run: Any, description: str) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(name, description=description, epilog=EXIT_CODES)
        subparser.set_defaults(run=run)
        subparser.add_argument("--debug", action="store_true", help="show the whole chain of an error")
        return subparser

    generate = command("generate", _generate, "Write a reference: one JSON with residuals and their encodings.")
    generate.add_argument("--layers", type=layers, default=(0, 12, 25), help='"0,12,25" (default), "0-25" or "all"')
    generate.add_argument("--seeds", type=integer(1, MAX_SEEDS), default=3, metavar="N", help="residuals per layer (3)")
    generate.add_argument("--top-k", type=integer(1, 1 << 20), default=10, metavar="K", help="features per case (10)")
    generate.add_argument(
        "--tolerance", type=tolerance, default=1e-4, help="what a port may be off by, absolute (1e-4)"
    )
    generate.add_argument(
        "-o", "--output", default=DEFAULT_OUTPUT, metavar="FILE", help=f"`-` is standard output ({DEFAULT_OUTPUT})"
    )
    generate.add_argument(
        "--stream", action="store_true", help="put nothing on disk and fetch only what the encoder reads: half the bytes"
    )
    generate.add_argument("--omit-residuals", action="store_true", help="leave the vectors out; they can be made again")
    add_source_options(generate)

    verify = command("verify", _verify, "Recompute every case of a reference from its weights; torch's references too.")
    verify.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
    add_source_options(verify)

    compare = command("compare", _compare, "A candidate's answers against a reference. Weights are needed for --explain alone.")
    compare.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
    compare.add_argument("candidate", metavar="CANDIDATE", help="the port's JSON; `-` is standard input")
    compare.add_argument("--explain", action="store_true", help="where they disagree, look for the mistake that gives these numbers")
    compare.add_argument(
        "--format", choices=("table", "json", "junit"), default="table", help="json and junit go to standard output (table)"
    )
    add_source_options(compare)

    mirror = command("mirror", _mirror, "Build a static mirror of the files that a job needs, or check one.")
    mirror.add_argument("destination", metavar="DEST", help="the folder; `python -m oracle --mirror DEST` reads it")
    mirror.add_argument("--layers", type=layers, default=(0, 12, 25), help='"0,12,25" (default), "0-25" or "all"')
    mirror.add_argument("--check", action="store_true", help="hash every file again, and compare with the manifest")
    add_source_options(mirror)

    demo = command("demo", _demo, "The whole job on small synthetic weights, made on the spot; needs no network.")
    demo.add_argument("--folder", metavar="DIR", help="where to make it (default: a new temporary folder)")
    demo.add_argument("--quiet", action="store_true", help="print errors alone")

    residual = command("residual", _residual, "Print one residual, a value a line, or the generator in Rust.")
    residual.add_argument("--seed", type=integer(0, 2**64 - 1), default=0)
    residual.add_argument("--stream", type=integer(0, 2**64 - 1), default=0)
    residual.add_argument("--length", type=integer(0, MAX_LENGTH), default=2304, metavar="N")
    form = residual.add_mutually_exclusive_group()
    form.add_argument("--hex", action="store_true", help="print float32 bits, 8 hex digits each")
    form.add_argument("--rust", action="store_true", help="print residual.rs")
    return parser, list(subparsers.choices)


def _generate(options: argparse.Namespace) -> int:
    # Products of a few rows are bound by memory, and the second core has the checksums: OpenBLAS's own threads,
    # which spin while they wait, make the job slower. OPENBLAS_NUM_THREADS overrides; the bytes are the same.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle import document

    if options.output != "-":
        document.check_output(options.output)
    if options.stream and options.offline:
        raise UsageError("--stream needs a server or a mirror, and --offline forbids them: leave one out")
    job = replace(
        _job(options), n_seeds=options.seeds, top_k=options.top_k, tolerance=options.tolerance, stream=options.stream
    )
    _run_job(job, options.output, omit_residuals=options.omit_residuals, quiet=options.quiet)
    return EXIT_DONE


def _job(options: argparse.Namespace) -> Job:
    """The source options that several commands share, as a job."""
    from oracle import reference

    return reference.Job(
        curation_repo=options.curation_repo or reference.CURATION_REPO,
        revision=options.revision,
        weights_revision=options.weights_revision,
        layers=getattr(options, "layers", None),
        endpoint=options.mirror or os.environ.get("ORACLE_MIRROR") or None,
        cache_dir=options.cache_dir,
        offline=options.offline,
        connections=options.connections,
    )


def _verify(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle import document, tables, verify

    recorded = document.read_reference(options.reference)
    made = verify.verify(recorded, _source(options, recorded), _events(options), by_curation=_by_curation(options))
    if not options.quiet:
        _say(tables.verification(made))
    return EXIT_DONE if made.agrees else EXIT_DISAGREE


def _compare(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle import compare, document, tables

    recorded = document.read_reference(options.reference)
    candidate = document.read_candidate(options.candidate, document.top_key(recorded))
    made = compare.compare(recorded, candidate)
    explanation = None
    if options.explain and not made.agrees:
        from oracle import explain

        explanation = explain.explain(
            recorded, candidate, made, _source(options, recorded), _events(options), by_curation=_by_curation(options)
        )
    if options.format == "json":
        sys.stdout.write(tables.comparison_json(made, explanation))
    elif options.format == "junit":
        sys.stdout.write(tables.comparison_junit(made, explanation))
    elif not options.quiet:
        _say(tables.comparison(made, explanation))
    sys.stdout.flush()
    return EXIT_DONE if made.agrees else EXIT_DISAGREE


def _source(options: argparse.Namespace, recorded: dict[str, Any]) -> Job:
    """Where the weights of a reference come from: as the reference has it, unless an option says otherwise."""
    job = _job(options)
    if options.curation_repo:
        return job
    return replace(
        job,
        curation_repo=recorded.get("curation_repo", job.curation_repo),
        revision=options.revision or recorded.get("curation_revision"),
    )


def _by_curation(options: argparse.Namespace) -> bool:
    return bool(options.curation_repo or options.revision or options.weights_revision)


def _events(options: argparse.Namespace) -> Any:
    from oracle import reference

    if options.quiet:
        logging.getLogger("vendored_hf").setLevel(logging.ERROR)
        return reference.Events()
    return _Narrator().events()


def _run_job(job: Job, output: str, *, omit_residuals: bool, quiet: bool) -> None:
    from oracle import document, reference

    if quiet:
        logging.getLogger("vendored_hf").setLevel(logging.ERROR)
        made = reference.generate(job)
    else:
        made = reference.generate(job, _Narrator().events())
    document.write(document.omit_residuals(made) if omit_residuals else made, output)
    if not quiet and output != "-":
        n_cases = len(made["test_cases"])
        _say(f"{n_cases} cases -> {output} ({os.path.getsize(output) / 1024:.1f} KiB)")


class _Narrator:
    """Says on standard error what a job does: a line per fetched file, a line per case."""

    def __init__(self) -> None:
        self._path = ""
        self._began = 0.0

    def events(self) -> Any:
        from oracle import reference

        return reference.Events(fetching=self.fetching, fetched=self.fetched, encoded=self.encoded)

    def fetching(self, path: str) -> None:
        self._path, self._began = path, time.monotonic()

    def fetched(self, local_path: str) -> None:
        size, seconds = os.path.getsize(local_path) / 1e6, time.monotonic() - self._began
        _say(f"fetched {self._path} ({size:.1f} MB in {seconds:.1f} s)")

    def encoded(self, case: dict[str, Any], n_features: int) -> None:
        top = next(value for key, value in case.items() if key.startswith("top_"))
        first = f"L{case['layer']}:{top[0]['index']} ({top[0]['activation']:.4f})" if top else "none"
        rank = "none" if case["rank_margin"] is None else f"{case['rank_margin']:.6f}"
        flags = f"  [{', '.join(case['flags'])}]" if case["flags"] else ""
        _say(
            f"layer {case['layer']:2d} seed {case['seed']:4d}: {case['n_active']:6d} active / {n_features} features, "
            f"top {first}, rank margin {rank}, gate margin {case['gate_margin']:.6f}{flags}"
        )


def _mirror(options: argparse.Namespace) -> int:
    from pathlib import Path

    from oracle import mirror, reference

    destination = Path(options.destination)
    say = (lambda text: None) if options.quiet else _say
    if options.check:
        n_bad = mirror.check(destination, lambda entry, problem: (_say if problem else say)(f"{entry.place} {problem or 'is right'}"))
        if n_bad:
            raise mirror.MirrorError(f"{n_bad} files of {destination} are not what its manifest says: build it again")
        return EXIT_DONE
    if options.quiet:
        logging.getLogger("vendored_hf").setLevel(logging.ERROR)
    source = reference.Source(_job(options), reference.Events() if options.quiet else _Narrator().events())
    try:
        entries = mirror.build(
            destination,
            reference.files_of(_job(options), source),
            source.fetch,
            lambda entry, kept: say(f"{entry.place} ({entry.size / 1e6:.1f} MB{', there already' if kept else ''})"),
        )
    except PermissionError as error:
        raise UsageError(f"{destination} cannot be written to: {error.strerror}") from error
    say(f"{len(entries)} files -> {destination}; use it with --mirror {destination}, or serve it as it is")
    return EXIT_DONE


def _demo(options: argparse.Namespace) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from oracle import demo

    made = demo.make(options.folder)
    if not options.quiet:
        _say(f"synthetic weights: {made.n_layers} layers of [{made.d_model}, {made.n_features}] in {made.folder}")
    _run_job(made.job, made.output, omit_residuals=False, quiet=options.quiet)
    if not options.quiet:
        _say("These weights are synthetic: the numbers test a port's arithmetic, they say nothing about Gemma.")
        _say(
            f"Again, by hand: python -m oracle --offline --cache-dir {shlex.quote(str(made.job.cache_dir))} "
            f"--curation-repo {made.job.curation_repo}"
        )
    return EXIT_DONE


def _residual(options: argparse.Namespace) -> int:
    if options.rust:
        from importlib.resources import files

        sys.stdout.write(files("oracle").joinpath("residual.rs").read_text(encoding="utf-8"))
    else:
        from oracle.residual import residual

        values = residual(options.seed, options.stream, options.length)
        if options.hex:
            sys.stdout.writelines(f"{bits:08x}\n" for bits in values.view("u4").tolist())
        else:
            sys.stdout.writelines(f"{value!r}\n" for value in values.tolist())
    sys.stdout.flush()
    return EXIT_DONE


def _exit_code(error: Exception) -> int:
    """The exit code of an error: one that a user can do something about, or a mistake of ours."""
    import vendored_hf
    from oracle import curation, document, mirror, reference, weights

    data = (curation.CurationError, weights.WeightsError, document.DataError, mirror.MirrorError, vendored_hf.ConsistencyError)
    usage = (UsageError, reference.LayerError, document.InputError, document.OutputError, vendored_hf.HFValidationError)
    if isinstance(error, data):
        return EXIT_DATA
    if isinstance(error, usage):
        return EXIT_USAGE
    if isinstance(error, (OSError, vendored_hf.EntryNotFoundError)):
        return EXIT_SOURCE
    return EXIT_OURS


def _one_line(error: Exception, code: int) -> str:
    import vendored_hf

    text = " ".join(str(error).split())
    if code == EXIT_OURS:
        text = f"a mistake in oracle, please report it with what --debug shows: {type(error).__name__}: {text}"
    if isinstance(error, vendored_hf.LocalEntryNotFoundError):
        text += "; ways on: a filled cache with --offline (HF_HUB_OFFLINE=1), a mirror with --mirror URL, or `python -m oracle demo`"
    return text


def _say(text: str) -> None:
    """Print for a person. What a server or a file named is not to reach the terminal as a control character."""
    lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in text.split("\n"))
    print("\n".join(lines), file=sys.stderr, flush=True)
