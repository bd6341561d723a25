# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m oracle`."""

import contextlib
import os
import sys
import threading
from typing import NoReturn

from oracle.errors import DONE
from oracle.terminal.commands import main


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
