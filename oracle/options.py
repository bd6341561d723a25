# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the command line's options may say: the types of their values, and those that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

MIN_TOLERANCE = 1e-6  # margins are recorded to 6 decimals
MAX_LAYER = 1_000_000


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Where the weights come from, and how much is said about it."""
    group = parser.add_argument_group("where the weights come from")
    group.add_argument(
        "--curation-repo", metavar="ORG/NAME", help="the repo with the config.yaml (mntss/gemma-scope-transcoders)"
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of the curation repo (main)")
    group.add_argument("--weights-revision", metavar="REV", help="the same for weights whose hf:// address names none")
    group.add_argument(
        "--mirror",
        metavar="URL",
        help="ask this instead of huggingface.co: a server like it, a proxy, a file server, a folder (ORACLE_MIRROR)",
    )
    group.add_argument("--cache-dir", metavar="DIR", help="the Hub cache, shared with huggingface_hub (HF_HUB_CACHE)")
    group.add_argument("--offline", action="store_true", help="use the cache alone, as HF_HUB_OFFLINE=1 does")
    group.add_argument(
        "--connections", type=integer(1, 64), default=4, metavar="N", help="for each file of 64 MiB or more (4)"
    )
    group.add_argument("--quiet", action="store_true", help="print errors alone")


def layers(text: str) -> tuple[int, ...] | None:
    """`0,12,25` or `0-25` as numbers, ascending; None for `all`."""
    if text.strip() == "all":
        return None
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f'{text!r} is not of the form "0,12,25", "0-25" or "all"')
        low, high = int(first), int(last or first)
        if low > high or high > MAX_LAYER:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no range of layers")
        chosen.update(range(low, high + 1))
    return tuple(sorted(chosen))


def integer(low: int, high: int) -> Any:
    """A parser of whole numbers, decimal or 0x..., from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not in {low} to {high}")
        return value

    return parse


def tolerance(text: str) -> float:
    """A tolerance that margins of 6 decimals can be held against."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not MIN_TOLERANCE <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not at least {MIN_TOLERANCE:g}: margins are recorded to 6 decimals")
    return value
