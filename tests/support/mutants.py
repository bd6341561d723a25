# SPDX-License-Identifier: MIT OR Apache-2.0
"""Small changes made to a module one at a time, and whether the tests nearest to it notice them.

    python -m tests.support.mutants oracle/arithmetic/encoder.py --count 30 [--seed 0] [-- pytest's arguments]

Each survivor is printed as `file:line  old -> new`. The checkout is copied first: nothing is changed in place.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT

ENCODER = [f"tests/arithmetic/test_{name}.py" for name in ("encoder", "decoder", "properties", "gates", "inputs", "dead_features")]
RULES = ["tests/checking/test_rules.py", "tests/checking/test_compare.py", "-k", "not rust and not mistakes and not cannot and not explain"]
DECODER = ["tests/arithmetic/test_decoder.py", "tests/references/test_decode.py", "-k", "not same_bytes"]
VERIFY = ["tests/checking/test_verify.py", "tests/references/test_robust.py", "tests/test_trust.py", "-k", "checking or robust or test_8_what or test_8_with"]
READERS = ["tests/weights", "-k", "not bombs and not anywhere"]
FORMATS = [*READERS[:1], "tests/references/test_plan.py", "-k", "not bombs and not anywhere and not server and not mirror"]
RESIDUAL = ["tests/arithmetic/test_residual.py", "-k", "not rust and not millisecond"]
INPUTS = ["tests/references/test_generate.py", "tests/references/test_formats.py", "tests/test_trust.py", "-k", "options or test_14 or random_shapes"]
GENERATOR = [*RESIDUAL[:1], "tests/references/test_generate.py", "-k", "known or rounding or contract or options"]
FETCHING = ["vendored_hf", "trust_hub", "wild_hub", "faults", "network"]
# What hangs is noticed in seconds, and what starts processes or waits for seconds is left to the whole of the tests.
HUB = [
    *(f"tests/sources/test_{name}.py" for name in FETCHING), "-o", "faulthandler_timeout=20", "-o", "faulthandler_exit_on_timeout=true", "-k",
    "not kill_9 and not real_client and not clients and not processes and not a_stream and not no_locks and not resumed_is_not and not each_side "
    "and not certificate and not through_a_proxy and not nowhere_but and not endpoint_is_not_shown and not dead_process",
]  # fmt: skip
NEAREST = {
    "oracle/arithmetic/encoder.py": ENCODER,
    "oracle/arithmetic/products.py": ENCODER,
    "oracle/arithmetic/chain.py": ENCODER,
    "oracle/arithmetic/numbers.py": ENCODER,
    "oracle/arithmetic/decoder.py": DECODER,
    "oracle/arithmetic/residual.py": RESIDUAL,
    "oracle/arithmetic/inputs.py": INPUTS,
    "oracle/arithmetic/generator.py": GENERATOR,
    "oracle/checking/compare.py": RULES,
    "oracle/checking/lists.py": RULES,
    "oracle/checking/reconstructions.py": RULES,
    "oracle/checking/verdict.py": RULES,
    "oracle/checking/verify.py": VERIFY,
    "oracle/weights/formats.py": FORMATS,
    "oracle/weights/layer.py": FORMATS,
    "oracle/weights/npz.py": READERS,
    "oracle/weights/pickled.py": READERS,
    "oracle/weights/safetensors.py": READERS,
    "oracle/weights/sidefiles.py": FORMATS,
    "oracle/weights/tensors.py": READERS,
    "oracle/weights/torchzip.py": READERS,
    "vendored_hf.py": HUB,
}

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "maximum": "minimum", "minimum": "maximum"}
# Texts of messages and types are not what a change in would be a wrong number.
PASSED_OVER = ("annotation", "returns", "decorator_list", "type_comment")


@dataclass(frozen=True)
class Mutant:
    """A module with one change: its source, and what the change is."""

    line: int
    old: str
    new: str
    source: str


def mutants(source: str, count: int, seed: int = 0) -> list[Mutant]:
    """Some of all small changes of a module, in the order of its lines, the same for the same seed."""
    tree = ast.parse(source)
    everything = list(_changes_below(tree))
    chosen = sorted(random.Random(seed).sample(range(len(everything)), min(count, len(everything))))
    return [_mutant(tree, *everything[number]) for number in chosen]


def _changes_below(owner: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every change: the node that owns what is replaced, its field, the place in a list, and what comes there."""
    for field, value in ast.iter_fields(owner):
        if field in PASSED_OVER or isinstance(owner, ast.JoinedStr) or isinstance(owner, ast.Raise):
            continue
        nodes = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for place, node in nodes:
            if isinstance(node, ast.AST) and not _is_of_types(node):
                for new in _changes(node):
                    yield owner, field, place, new
                yield from _changes_below(node)


def _is_of_types(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom)) or isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield _with(node, "ops", [*node.ops[:place], other(), *node.ops[place + 1 :]])
    elif isinstance(node, ast.BoolOp):
        yield _with(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SIGNS:
        yield _with(node, "op", SIGNS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _other_constants(node.value))
    elif isinstance(node, ast.Slice):
        yield _with(node, "lower", ast.BinOp(node.lower or ast.Constant(0), ast.Add(), ast.Constant(1)))
        yield _with(node, "upper", ast.BinOp(node.upper, ast.Sub(), ast.Constant(1)) if node.upper else ast.Constant(-1))
    elif isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in CALLS:
            yield _with(node, "func", _with(node.func, "id" if isinstance(node.func, ast.Name) else "attr", CALLS[name]))
    if _can_go(node):
        yield ast.Pass()


def _other_constants(value: object) -> list[bool] | list[int] | list[float]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [value * 2, value * 1.25, value / 2] if isinstance(value, float) and value else []


def _can_go(node: ast.AST) -> bool:
    """Whether it is a statement without which the rest has all its names."""
    if isinstance(node, ast.Assign):
        return any(ast.unparse(target) in ast.unparse(node.value) or not isinstance(target, ast.Name) for target in node.targets)
    return isinstance(node, (ast.AugAssign, ast.Raise, ast.Continue, ast.If)) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _with(node: ast.AST, field: str, value: object) -> ast.AST:
    changed = copy.copy(node)
    setattr(changed, field, value)
    return changed


def _mutant(tree: ast.Module, owner: ast.AST, field: str, place: int | None, new: ast.AST) -> Mutant:
    before = getattr(owner, field)
    old = before if place is None else before[place]
    setattr(owner, field, new if place is None else [*before[:place], new, *before[place + 1 :]])
    source = ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))
    setattr(owner, field, before)
    ends = [getattr(node, "lineno", 0) for node in (old, owner)]
    shown, other = (" ".join(ast.unparse(node).split())[:100] for node in (old, new))
    return Mutant(ends[0] or ends[1], shown, other, source)


# --- running tests --------------------------------------------------------------------------------------------------


def copied(root: Path, folder: Path) -> Path:
    """A copy of the checkout's files, as git knows them or would."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def passes(arguments: list[str], seconds: float) -> bool:
    """Whether the tests pass in the current folder within that time, in a process that has imported what is slow to import."""
    child = os.fork()
    if not child:
        os.setsid()
        with open("pytest.log", "wb") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        import pytest

        code = 1
        try:
            code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments])
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            _end(child)
            return status == 0
        time.sleep(0.02)
    _end(child)
    os.waitpid(child, 0)
    return False


def _end(group: int) -> None:
    """End what is left of the tests' processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _import_what_is_slow() -> None:
    """What every child would import for itself."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("hypothesis.extra.numpy", "ml_dtypes", "numpy", "pytest", "requests", "safetensors.numpy", "xdist.plugin", "yaml"):
        importlib.import_module(name)


def survivors(root: Path, module: str, count: int, seed: int, arguments: list[str]) -> tuple[list[Mutant], int]:
    """The mutants of a module that the tests let pass, and how many there were. Raises SystemExit where the tests fail without any."""
    lived = []
    _import_what_is_slow()
    before, path = os.getcwd(), sys.path[:]
    with tempfile.TemporaryDirectory() as folder:
        place = copied(root, Path(folder) / "checkout")
        os.chdir(place)
        # Only the copy's code is run; nothing of it has been imported yet when a child begins.
        sys.path[:] = [str(place), *(entry for entry in path if entry not in ("", str(root)))]
        own = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in ("tests", "oracle", "vendored_hf")}
        try:
            source = (place / module).read_text()
            began = time.monotonic()
            if not passes(arguments, 600):
                raise SystemExit(f"without any change the tests fail:\n{(place / 'pytest.log').read_text()}")
            limit = 20 + 4 * (time.monotonic() - began)
            os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
            made = mutants(source, count, seed)
            for mutant in made:
                (place / module).write_text(mutant.source)
                # Two changes in a second may be of one length: no bytecode of the last one is believed.
                for cached in (place / module).parent.glob(f"__pycache__/{Path(module).stem}.*"):
                    cached.unlink()
                if passes(arguments, limit):
                    lived.append(mutant)
                    print(f"{module}:{mutant.line}  {mutant.old} -> {mutant.new}", flush=True)
        finally:
            sys.modules.update(own)
            sys.path[:] = path
            sys.dont_write_bytecode = False
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            os.chdir(before)
    return lived, len(made)


def main() -> None:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    tests = sys.argv[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", nargs="+")
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(sys.argv[1:end])
    for module in options.module:
        lived, count = survivors(ROOT, module, options.count, options.seed, tests or NEAREST[module])
        print(f"{module}: {count - len(lived)} of {count} mutants were noticed", flush=True)


if __name__ == "__main__":
    main()
