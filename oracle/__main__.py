# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m oracle`."""

import sys

from oracle.terminal.commands import main

if __name__ == "__main__":
    sys.exit(main())
