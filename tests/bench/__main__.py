# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m tests.bench`."""

import sys
from pathlib import Path

from tests.bench import scope
from tests.bench.full_shape import add, floor, main, make, make_llama, serve, unsettled

if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2])
    elif sys.argv[1:2] == ["make-llama"]:
        make_llama(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["make-scope"]:
        scope.make(add, Path(sys.argv[2]))
    elif sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["unsettled"]:
        sys.exit(unsettled(sys.argv[2:]))
    elif sys.argv[1:2] == ["floor"]:
        floor(sys.argv[2:])
    else:
        main()
