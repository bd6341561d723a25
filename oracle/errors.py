# SPDX-License-Identifier: MIT OR Apache-2.0
"""Error classes, their exit codes, and the words that messages of every wing share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import vendored_hf

DONE, DISAGREE, USAGE, SOURCE, DATA, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130


class OracleError(Exception):
    """What somebody who uses oracle can do something about: the base of all that its library raises for that."""


class BadData(OracleError):
    """A file is damaged, or is not what it should be."""


class WeightsError(BadData, ValueError):
    """A weight file is damaged, or is not what its format says; or what stands beside it is."""


class BadUse(OracleError):
    """What was asked for cannot be, on this machine or at all."""


class SourceFailed(OracleError, OSError):
    """Where weights come from cannot be reached, or refuses. `__cause__` is what vendored_hf, or the system, raised."""


class SourceDamaged(BadData, OSError):
    """What arrived is not what its server said that it would send. `__cause__` is what vendored_hf raised."""


class NameRefused(BadUse, ValueError):
    """The name of a repo, a revision or a path that the Hub cannot have. `__cause__` is what vendored_hf raised."""


class LayersFailed(OracleError):
    """Layers that an executor's workers were to encode: what each of them failed of. `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def exit_code(error: BaseException) -> int:
    """The exit code of an error: of one that a user can do something about, or of a mistake in oracle."""
    if isinstance(error, LayersFailed):
        return error.code
    if isinstance(error, (BadData, vendored_hf.ConsistencyError)):
        return DATA
    if isinstance(error, (BadUse, vendored_hf.HFValidationError)):
        return USAGE
    if isinstance(error, (OSError, vendored_hf.EntryNotFoundError)):
        return SOURCE
    return INTERNAL


@contextlib.contextmanager
def as_oracle_errors() -> Iterator[None]:
    """Raise what vendored_hf, which knows nothing of oracle, or the system raised as the OracleError of its exit code.

    The built-in kind that it is of stays: OSError, or ValueError.
    """
    try:
        yield
    except OracleError:
        raise
    except Exception as error:
        kind = {DATA: SourceDamaged, USAGE: NameRefused, SOURCE: SourceFailed}.get(exit_code(error))
        if kind is None:
            raise
        raise kind(one_line(error)) from error


def one_line(error: BaseException, *, has_mirror: bool = False, is_offline: bool = False, demo: str = "") -> str:
    """An error as a person reads it; ways on are those that were not tried: a mirror, or a cache without the network; of a reference
    of the demo's the options `demo`, which name its weights."""
    text = " ".join(str(error).split())
    if exit_code(error) == INTERNAL:
        text = f"a mistake in oracle, please report it with what --debug shows: {type(error).__name__}: {text}"
    if demo and exit_code(error) == SOURCE:
        text += f"; the demo's weights are read with {demo}"
    elif isinstance(error, vendored_hf.LocalEntryNotFoundError):
        ways = ["leave --offline out where there is a network"] if is_offline else ["a filled cache with --offline (HF_HUB_OFFLINE=1)"]
        ways += ["another mirror with --mirror URL" if has_mirror else "a mirror with --mirror URL", "or `python -m oracle demo`"]
        text += f"; ways on: {', '.join(ways)}"
    if isinstance(error, vendored_hf.NoHomeError):
        text += " with --cache-dir DIR, or put nothing on disk with --stream"
    return text


def counted(n: int, noun: str) -> str:
    """A number and what it counts: "1 case", "3 cases"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of an error's line: which of `words` may be meant; "" where none is like `word`."""
    import difflib  # not at the top: it takes 3 ms, and few runs need it

    names = {name.lower(): name for name in words}
    close = difflib.get_close_matches(word.lower(), names, 1, 0.6)
    return f"; did you mean {names[close[0]]}?" if close else ""
