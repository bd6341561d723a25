# SPDX-License-Identifier: MIT OR Apache-2.0
"""The version, in a place of its own: nobody below imports the package for it."""

VERSION = "0.1.0"
