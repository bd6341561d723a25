# SPDX-License-Identifier: MIT OR Apache-2.0
"""Issue 15's table: each row has tests that name it, `test_<row>_...`, against a server, cluster, cache or file built for real on loopback."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support.places import ROOT

FILES = ("tests/sources/test_wild_hub.py", "tests/sources/test_wild_system.py", "tests/references/test_dask.py")
ROWS = {
    "1": ("caches whose locks do not work", "flock that fails in six ways, or excludes nobody; three processes at once"),
    "2": ("a length that HEAD does not tell, a Hub that has moved", "redirecting servers, stores with signed addresses, servers without HEAD"),
    "3": ("Ranges and ETags as servers send them", "servers with weak, other and no ETags, `/*`, 200 for a Range, over 1 and 4 connections"),
    "4": ("rate limits and what passes by itself", "servers that answer 408 to 524 and tell how long to wait in each way"),
    "5": ("environment variables", "processes beside the real client's in 24 environments"),
    "6": ("proxies", "HTTP, HTTPS and SOCKS proxies that refuse, fail, or are not there"),
    "7": ("LFS pointers, stale tokens, empty blobs, no /dev/shm", "a Hub with each; a process that may import nothing of multiprocessing"),
    "8": ("hashes that are neither git's nor sha256", "servers that name the bytes by their sha1, over http and TLS"),
    "9": ("Dask", "clusters of real processes: no oracle, another version, no workers, a dashboard, tls"),
    "10": ("files of our names in the working folder", "processes started there"),
    "10b": ("layers that fail", "processes under -W error::ResourceWarning"),
    "11": ("what killed processes leave", "caches and mirrors with leftovers of each kind and age"),
    "12": ("limits that are looked at in time", "files and answers of 1.5 GB, manifests with sizes that no file has"),
}


def functions_of(path: Path) -> list[tuple[str, bool]]:
    """The names of a file's tests, and whether each is slow."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [(function.name, any("slow" in ast.unparse(decorator) for decorator in function.decorator_list)) for function in functions]


def test_every_row_has_its_tests() -> None:
    """The table, as `pytest -rP` prints it."""
    names = [test for file in FILES for test in functions_of(ROOT / file)]
    print(f"\n{'row':4}{'default':>8}{'slow':>6}  what: built for it")
    for row, (what, built) in ROWS.items():
        own = [is_slow for name, is_slow in names if name.split("_")[1] == row]
        print(f"{row:4}{own.count(False):8}{own.count(True):6}  {what}: {built}")
        assert own, row
    assert not {name.split("_")[1] for name, _ in names} - ROWS.keys()
