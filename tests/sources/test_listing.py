# SPDX-License-Identifier: MIT OR Apache-2.0
"""Listings and manifests: of the revision that is asked for, of the right types, or an error that says which."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vendored_hf as hf
from oracle.job import Origin
from oracle.sources import listing as listings
from oracle.sources.curation import HubFile
from oracle.sources.listing import Listing, ListingError
from oracle.sources.mirror import Mirror, MirrorError, parse_manifest
from oracle.sources.source import FileEvents, Source
from tests.support.hub import Fault, Hub

REPO = "org/weights"
OLD, NEW = "0" * 40, "1" * 40


def from_hub(hub: Hub, repo: str, revision: str | None, *faults: Fault) -> Listing:
    """As a source asks for it, of a server without a manifest; the faults come behind the question for that."""
    for fault in faults[:1]:
        fault.after = 1
    hub.faults[:] = faults
    return Source(Origin(repo, mirror=hub.url, stream=True), FileEvents()).listing(repo, revision)


# --- of which revision ------------------------------------------------------------------------------------------------


def test_the_hub_s_listing_is_of_the_revision_that_is_asked_for(hub: Hub) -> None:
    old = hub.add(REPO, "a", b"a", branch="v1")
    hub.add(REPO, "b", b"b")
    new = hub.add(REPO, "c", b"c")
    for revision, commit, paths in ((None, new, ("b", "c")), ("main", new, ("b", "c")), ("v1", old, ("a",)), (old, old, ("a",))):
        assert from_hub(hub, REPO, revision) == Listing(REPO, revision or "main", commit, paths)
        for mirror in (hub.url, hub.url + "/"):
            assert Source(Origin(REPO, mirror=mirror), FileEvents()).listing(REPO, revision).paths == paths
    # All of a source is of one commit: what is listed then, and what is fetched.
    source = Source(Origin(REPO, mirror=hub.url), FileEvents())
    assert source.listing(REPO, None).commit == new
    hub.add(REPO, "c", b"d")
    assert source.listing(REPO, None).commit == source.fetch(HubFile(REPO, None, "c")).commit_hash == new
    # And what was listed is known without the Hub, each revision's own.
    source = Source(Origin(REPO, offline=True), FileEvents())
    assert source.listing(REPO, old).paths == ("a",) and source.listing(REPO, new).paths == ("b", "c")


def manifest_of(folder: Path, **more: Any) -> Mirror:
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "files": [], "listings": [], **more}))
    return Mirror(str(folder))


def test_a_mirror_s_listing_is_of_the_repo_and_revision_that_are_asked_for(tmp_path: Path) -> None:
    kept = [
        {"repo": repo, "revision": revision, "commit": commit, "paths": [f"{repo}-{revision}"]}
        for repo, revision, commit in (("org/a", "main", OLD), ("org/a", "v2", NEW), ("org/b", "main", None), ("org/b", "v2", OLD))
    ]
    mirror = manifest_of(tmp_path, listings=kept)
    for repo, revision, path in (
        ("org/a", None, "org/a-main"), ("org/a", "main", "org/a-main"), ("org/a", "v2", "org/a-v2"), ("org/a", NEW, "org/a-v2"),
        ("org/b", None, "org/b-main"), ("org/b", "v2", "org/b-v2"), ("org/b", OLD, "org/b-v2"),
    ):  # fmt: skip
        listing = mirror.listing(repo, revision)
        assert listing is not None and listing.paths == (path,) and listing.complete, (repo, revision)
    nothing = mirror.listing("org/b", NEW)
    assert nothing is not None and nothing.paths == ()


def test_a_mirror_s_file_is_of_the_repo_and_revision_that_are_asked_for(tmp_path: Path) -> None:
    entries = [
        {"repo": repo, "revision": revision, "path": path, "commit": commit, "size": len(path), "sha256": f"{number:064x}"}
        for number, (repo, revision, path, commit) in enumerate(
            [("org/a", "main", "x", OLD), ("org/a", "v2", "x", NEW), ("org/b", "main", "x", NEW), ("org/a", "main", "y", OLD), ("org/c", "main", "x", None)]
        )
    ]
    mirror = manifest_of(tmp_path, files=entries)
    for repo, revision, path, number in (
        ("org/a", None, "x", 0), ("org/a", OLD, "x", 0), ("org/a", "v2", "x", 1), ("org/a", NEW, "x", 1), ("org/b", None, "x", 2),
        ("org/a", None, "y", 3), ("org/a", "v2", "y", None), ("org/b", OLD, "x", None), ("org/c", None, "x", 4), ("org/c", "v2", "x", None),
    ):  # fmt: skip
        known = mirror.known(HubFile(repo, revision, path))
        assert (known and known.sha256) == (None if number is None else f"{number:064x}"), (repo, revision, path)
    partly = mirror.listing("org/a", None)
    assert partly == Listing("org/a", "main", OLD, ("x", "y"), complete=False)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_cache_s_listing_is_of_the_revision_that_is_asked_for(tmp_path: Path, end: str) -> None:
    paths: tuple[str, ...]
    for name, commit, paths in (("main", OLD, ("a",)), ("v2", NEW, ("b", "c"))):
        listings.remember(tmp_path, Listing(REPO, name, commit, paths))
        (tmp_path / "refs").mkdir(exist_ok=True)
        (tmp_path / "refs" / name).write_text(commit + end)
    for revision, commit, paths in ((None, OLD, ("a",)), ("v2", NEW, ("b", "c")), (NEW, NEW, ("b", "c"))):
        listing = listings.from_cache(tmp_path, REPO, revision)
        assert listing == Listing(REPO, revision or "main", commit, paths)
    with pytest.raises(ListingError):
        listings.from_cache(tmp_path, REPO, "v3")
    for spoiled in ([], ["a", 3], [3, "a"], "ab", {"a": 1}, None):
        (tmp_path / "listings" / f"{NEW}.json").write_text(json.dumps(spoiled))
        with pytest.raises(ListingError):
            listings.from_cache(tmp_path, REPO, "v2")
    (tmp_path / "snapshots" / NEW).mkdir(parents=True)
    (tmp_path / "snapshots" / NEW / "a").write_bytes(b"a")
    assert listings.from_cache(tmp_path, REPO, "v2") == Listing(REPO, "v2", NEW, ("a",), complete=False)
    listings.remember(tmp_path, Listing(REPO, "main", "../../evil", ("a",)))
    listings.remember(tmp_path, Listing(REPO, "main", None, ("a",)))
    assert len(list(tmp_path.rglob("*.json"))) == 2


@pytest.mark.parametrize("revision", ["../..", "..", "a/../../..", "/etc", ".", "a//b"])
def test_a_revision_that_leads_out(tmp_path: Path, hub: Hub, revision: str) -> None:
    """Neither out of a mirror's folder, nor out of the cache, nor to another address of a server."""
    tree = tmp_path / "tree" / REPO / "resolve" / "main"
    tree.mkdir(parents=True)
    for place in (tree / "x", tmp_path / "tree" / "x", tmp_path / "tree" / "org" / "x"):
        place.write_bytes(b"x")
    (tmp_path / "refs").write_text(OLD)
    origins = (
        Origin(REPO, mirror=str(tmp_path / "tree")), Origin(REPO, cache_dir=str(tmp_path), offline=True), Origin(REPO, mirror=hub.url),
        Origin(REPO, mirror=hub.url, stream=True),
    )  # fmt: skip
    for origin in origins:
        source = Source(origin, FileEvents())
        for ask in (lambda: source.open(HubFile(REPO, revision, "x")), lambda: source.listing(REPO, revision)):
            with pytest.raises(hf.HFValidationError):
                ask()
    assert not [seen for seen in hub.seen if "manifest" not in seen.path]


# --- of which types -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [3, True, ["x"], {"x": 1}, 0, False, [], {}], ids=str)
@pytest.mark.parametrize("key", ["repo", "revision", "path", "commit", "size", "sha256"])
def test_one_field_of_another_type_in_a_manifest(key: str, wrong: Any) -> None:
    good = {"repo": "org/a", "revision": "main", "path": "x", "commit": OLD, "size": 1, "sha256": "0" * 64}
    bad = {**good, "path": "y", key: wrong}
    if key == "size" and type(wrong) is int:
        bad = {**bad, key: str(wrong)}
    assert len(parse_manifest(json.dumps({"format_version": 1, "files": [good, {**good, "path": "y"}]}).encode(), "m").entries) == 2
    for files in ([good, bad], [bad, good], [bad]):
        with pytest.raises(MirrorError, match="m is not a manifest"):
            parse_manifest(json.dumps({"format_version": 1, "files": files}).encode(), "m")


@pytest.mark.parametrize("wrong", [3, True, {"x": 1}, 0, False, {}], ids=str)
@pytest.mark.parametrize("key", ["repo", "revision", "commit", "paths"])
def test_one_field_of_another_type_in_a_manifest_s_listings(key: str, wrong: Any) -> None:
    good = {"repo": "org/a", "revision": "main", "commit": None, "paths": ["x", "y"]}
    assert parse_manifest(json.dumps({"format_version": 1, "files": [], "listings": [good]}).encode(), "m").listings[0].paths == ("x", "y")
    variants = [{**good, key: wrong}]
    if key == "paths":
        variants += [{**good, key: ["x", wrong]}, {**good, key: [wrong, "y"]}, {**good, key: "xy"}]
    for bad in variants:
        for listed in ([good, bad], [bad, good], [bad]):
            with pytest.raises(MirrorError, match="m is not a manifest"):
                parse_manifest(json.dumps({"format_version": 1, "files": [], "listings": listed}).encode(), "m")


@pytest.mark.parametrize("key, wrong", [
    ("sha256", ""), ("sha256", "0" * 63), ("sha256", "0" * 65), ("sha256", "G" * 64), ("sha256", "A" * 64), ("sha256", "0" * 64 + "\n"),
    ("commit", ""), ("commit", "0" * 39), ("commit", "0" * 41), ("commit", "main"), ("path", "a/./b"), ("path", "./a"), ("path", "a/../../b"),
    ("path", "/a"), ("path", ""), ("path", "a//b"), ("revision", ".."), ("revision", "a/../.."), ("repo", "../a"), ("repo", "a/b/c"), ("size", -1),
])  # fmt: skip
def test_values_that_no_manifest_of_ours_has(key: str, wrong: Any) -> None:
    entry = {"repo": "org/a", "revision": "main", "path": "x", "commit": OLD, "size": 1, "sha256": "0" * 64, key: wrong}
    with pytest.raises(MirrorError):
        parse_manifest(json.dumps({"format_version": 1, "files": [entry]}).encode(), "m")


@pytest.mark.parametrize("body", [
    {"siblings": [{"rfilename": "a"}, {"rfilename": 3}]}, {"siblings": [{"rfilename": None}, {"rfilename": "a"}]}, {"siblings": [{"rfilename": "a"}, {}]},
    {"siblings": [{"rfilename": "a"}], "sha": 0}, {"siblings": [{"rfilename": "a"}], "sha": [OLD]}, {"siblings": [{"rfilename": "a"}], "sha": False},
    {"siblings": {"rfilename": "a"}}, {"siblings": "a"}, {"siblings": None}, {"sha": OLD}, [],
], ids=str)  # fmt: skip
def test_one_field_of_another_type_in_the_hub_s_answer(hub: Hub, body: Any) -> None:
    hub.add(REPO, "a", b"a")
    with pytest.raises(ListingError, match="its answer is no such list"):
        from_hub(hub, REPO, None, Fault(host="hub", status=200, body=json.dumps(body).encode()))


def test_a_server_that_tells_no_commit(hub: Hub) -> None:
    for more in ({}, {"sha": None}):
        body = json.dumps({"siblings": [{"rfilename": "a"}], **more}).encode()
        assert from_hub(hub, REPO, None, Fault(host="hub", status=200, body=body)) == Listing(REPO, "main", None, ("a",))


# --- answers that are errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_has_not_said_that_there_is_no_list(hub: Hub, tmp_path: Path, status: int) -> None:
    """Not even the cache's list is taken for it, which may be of another commit."""
    hub.add(REPO, "a", b"a")
    assert Source(Origin(REPO, mirror=hub.url), FileEvents()).listing(REPO, None).paths == ("a",)
    source = Source(Origin(REPO, mirror=hub.url), FileEvents())
    busy = [Fault(host="hub", status=status, headers={"Retry-After": "0"}) for _ in range(20)]
    asks: tuple[Callable[[], Listing], ...] = (lambda: from_hub(hub, REPO, None, *busy), lambda: source.listing(REPO, "main"))
    for ask in asks:
        with pytest.raises(hf.HfHubHTTPError) as error:
            ask()
        assert error.value.status_code == status and not isinstance(error.value, ListingError)
    hub.faults.clear()


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 501])
def test_a_server_without_a_list_is_told_apart(hub: Hub, status: int) -> None:
    with pytest.raises(ListingError, match=f"it answers {status}"):
        from_hub(hub, REPO, None, Fault(host="hub", status=status))


def test_a_repo_or_revision_that_is_not_there(hub: Hub) -> None:
    hub.add(REPO, "a", b"a")
    for repo, revision, error in (("org/none", None, hf.RepositoryNotFoundError), (REPO, "v9", hf.RevisionNotFoundError)):
        with pytest.raises(error):
            from_hub(hub, repo, revision)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_manifest_that_cannot_be_had_for_now(hub: Hub, status: int) -> None:
    hub.faults[:] = [Fault(host="hub", status=status, headers={"Retry-After": "0"}) for _ in range(20)]
    with pytest.raises(hf.HfHubHTTPError):
        Mirror(hub.url).listing(REPO, None)
    hub.faults[:] = [Fault(host="hub", status=404)]
    assert Mirror(hub.url).listing(REPO, None) is None


def test_a_list_is_read_up_to_its_limit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, "a", b"a")
    from_hub(hub, REPO, None)
    length = hub.seen[-1].sent
    monkeypatch.setattr(listings, "LIMIT", length)
    assert from_hub(hub, REPO, None).paths == ("a",)
    monkeypatch.setattr(listings, "LIMIT", length - 1)
    with pytest.raises(listings.UnreadableError, match=f"has more than {length - 1} bytes"):
        from_hub(hub, REPO, None)
