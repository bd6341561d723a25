# PYTHON_ARGCOMPLETE_OK
# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m oracle`, and the console script `oracle`."""

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # errors.py's, which takes its time to import


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    handler = signal.getsignal(signal.SIGINT)  # of what was started with Ctrl-C switched off it stays so
    try:
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end)  # an import that is interrupted ends in a traceback, or in another error
        import contextlib
        import threading

        _check_neighbour()
        from oracle.terminal.commands import main

        signal.signal(signal.SIGINT, handler)
        code = main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own end has a traceback for it too
    except KeyboardInterrupt:  # a second one, while the first is told
        code = INTERRUPTED
    # Python would wait for workers that still fetch: nobody wants their files any more.
    if code and not all(thread.daemon or thread is threading.main_thread() for thread in threading.enumerate()):
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _check_neighbour() -> None:
    """End where a file of a name that is imported here, which may be of another make, stands in the working folder: -m looks there first."""
    from importlib.util import find_spec

    from oracle import version

    house = os.path.dirname(os.path.dirname(os.path.abspath(version.__file__)))
    beside = find_spec("vendored_hf")
    if beside and beside.origin and not os.path.samefile(os.path.dirname(beside.origin), house):
        print(f"error: {beside.origin} stands before oracle's own vendored_hf.py: run it from another folder, or as `oracle`", file=sys.stderr)
        sys.exit(2)
    for package in ("numpy", "yaml", "requests"):
        place = os.path.join(sys.path[0], f"{package}.py")
        if os.path.isfile(place):
            print(f"error: {place} stands before the package {package}: run it from another folder, or as `oracle`", file=sys.stderr)
            sys.exit(2)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
