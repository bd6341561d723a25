# SPDX-License-Identifier: MIT OR Apache-2.0
"""The peers' own loaders and ours, on the same files and residuals: the same features, and values within 1e-5 of the largest."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.peers.catalogue import cases
from tests.peers.run import Difference, Peers, answers, difference

LIMIT = 1e-5
LEAST_CASES = 200

pytestmark = pytest.mark.slow


def test_peers_agree(peers: Peers, capsys: pytest.CaptureFixture[str]) -> None:
    everything = cases()
    assert len(everything) >= LEAST_CASES
    first = frozenset({case.format: case.id for case in reversed(everything)}.values())
    rows: dict[tuple[str, str], list[Difference]] = defaultdict(list)
    worst = []
    for answer in answers(peers, everything, as_processes=first):
        apart = difference(answer)
        rows[answer.case.format, answer.peer].append(apart)
        worst += [*apart.odd, *([f"{answer.case.id}, {answer.peer}: {apart}"] if max(apart.encodings, apart.reconstructions or 0) > LIMIT else [])]
    with capsys.disabled():
        print("\n" + table(rows))
    assert not worst, "\n".join(worst)


def table(rows: dict[tuple[str, str], list[Difference]]) -> str:
    """A row for each format and peer, and one for all of them."""
    line = "{:<20} {:<20} {:>6} {:>10} {:>12} {:>16}"
    lines = [line.format("format", "peer", "cases", "residuals", "encodings", "reconstructions")]
    everything = [apart for of_row in rows.values() for apart in of_row]
    for (format_name, peer), of_row in [*sorted(rows.items()), (("all", ""), everything)]:
        reconstructions = [apart.reconstructions for apart in of_row if apart.reconstructions is not None]
        said = f"{max(reconstructions):.1e}" if reconstructions else "not compared"
        n = sum(apart.n_encodings for apart in of_row)
        lines.append(line.format(format_name, peer, len(of_row), n, f"{max(apart.encodings for apart in of_row):.1e}", said))
    return "\n".join(lines)
