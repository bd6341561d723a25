# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m oracle`."""

import contextlib
import os
import sys
import threading
from importlib.util import find_spec
from typing import NoReturn

from oracle import version

# With -m Python looks for modules in the working folder first: somebody's copy of our file there may be of another make.
_beside = find_spec("vendored_hf")
_house = os.path.dirname(os.path.dirname(os.path.abspath(version.__file__)))
if _beside and _beside.origin and not os.path.samefile(os.path.dirname(_beside.origin), _house):
    print(f"error: {_beside.origin} stands before oracle's own vendored_hf.py: run it from another folder, or as `oracle`", file=sys.stderr)
    sys.exit(2)

from oracle.errors import DONE  # noqa: E402
from oracle.terminal.commands import main  # noqa: E402


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    code = main()
    # Python would wait for workers that still fetch: nobody wants their files any more.
    if code != DONE and not all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
