# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the command line says of itself, the types of its options' values, and the job that options ask for."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from oracle.errors import USAGE, did_you_mean
from oracle.job import (
    ALL,
    DEMO_CACHE,
    DEMO_OWNER,
    LEAST_FACTOR,
    MAX_CONNECTIONS,
    MAX_FEATURES,
    MAX_LAYER,
    MAX_PATIENCE,
    MAX_SCALE,
    MAX_SEEDS,
    MAX_TOLERANCE,
    MAX_TOP_K,
    MIN_SCALE,
    MIN_TOLERANCE,
    MOST_FACTOR,
    NORMALIZE,
    SAMPLE,
    Job,
    Origin,
    float32,
    is_factor,
)  # fmt: skip
from oracle.terminal import github
from oracle.terminal.text import say
from oracle.version import VERSION
from oracle.weights.formats import FORMATS

MAX_LENGTH = 1 << 24
CONSUMERS = {"rust": "consumer.rs", "c": "consumer.c", "javascript": "consumer.js"}
DESCRIPTION = (
    "Reference encodings of transcoders for people who port them. `python -m oracle COMMAND --help` lists a command's "
    "options; without a command it is `generate`."
)
EXIT_CODES = (
    "exit codes: 0 done, and verify or compare agree; 1 they disagree; 2 wrong usage; "
    "3 the source cannot be reached or refuses; 4 the data is broken; 70 a mistake in oracle; 130 interrupted"
)
VARIABLES = (
    "environment: ORACLE_MIRROR (--mirror); HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, "
    "HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_DISABLE_PROGRESS_BARS as huggingface_hub has them; HTTPS_PROXY, NO_PROXY; "
    "NO_COLOR; COLUMNS; OPENBLAS_NUM_THREADS; in a workflow of GitHub's GITHUB_ACTIONS and GITHUB_STEP_SUMMARY"
)
EPILOG = f"{EXIT_CODES}. {VARIABLES}"


def origin_of(options: argparse.Namespace) -> Origin:
    """Where options say that weights come from: they are called like its fields. Raises BadUse."""
    return Origin(**_fields(Origin, options) | {"path": tuple(options.path), "ignore_key": tuple(options.ignore_key)})


def origin_words(origin: argparse.Namespace | Origin) -> list[str]:
    """The options that say what `origin` says, where that is not what holds without them."""
    words = []
    for field in fields(Origin):
        value, option = getattr(origin, field.name, field.default), "--" + field.name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value and value != field.default:
            words += [word for item in (value if isinstance(value, (tuple, list)) else [value]) for word in (option, str(item))]
    return words


def demo_words(options: argparse.Namespace) -> list[str]:
    """The options that name the demo's cache beside the reference that they name; none where there is none, or where they name a source."""
    if not hasattr(options, "reference") or options.cache_dir or options.mirror:
        return []
    folder = Path(options.reference).parent / DEMO_CACHE
    if not any(folder.glob(f"models--{DEMO_OWNER}--*")):
        return []
    return ["--cache-dir", str(folder), *([] if options.offline else ["--offline"])]


def job_of(options: argparse.Namespace) -> Job:
    """The job that options ask for: they are called like its fields. Raises BadUse."""
    return Job(origin_of(options), **_fields(Job, options))


def _fields(kind: type[Job] | type[Origin], options: argparse.Namespace) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in names}


def layers(text: str) -> tuple[int, ...] | str:
    """`0,12,25` or `0-25` as numbers, ascending; `all` and `sample` as they are."""
    if text.strip() in (ALL, SAMPLE):
        return text.strip()
    chosen: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not span:
            raise argparse.ArgumentTypeError(f'{text!r} is not of the form "0,12,25", "0-25", "all" or "sample"')
        low, high = int(span[1]), int(span[2] or span[1])
        if low > high or high > MAX_LAYER:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no range of layers")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def integer(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers, decimal or 0x..., from low to high."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= int(text, 0) <= high:
                return int(text, 0)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def tolerance(text: str) -> float:
    """A tolerance that margins of 6 decimals can be held against."""
    with contextlib.suppress(ValueError):
        if MIN_TOLERANCE <= float(text) <= MAX_TOLERANCE:
            return float(text)
    span = f"{MIN_TOLERANCE:g} to {MAX_TOLERANCE:g}"
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {span}: margins are recorded to 6 decimals")


def scale(text: str) -> float:
    """What residuals may be multiplied by."""
    with contextlib.suppress(ValueError):
        if MIN_SCALE <= float(text) <= MAX_SCALE:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {MIN_SCALE:g} to {MAX_SCALE:g}")


def factor(text: str) -> float:
    """What generated residuals may be multiplied by."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if is_factor(value):
            return value
        if LEAST_FACTOR <= value <= MOST_FACTOR:
            raise argparse.ArgumentTypeError(f"{text!r} is no float32, so that ports would differ: {float32(value)!r} is the nearest")
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from {LEAST_FACTOR:g} to {MOST_FACTOR:g}")


def choice(*words: str) -> Callable[[str], str]:
    """A parser of one of a few words."""

    def parse(text: str) -> str:
        if text in words:
            return text
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}{did_you_mean(text, words)}")

    return parse


def repo(text: str) -> str:
    """A repo's name, perhaps with a folder of it; an address of the Hub is answered with the options that say the same."""
    address = re.fullmatch(r"(?:(?:https?|hf)://)?(?:www\.)?(?:huggingface\.co/|hf\.co/|(?<=hf://))([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/([^/]+)/?(.*))?/?", text)
    if address:
        name, revision, path = address[1], address[2] or "main", (address[3] or "").rstrip("/")
        rest = (f" --revision {revision}" if revision != "main" else "") + (f" --path {path}" if path else "")
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not ORG/NAME; did you mean --repo {name}{rest}?")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not ORG/NAME; a server is named with --mirror URL")
    return text


class _Parser(argparse.ArgumentParser):
    """argparse's, whose complaints are errors like ours, and which takes no option for another that it begins."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"argument (\S+): ignored explicit argument .*", r"\1 takes no value; leave out what stands behind it", message)
        say(f"error: {message}{' See' if message.endswith('?') else '; see'} `{self.prog} --help`")
        github.annotate("oracle", message)
        sys.exit(USAGE)

    def add_flag(self, name: str, help: str) -> None:
        self.add_argument(name, action="store_true", help=help)

    def check_filled(self, options: argparse.Namespace) -> None:
        """End where an option was given an empty text, as of a variable that is not set: it would mean what is done without it."""
        for action in self._actions:
            value = getattr(options, action.dest, None)
            if value == "" or (isinstance(value, list) and "" in value):
                name = next((name for name in action.option_strings if name.startswith("--")), None)
                self.error(f"{name} is empty: give it a value, or leave it out" if name else f"{action.metavar} is empty: name one")

    def options(self) -> list[str]:
        """The names of its options."""
        return [name for action in self._actions for name in action.option_strings]


def complete(whole: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may come next, where argcomplete is installed, and end the process."""
    with contextlib.suppress(ImportError):
        import argcomplete  # type: ignore[import-not-found,unused-ignore]

        argcomplete.autocomplete(whole)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for, with its `command`, by default generate. Ends the process where that is wrong usage, or a question."""
    whole = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may come next: see the README
        complete(whole)
    commands = whole.commands
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "--version"):
        return whole.parse_args(arguments)
    if first and not first.startswith("-") and first not in commands:
        whole.error(f"there is no command {first!r}{did_you_mean(first, commands)}")
    command = first if first in commands else "generate"
    chosen = commands[command]
    options, others = whole.parse_known_args([command, *arguments[first == command :]])
    if not others:
        chosen.check_filled(options)
        return options
    late = next((word for word in others if word in commands), None)
    if late and first != command:
        rest = [word for word in arguments if word != late]
        whole.error(f"the command comes first: {shlex.join(['python', '-m', 'oracle', late, *rest])}")
    name = others[0].partition("=")[0]
    if not name.startswith("-"):
        chosen.error(f"{others[0]!r} is one argument too many")
    owners = [other for other in commands if name in commands[other].options()]
    meant = f": it is of {', '.join(owners)}" if owners else did_you_mean(name, chosen.options())
    chosen.error(f"{command} has no option {name}{meant}")


class _Parsers(_Parser):
    """The command line's parser, with those of its commands."""

    commands: dict[str, _Parser]


def parser() -> _Parsers:
    """The command line's parser."""
    usage = "python -m oracle [COMMAND] [OPTIONS]"
    whole = _Parsers(prog="python -m oracle", usage=usage, description=DESCRIPTION, epilog=EPILOG)
    whole.add_argument("--version", action="version", version=f"oracle {VERSION}")
    subparsers = whole.add_subparsers(title="commands", metavar="COMMAND", prog="python -m oracle", parser_class=_Parser)
    whole.commands = subparsers.choices

    def command(name: str, description: str, more: str = "", *, reference: bool = False) -> _Parser:
        subparser = subparsers.add_parser(name, help=description, description=f"{description} {more}", epilog=EPILOG)
        subparser.set_defaults(command=name)
        subparser.add_flag("--debug", "show the whole chain of an error")
        subparser.add_flag("--quiet", "print errors alone")
        if reference:
            subparser.add_argument("reference", metavar="REFERENCE", help="a reference's JSON")
        return subparser

    layers_help = '"0,12,25", "0-25", "all", or "sample": the first, the middle one and the last (sample)'
    generate = command("generate", "Write a reference: fetch the weights, encode, say how near each answer is to flipping.")
    add = generate.add_argument
    add("--layers", type=layers, default=Job.layers, help=layers_help)
    add("--seeds", type=integer(1, MAX_SEEDS), default=Job.seeds, metavar="N", help="residuals per layer (3; of --residuals the first N rows, or all)")
    mine = "your own residuals: .npy, .npz or .safetensors, [rows, d_model] for all layers, or layer_N or blocks.N... for each; float64 is rounded"
    add("--residuals", metavar="FILE", help=mine)
    add("--scale", type=factor, default=Job.scale, metavar="X", help="what generated residuals are multiplied by; a power of two is exact (1)")
    add("--top-k", type=integer(1, MAX_TOP_K), default=Job.top_k, metavar="K", help="features per case (10)")
    add("--tolerance", type=tolerance, default=Job.tolerance, help="what a port may be off by, absolute (1e-4)")
    add("-o", "--output", metavar="FILE", help="`-` is standard output (by weights and model: plt_gemma_reference.json)")
    robust = "pass over seeds whose case is nearer to flipping than the tolerance, or than MARGIN: 2e-5 is more than float32 ports are off by"
    add("--robust", type=tolerance, nargs="?", const=True, default=Job.robust, metavar="MARGIN", help=robust)
    generate.add_flag("--dry-run", "print which files would be read, how large they are and which are here, and fetch none of the weights")
    generate.add_flag("--decode", "add what the decoder makes of each case")
    generate.add_flag("--stream", "put nothing on disk and fetch only what the encoder reads: half the bytes")
    generate.add_flag("--omit-residuals", "leave the vectors out; they can be made again")
    many = generate.add_mutually_exclusive_group()
    many.add_argument("--workers", type=integer(1, 64), default=1, metavar="N", help="threads that encode layers (1)")
    many.add_argument("--dask", metavar="ADDRESS", help="have a Dask cluster encode the layers: tcp://scheduler:8786")

    verify = command("verify", "Recompute every case of a reference from its weights; torch's references too.", reference=True)

    described = "Check a port's answers against a reference; with --explain, name its mistake."
    compare = command("compare", described, "Weights are needed for --explain alone.", reference=True)
    compare.add_argument("candidate", metavar="CANDIDATE", help="the port's JSON; `-` is standard input")
    compare.add_flag("--explain", "where they disagree, look for the mistake that gives these numbers")
    for subparser in (verify, compare):
        subparser.add_argument("--layer", type=integer(0, MAX_LAYER), metavar="L", help="this layer alone")
        cases = "the cases of this seed alone, of this row of a file, or this case of exact vectors"
        subparser.add_argument("--seed", "--row", "--case", dest="seed", type=integer(0, 2**64 - 1), metavar="S", help=cases)
        subparser.add_flag("--failed-only", "leave out cases that agree")
        subparser.add_argument("-v", "--verbose", action="store_true", help="list everything: cases that agree, and all that is wrong of a case")
        subparser.add_argument("--format", type=choice("table", "json", "junit"), default="table", metavar="{table,json,junit}", help="how it is printed (table)")

    described = "One feature of one case, step by step, from the weights: where a port's number leaves the right one."
    inspect = command("inspect", described, "A port that prints the same lines is bisected by the first that differs.", reference=True)
    inspect.add_argument("--layer", type=integer(0, MAX_LAYER), required=True, metavar="L", help="the layer of the case")
    inspect.add_argument("--seed", "--row", dest="seed", type=integer(0, 2**64 - 1), required=True, metavar="S", help="its seed, or its row in a file")
    inspect.add_argument("--feature", type=integer(0, MAX_FEATURES), required=True, metavar="J", help="the feature, from 0")
    inspect.add_argument("--candidate", metavar="FILE", help="a port's JSON: where its number stands; `-` is standard input")
    inspect.add_flag("--residual", "show the generator's first steps too")
    inspect.add_argument("--format", type=choice("table", "json"), default="table", metavar="{table,json}", help="how it is printed (table)")

    described = "One HTML page with the pictures: a reference, and what a candidate makes of it."
    more = (
        "No script, nothing from outside. It needs no weights but for --explain. Exit code 0 says that the page was written: "
        "whether the candidate agrees is said on standard error and on the page, and is `compare`'s exit code."
    )
    report = command("report", described, more, reference=True)
    report.add_argument("candidate", metavar="CANDIDATE", nargs="?", help="a port's JSON; `-` is standard input")
    report.add_argument("-o", "--output", default="report.html", metavar="FILE", help="`-` is standard output (report.html)")
    report.set_defaults(layer=None, seed=None)  # a page is of all cases
    report.add_flag("--explain", "as for compare: where they disagree, look for the mistake")

    mirror = command("mirror", "Build a mirror that any file server, or a folder, can serve behind an air gap; or check one.")
    mirror.add_argument("destination", metavar="DEST", help="the folder; `python -m oracle --mirror DEST` reads it")
    mirror.add_argument("--layers", type=layers, default=Job.layers, help=layers_help)
    mirror.add_flag("--decode", "what --decode reads too: cross-layer decoders have their own files")
    mirror.add_flag("--check", "hash every file again, and compare with the manifest")

    demo = command("demo", "The whole way on small synthetic weights that it makes: no network needed.")
    demo.set_defaults(omit_residuals=False, workers=1, dask=None, dry_run=False)  # else it is generate, on a job of its own
    demo.add_argument("--folder", metavar="DIR", help="where to make it (default: a new temporary folder)")
    names = [format.name for format in FORMATS]
    demo.add_argument("--schema", type=choice(*names), default=names[0], metavar="NAME", help=f"of which kind: {', '.join(names)} ({names[0]})")
    demo.add_flag("--decode", "add what the decoder makes of each case")

    schema = command("schema", "Print the JSON Schema (draft 2020-12) of what oracle writes, or of what a port does.")
    kinds = "reference, candidate (a port's answers to one), vectors, or answers (a port's to these)"
    schema.add_argument("name", metavar="NAME", type=choice("reference", "candidate", "vectors", "answers"), help=kinds)

    vectors = command("vectors", "Exact test vectors of a format: small weights, and answers that a right port gives bit for bit.")
    vectors.add_argument("--format", metavar="NAME", default="all", help="a format, or one of its folders, such as SaeLens-gated (all)")
    vectors.add_argument("--folder", metavar="DIR", default="vectors", help="where to write: DIR/<format>/vectors.json and the weights (vectors)")
    form = vectors.add_mutually_exclusive_group()
    for language in ("Rust", "C", "JavaScript"):
        option, described = language.lower(), f"print a test in {language} that reads them, to fill in"
        form.add_argument(f"--{option}", action="store_const", dest="consumer", const=CONSUMERS[option], help=described)

    residual = command("residual", "Print one residual, a value a line, or the generator in Rust.")
    residual.add_argument("--seed", type=integer(0, 2**64 - 1), default=0, metavar="S", help="the generator's seed, as a case's `seed` (0)")
    residual.add_argument("--stream", type=integer(0, 2**64 - 1), default=0, metavar="L", help="its stream: a reference's is the layer (0)")
    residual.add_argument("--length", type=integer(0, MAX_LENGTH), default=2304, metavar="N", help="how many values: the reference's d_model (2304)")
    form = residual.add_mutually_exclusive_group()
    form.add_argument("--hex", action="store_true", help="print float32 bits, 8 hex digits each")
    form.add_argument("--rust", action="store_true", help="print residual.rs")

    for name in ("generate", "verify", "compare", "inspect", "report", "mirror"):
        _add_origin(subparsers.choices[name])
    return whole


def _add_origin(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from."""
    add = parser.add_argument_group("where the weights come from").add_argument
    described = "the repo with the weights, or with the config.yaml that names them (mntss/gemma-scope-transcoders)"
    add("--repo", "--curation-repo", type=repo, metavar="ORG/NAME", help=described)
    add("--path", action="append", default=[], help="a weight file of the repo, or a folder of them; may be given several times")
    add("--schema", metavar="NAME", help="what is found out otherwise: how the weights are named and laid out")
    ignore = "go on without a key of a config.yaml that is not known; may be given several times"
    add("--ignore-key", metavar="NAME", action="append", default=[], help=ignore)
    add("--k", type=integer(1, MAX_FEATURES), metavar="K", help="what a top-k gate keeps, where nothing beside the weights says it")
    add("--input-scale", type=scale, metavar="X", help="what residuals are multiplied by, where nothing beside the weights says it")
    described = "how residuals are normalised, where SAELens's directory says it and the repo does not"
    add("--normalize", type=choice(*NORMALIZE), metavar="{" + ",".join(NORMALIZE) + "}", help=described)
    add("--revision", metavar="REV", help="branch, tag or commit of the repo (main)")
    add("--weights-revision", metavar="REV", help="the same for weights whose hf:// address names none")
    mirror = "ask this instead of huggingface.co: a server like it, a proxy, a file server, a folder (ORACLE_MIRROR)"
    add("--mirror", metavar="URL", default=os.environ.get("ORACLE_MIRROR", "").strip() or None, help=mirror)
    add("--cache-dir", metavar="DIR", help="the Hub cache, shared with huggingface_hub (HF_HUB_CACHE)")
    add("--offline", action="store_true", default=None, help="no requests, as HF_HUB_OFFLINE=1 has it: the cache, or a folder")
    count = integer(1, MAX_CONNECTIONS)
    add("--connections", type=count, default=Origin.connections, metavar="N", help="for each file of 64 MiB or more (4)")
    patience = "of one request with all its waits, those that a busy server asks for among them (120)"
    add("--patience", type=integer(1, MAX_PATIENCE), default=Origin.patience, metavar="SECONDS", help=patience)
