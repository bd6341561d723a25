# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the command line says of itself, the types of its options' values, and the options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from oracle.job import ALL, MAX_CONNECTIONS, MAX_LAYER, MAX_SEEDS, MAX_TOLERANCE, MAX_TOP_K, MIN_TOLERANCE, SAMPLE
from oracle.terminal import github as actions
from oracle.version import VERSION
from oracle.weights import formats as schemas

LAYERS_HELP = '"0,12,25", "0-25", "all", or "sample": the first, the middle one and the last (sample)'
DEFAULT_REPORT = "report.html"
MAX_LENGTH = 1 << 24

DESCRIPTION = """\
Reference encodings of transcoders for people who port them.

  python -m oracle [generate]   write a reference: fetch the weights, encode, say how near each answer is to flipping
  python -m oracle verify       recompute a reference from its weights
  python -m oracle compare      check a port's answers against a reference; with --explain, name its mistake
  python -m oracle report       one HTML page with the pictures: a reference, and what a candidate makes of it
  python -m oracle mirror       build a mirror that any file server, or a folder, can serve behind an air gap
  python -m oracle residual     print one residual, or the Rust port of the generator
  python -m oracle demo         the whole way on small synthetic weights that it makes: no network needed

`python -m oracle COMMAND --help` lists a command's options; without a command it is `generate`."""

EXIT_CODES = (
    "exit codes: 0 done, and verify or compare agree; 1 they disagree; 2 wrong usage; "
    "3 the source cannot be reached or refuses; 4 the data is broken; 70 a mistake in oracle; 130 interrupted"
)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from, and how much is said about it."""
    group = parser.add_argument_group("where the weights come from")
    group.add_argument(
        "--repo",
        "--curation-repo",
        metavar="ORG/NAME",
        help="the repo with the weights, or with the config.yaml that names them (mntss/gemma-scope-transcoders)",
    )
    group.add_argument(
        "--path", action="append", default=[], help="a weight file of the repo, or a folder of them; may be given several times"
    )
    group.add_argument("--schema", metavar="NAME", help="what is found out otherwise: how the weights are named and laid out")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of the repo (main)")
    group.add_argument("--weights-revision", metavar="REV", help="the same for weights whose hf:// address names none")
    group.add_argument(
        "--mirror",
        metavar="URL",
        help="ask this instead of huggingface.co: a server like it, a proxy, a file server, a folder (ORACLE_MIRROR)",
    )
    group.add_argument("--cache-dir", metavar="DIR", help="the Hub cache, shared with huggingface_hub (HF_HUB_CACHE)")
    group.add_argument(
        "--offline", action="store_true", help="no requests, as HF_HUB_OFFLINE=1 has it: the cache, or a folder"
    )
    group.add_argument(
        "--connections", type=integer(1, MAX_CONNECTIONS), default=4, metavar="N", help="for each file of 64 MiB or more (4)"
    )
    group.add_argument("--quiet", action="store_true", help="print errors alone")


def layers(text: str) -> tuple[int, ...] | str:
    """`0,12,25` or `0-25` as numbers, ascending; `all` and `sample` as they are."""
    if text.strip() in (ALL, SAMPLE):
        return text.strip()
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f'{text!r} is not of the form "0,12,25", "0-25", "all" or "sample"')
        low, high = int(first), int(last or first)
        if low > high or high > MAX_LAYER:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no range of layers")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def integer(low: int, high: int) -> Any:
    """A parser of whole numbers, decimal or 0x..., from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not in {low} to {high}")
        return value

    return parse


def tolerance(text: str) -> float:
    """A tolerance that margins of 6 decimals can be held against."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not MIN_TOLERANCE <= value <= MAX_TOLERANCE:
        raise argparse.ArgumentTypeError(
            f"{text} is not in {MIN_TOLERANCE:g} to {MAX_TOLERANCE:g}: margins are recorded to 6 decimals"
        )
    return value


class _Parser(argparse.ArgumentParser):
    """argparse's, whose complaints are errors like ours."""

    def error(self, message: str) -> NoReturn:
        actions.annotate("oracle", message)
        super().error(message)


def parsers() -> tuple[argparse.ArgumentParser, list[str]]:
    """The command line's parser, and the names of its commands."""
    parser = _Parser(
        prog="python -m oracle",
        usage="python -m oracle [COMMAND] [OPTIONS]",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"oracle {VERSION}")
    subparsers = parser.add_subparsers(metavar="COMMAND", help=argparse.SUPPRESS, prog="python -m oracle")

    def command(name: str, description: str) -> argparse.ArgumentParser:
        subparser = subparsers.add_parser(name, description=description, epilog=EXIT_CODES)
        subparser.set_defaults(command=name)
        subparser.add_argument("--debug", action="store_true", help="show the whole chain of an error")
        return subparser

    generate = command("generate", "Write a reference: one JSON with residuals and their encodings.")
    generate.add_argument("--layers", type=layers, default="sample", help=LAYERS_HELP)
    generate.add_argument("--seeds", type=integer(1, MAX_SEEDS), default=3, metavar="N", help="residuals per layer (3)")
    generate.add_argument("--top-k", type=integer(1, MAX_TOP_K), default=10, metavar="K", help="features per case (10)")
    generate.add_argument(
        "--tolerance", type=tolerance, default=1e-4, help="what a port may be off by, absolute (1e-4)"
    )
    generate.add_argument(
        "-o", "--output", metavar="FILE", help="`-` is standard output (by weights and model: plt_gemma_reference.json)"
    )
    generate.add_argument("--robust", action="store_true", help="pass over seeds whose case is near to flipping")
    generate.add_argument("--decode", action="store_true", help="add what the decoder makes of each case")
    generate.add_argument(
        "--stream", action="store_true", help="put nothing on disk and fetch only what the encoder reads: half the bytes"
    )
    generate.add_argument("--omit-residuals", action="store_true", help="leave the vectors out; they can be made again")
    many = generate.add_mutually_exclusive_group()
    many.add_argument("--workers", type=integer(1, 64), default=1, metavar="N", help="processes that encode layers (1)")
    many.add_argument("--dask", metavar="ADDRESS", help="have a Dask cluster encode the layers: tcp://scheduler:8786")
    add_source_options(generate)

    verify = command("verify", "Recompute every case of a reference from its weights; torch's references too.")
    verify.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
    add_source_options(verify)

    compare = command("compare", "A candidate's answers against a reference. Weights are needed for --explain alone.")
    compare.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
    compare.add_argument("candidate", metavar="CANDIDATE", help="the port's JSON; `-` is standard input")
    compare.add_argument("--explain", action="store_true", help="where they disagree, look for the mistake that gives these numbers")
    compare.add_argument(
        "--format", choices=("table", "json", "junit"), default="table", help="json and junit go to standard output (table)"
    )
    add_source_options(compare)

    report = command(
        "report",
        "A reference as one HTML page, and a candidate beside it: no script, nothing from outside. It needs no weights "
        "but for --explain. Exit code 0 says that the page was written: whether the candidate agrees is said on standard "
        "error and on the page, and is `compare`'s exit code.",
    )
    report.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
    report.add_argument("candidate", metavar="CANDIDATE", nargs="?", help="a port's JSON; `-` is standard input")
    report.add_argument("-o", "--output", default=DEFAULT_REPORT, metavar="FILE", help=f"`-` is standard output ({DEFAULT_REPORT})")
    report.add_argument("--explain", action="store_true", help="as for compare: where they disagree, look for the mistake")
    add_source_options(report)

    mirror = command("mirror", "Build a static mirror of the files that a job needs, or check one.")
    mirror.add_argument("destination", metavar="DEST", help="the folder; `python -m oracle --mirror DEST` reads it")
    mirror.add_argument("--layers", type=layers, default="sample", help=LAYERS_HELP)
    mirror.add_argument("--decode", action="store_true", help="what --decode reads too: cross-layer decoders have their own files")
    mirror.add_argument("--check", action="store_true", help="hash every file again, and compare with the manifest")
    add_source_options(mirror)

    demo = command("demo", "The whole job on small synthetic weights, made on the spot; needs no network.")
    demo.add_argument("--folder", metavar="DIR", help="where to make it (default: a new temporary folder)")
    names = [schema.name for schema in schemas.SCHEMAS]
    demo.add_argument("--schema", choices=names, default=names[0], help=f"of which kind ({names[0]})")
    demo.add_argument("--decode", action="store_true", help="add what the decoder makes of each case")
    demo.add_argument("--quiet", action="store_true", help="print errors alone")

    residual = command("residual", "Print one residual, a value a line, or the generator in Rust.")
    residual.add_argument("--seed", type=integer(0, 2**64 - 1), default=0)
    residual.add_argument("--stream", type=integer(0, 2**64 - 1), default=0)
    residual.add_argument("--length", type=integer(0, MAX_LENGTH), default=2304, metavar="N")
    form = residual.add_mutually_exclusive_group()
    form.add_argument("--hex", action="store_true", help="print float32 bits, 8 hex digits each")
    form.add_argument("--rust", action="store_true", help="print residual.rs")
    return parser, list(subparsers.choices)
