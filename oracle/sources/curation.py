# SPDX-License-Identifier: MIT OR Apache-2.0
"""config.yaml: which file of which repo holds which layer."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import yaml

from oracle.arithmetic.constants import JUMPRELU, RELU, TOPK
from oracle.errors import BadData

SIZE_LIMIT = 1024 * 1024
ENTRY_LIMIT = 1024
TOKEN_LIMIT = 32 * ENTRY_LIMIT  # an entry takes two; each costs PyYAML 20 microseconds, and a whole MiB of them 20 seconds

# Of a config.yaml: what is obeyed, and what says nothing of the numbers, or is known from elsewhere.
OBEYED = ("transcoders", "model_name", "model_kind", "activation", "k")
NO_BEARING = ("scan", "feature_input_hook", "feature_output_hook", "repo_id", "revision", "subfolder")

_SCHEME = "hf://"
_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_LAYER = re.compile(r"(?:^|/)layer_(\d{1,6})(?=[/._]|$)")


class CurationError(BadData, ValueError):
    """A config.yaml that does not say which file holds which layer."""


class HubFile(NamedTuple):
    """A file on the Hub. `revision` is None where the entry names none."""

    repo: str
    revision: str | None
    path: str


class Config(NamedTuple):
    """What a config.yaml says: `files` by layer in the list's order, or None where it has no list.

    `model_name` is the model that was transcoded, `activation` the gate, with its `k`; each None where it is not said. `ignored` are
    the keys that were passed over because somebody said so.
    """

    model_name: str | None = None
    model_kind: str | None = None
    files: dict[int, HubFile] | None = None
    activation: str | None = None
    k: int | None = None
    ignored: tuple[str, ...] = ()


def parse_config(text: bytes, path: str = "config.yaml", ignore_key: Collection[str] = ()) -> Config:
    """A config.yaml's model, its kind, its gate, and its `transcoders` list; `path` names the file in messages.

    An entry's layer is its place in the list; a `layer_N` in its path must say the same. A key that is not known may
    change the numbers: it is refused, unless it is one of `ignore_key`. Raises CurationError.
    """
    if len(text) > SIZE_LIMIT:
        raise CurationError(f"{path} has {len(text)} bytes; at most {SIZE_LIMIT} are read")
    try:
        config = yaml.load(text, Loader=_Loader)
    except Exception as error:  # PyYAML's own, and what it leaves to Python: a character past the last one, nesting too deep
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        raise CurationError(f"{path} is not readable YAML: {problem}") from error
    if not isinstance(config, dict):
        raise CurationError(f"{path} holds {_kind(config)}, not a mapping")
    ignored = tuple(key for key in config if key in ignore_key)
    for key in ignored:
        del config[key]
    for key, value in config.items():
        if key not in OBEYED + NO_BEARING:
            shown = ascii(value)[:80] if isinstance(value, str) else _kind(value)
            raise CurationError(
                f"{path}: `{ascii(key)[1:-1][:80]}` is {shown}, and what that does to the numbers is not known: "
                "--ignore-key goes on without it"
            )
        if key != "transcoders" and not isinstance(value, str):
            raise CurationError(f"{path}: `{key}` is {_kind(value)}, not a string")
    name, kind, activation, k = (config.get(key) for key in ("model_name", "model_kind", "activation", "k"))
    if activation not in (None, RELU, JUMPRELU, TOPK):
        raise CurationError(f"{path}: `activation` is {ascii(activation)[:80]}; {RELU}, {JUMPRELU} and {TOPK} are read")
    if k is not None and (activation != TOPK or not re.fullmatch(r"[1-9]\d{0,7}", k)):
        wanted = "a whole number from 1" if activation == TOPK else f"read with `activation: {TOPK}`"
        raise CurationError(f"{path}: `k` is {ascii(k)[:80]}; it is {wanted}")
    if "transcoders" not in config and kind is None:
        raise CurationError(f"{path} has neither a `transcoders` list nor a `model_kind`")
    files = _files(config["transcoders"], path) if "transcoders" in config else None
    return Config(name, kind, files, activation, None if k is None else int(k), ignored)


def _files(entries: object, config: str) -> dict[int, HubFile]:
    if not isinstance(entries, list):
        raise CurationError(f"{config}: `transcoders` is {_kind(entries)}, not a list")
    if not 1 <= len(entries) <= ENTRY_LIMIT:
        raise CurationError(f"{config}: `transcoders` has {len(entries)} entries; 1 to {ENTRY_LIMIT} are read")

    try:
        files = [parse_uri(entry) for entry in entries]
    except CurationError as error:
        raise CurationError(f"{config}: {error}") from error
    for place, file in enumerate(files):
        if file in files[:place]:
            raise CurationError(f"{config} names {file.path} twice, for layers {files.index(file)} and {place}")
        if layer_in(file.path) not in (None, place):
            raise CurationError(f"{config}: entry {place} stands for layer {place}, but its path is {file.path}")
    return dict(enumerate(files))


def parse_uri(uri: object) -> HubFile:
    """`hf://org/repo/path[?revision=...]` taken apart. Raises CurationError."""
    if not isinstance(uri, str):
        raise CurationError(f"a transcoder is {_kind(uri)}, not an hf:// address")
    shown = ascii(uri[:200])
    if not uri.startswith(_SCHEME):
        raise CurationError(f"{shown} is not an hf:// address; other sources are not read")
    location, question_mark, query = uri[len(_SCHEME) :].partition("?")
    revision = None
    if question_mark:
        key, _, revision = query.partition("=")
        if key != "revision" or not _REVISION.fullmatch(revision) or ".." in revision:
            raise CurationError(f"{shown} has {ascii(query[:80])} after the `?`, not revision=<a revision>")
    parts = location.split("/")
    if len(parts) < 3 or not all(map(_REPO_PART.fullmatch, parts[:2])) or any(".." in part for part in parts[:2]):
        raise CurationError(f"{shown} is not of the form hf://org/repo/path")
    if parts[0] in ("datasets", "spaces", "models"):
        raise CurationError(f"{shown} is not of the form hf://org/repo/path ({parts[0]} is no org)")
    path = parts[2:]
    if any(part in ("", ".", "..") for part in path) or "\\" in location or not location.isprintable():
        raise CurationError(f"{shown} has a path that could lead out of its repo")
    return HubFile("/".join(parts[:2]), revision, "/".join(path))


def layer_in(path: str) -> int | None:
    """The layer that a path names as `layer_N`, or None. Raises CurationError where it names several."""
    named = {int(number) for number in _LAYER.findall(path)}
    if len(named) > 1:
        raise CurationError(f"{path} names the layers {' and '.join(map(str, sorted(named)))}")
    return named.pop() if named else None


def _kind(value: object) -> str:
    return {dict: "a mapping", list: "a list", str: "a string", type(None): "nothing"}.get(
        type(value), f"a {type(value).__name__}"
    )


class _Loader(yaml.BaseLoader):
    """Mappings, lists and text, which is all that the list needs: no tags, no merging, nothing that multiplies.

    PyYAML keeps the last of two equal keys in silence; here they are an error. It reads a token at a time: where there are too many,
    the rest is not looked at.
    """

    def fetch_more_tokens(self) -> None:
        if self.tokens_taken > TOKEN_LIMIT:
            problem = f"more than {TOKEN_LIMIT} keys, values, dashes, brackets and commas, the most that are read"
            raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())
        super().fetch_more_tokens()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value[:80]!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)
