# SPDX-License-Identifier: MIT OR Apache-2.0
"""The walls of the house, as README.md's "How it is built" has them: which file may name which."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# A wing imports the wings that stand below it here, and the words at the door.
WINGS = ("terminal", "page", "diagnosis", "checking", "vectors", "references", "sources", "weights", "arithmetic")
NETWORK = {"vendored_hf", "asyncio", "http", "requests", "select", "socket", "ssl", "subprocess", "urllib", "urllib3", "yaml"}
FILES = {"fcntl", "glob", "io", "mmap", "open", "os", "pathlib", "shutil", "tempfile"}
FORBIDDEN = {"weights": NETWORK, "arithmetic": NETWORK | FILES, "vendored_hf": {"oracle"}}
MOST_LINES, MOST_LINES_OF_HUB = 400, 800
MOST_FILES, MOST_DOOR_MODULES = 8, 6
# The rest of a syntax tree is most of it, and a walk costs more than all else here: each tree is walked once.
LOOKED_AT = (ast.Import, ast.ImportFrom, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Name, ast.Attribute)
DOOR = ("__init__", "__main__", "library")  # what may import any wing; all else at the door are words for every wing


def problems(root: Path) -> list[str]:
    """What is not as it should be in root/oracle and root/vendored_hf.py, a line each; nothing where all is well."""
    files = {path.relative_to(root).as_posix(): path for path in sorted((root / "oracle").rglob("*")) if _is_ours(path)}
    files["vendored_hf.py"] = root / "vendored_hf.py"
    modules = {_module(name): ast.parse(path.read_bytes()) for name, path in files.items() if name.endswith(".py")}
    nodes = {module: [node for node in ast.walk(tree) if isinstance(node, LOOKED_AT)] for module, tree in modules.items()}
    private = {module: _private_names(looked_at) for module, looked_at in nodes.items()}
    return [
        *_sizes(files),
        *(line for module, looked_at in nodes.items() for line in _imports(module, looked_at, set(modules))),
        *(line for module, looked_at in nodes.items() for line in _reached(module, looked_at, private)),
        *(
            f"{module}/__init__.py holds more than a docstring"
            for module, tree in modules.items()
            if _wing(module) and module.count(".") == 1 and not _is_docstring(tree)
        ),
    ]


def _is_ours(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _wing(module: str) -> str:
    """The folder of oracle/ that a module is in or is; "" at the door and beside the package."""
    parts = module.split(".")
    return parts[1] if parts[0] == "oracle" and len(parts) > 1 and parts[1] in WINGS else ""


def _is_docstring(tree: ast.Module) -> bool:
    return len(tree.body) == 1 and ast.get_docstring(tree) is not None


def _sizes(files: dict[str, Path]) -> Iterator[str]:
    for name, path in files.items():
        most, count = MOST_LINES_OF_HUB if name == "vendored_hf.py" else MOST_LINES, len(path.read_bytes().splitlines())
        if count > most:
            yield f"{name} has {count} lines, and {most} is the most"
    folders: dict[str, list[str]] = {}
    for name in files:
        folder, _, base = name.rpartition("/")
        if base not in ("__init__.py", "__main__.py", "py.typed"):
            folders.setdefault(folder, []).append(base)
    for folder, bases in folders.items():
        if folder and folder != "oracle" and folder.removeprefix("oracle/") not in WINGS:
            yield f"{folder} is no wing"
        most = MOST_DOOR_MODULES if folder == "oracle" else MOST_FILES
        if len(bases) > most:
            yield f"{folder} has {len(bases)} files, and {most} is the most"


def _named(module: str, nodes: list[ast.AST], modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that is imported, wherever in the file that is."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:  # `import oracle.errors` gives the name `oracle`
                yield node.lineno, "oracle" if alias.name.startswith("oracle.") and not alias.asname else alias.name
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node, modules)
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield node.lineno, name if name in modules else source
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print"):
            yield node.lineno, node.func.id


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _absolute(module: str, node: ast.ImportFrom, modules: set[str]) -> str:
    """What `from ... import` names, dots and all."""
    if not node.level:
        return node.module or ""
    is_package = any(other.startswith(f"{module}.") for other in modules)
    parts = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _imports(module: str, nodes: list[ast.AST], modules: set[str]) -> Iterator[str]:
    if module == "oracle" or module.removeprefix("oracle.") in DOOR:
        return
    wing = _wing(module)
    for line, name in _named(module, nodes, modules):
        where, other, top = f"{module}:{line}", _wing(name), name.split(".")[0]
        if name == "print":
            if wing != "terminal" and module != "vendored_hf":
                yield f"{where} prints"
        elif top in FORBIDDEN.get(wing or module, ()):
            yield f"{where} uses {name}"
        elif module == "vendored_hf" and top not in {"requests", "open", *sys.stdlib_module_names}:
            yield f"{where} imports {name}"
        elif name in ("oracle", "oracle.library", "oracle.__main__"):
            yield f"{where} imports {name}"
        elif other and not wing:
            yield f"{where} is a word for every wing, and imports {name}"
        elif other and WINGS.index(other) < WINGS.index(wing):
            yield f"{where} imports {name}, which stands above it"


_OF_NAMED_TUPLES = ("_asdict", "_fields", "_make", "_replace")  # public: with an underscore, so that a field may have the name


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ("_", *_OF_NAMED_TUPLES)


def _private_names(nodes: list[ast.AST]) -> set[str]:
    """The names with an underscore in front that a file defines: its own, and its classes' and their objects'."""
    names = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
    return set(filter(_private, names))


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _reached(module: str, nodes: list[ast.AST], private: dict[str, set[str]]) -> Iterator[str]:
    elsewhere = set().union(*(names for other, names in private.items() if other != module)) - private[module]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and _absolute(module, node, set(private)).split(".")[0] in ("oracle", "vendored_hf"):
            for alias in filter(lambda alias: _private(alias.name), node.names):
                yield f"{module}:{node.lineno} imports {alias.name}"
        elif isinstance(node, ast.Attribute) and node.attr in elsewhere and not _is_self(node.value):
            yield f"{module}:{node.lineno} reaches for {node.attr}"
