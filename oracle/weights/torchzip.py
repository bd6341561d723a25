# SPDX-License-Identifier: MIT OR Apache-2.0
"""Named tensors out of what torch.save writes, a block of rows at a time, without torch.

The file is a zip archive: `<root>/data.pkl`, a pickle that describes a dict, and for each stretch of numbers a stored member
`<root>/data/<key>`. pickled.py reads the pickle as data.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

from oracle.errors import WeightsError
from oracle.weights.formats import EXTENT_LIMIT
from oracle.weights.npz import Archive
from oracle.weights.pickled import STORAGES, PickleError, View, tensors_and_values
from oracle.weights.tensors import Data, Tensor, listed

PICKLE_LIMIT = 4 * 1024 * 1024
BYTE_ORDER = b"little"  # what the member `byteorder` has to say, where there is one
_BARE_PICKLE, _TAR, _TAR_AT = b"\x80", b"ustar", 257  # how files of older versions of torch begin


class TorchZip(Archive):
    """The tensors of a dict that torch.save wrote. What is read of a member is checked against its CRC-32.

    `names` are the dict's tensors in its order; `values` is what else it holds: numbers, texts, lists and dicts of them.
    """

    kind = "file of torch.save"

    def __init__(self, reader: BinaryIO, label: str):
        reader.seek(0)
        head = reader.read(_TAR_AT + len(_TAR))
        if head.startswith(_BARE_PICKLE) or head.endswith(_TAR):
            raise WeightsError(
                f"{label}: it is in the format that torch had before 1.6, a bare pickle, and nothing is unpickled: load it with torch "
                "where you trust it, and save it again with a newer torch.save, or as .safetensors"
            )
        super().__init__(reader, label)
        pickles = [name for name in self.members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise self.error(f"it is a zip with {len(pickles) or 'no'} data.pkl: not a file of torch.save")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in self.members and self._small(order, len(BYTE_ORDER)) != BYTE_ORDER:
            raise self.error("its numbers are not little-endian: save it again on a machine where they are, or as .safetensors")
        try:
            self._views, self.values = tensors_and_values(self._small(pickles[0], PICKLE_LIMIT))
        except PickleError as error:
            raise self.error(f"its data.pkl {error}") from error
        self.names = list(self._views)

    def tensor(self, name: str) -> Tensor:
        """As TensorFile has it."""
        if name not in self._views:
            raise self.error(f"it has no tensor {name}; it has {listed(self.names)}")
        view = self._views[name]
        raw, bfloat16 = STORAGES[view.storage.kind]
        shape, strides = view.shape, view.strides
        if len(shape) > 3 or not all(0 < extent <= EXTENT_LIMIT for extent in shape):
            raise self.error(f"{name} has shape {_shown(shape)}; 0 to 3 dimensions of 1 to {EXTENT_LIMIT} each are read")
        tensor = Tensor(name, raw, bfloat16, shape, view.offset * raw.itemsize, transposed=_is_transpose(shape, strides))
        if tensor.is_integer and math.prod(shape) != 1:
            raise self.error(f"{name} is of a {view.storage.kind}; integers are read where they are one number, and floating-point numbers")
        if not tensor.transposed and not _is_in_order(shape, strides):
            raise self.error(
                f"{name} has strides {_shown(strides)} with shape {_shown(shape)}, neither in order nor those of a transpose: "
                "save it again as tensor.contiguous()"
            )
        self._check_storage(tensor, view)
        return tensor

    def data(self, tensor: Tensor) -> Data:
        """As TensorFile has it."""
        return self.checked_data(self._member(self._views[tensor.name]), tensor.name, tensor.offset)

    def _small(self, member: str, limit: int) -> bytes:
        """The whole of a small member."""
        self._check_stored(member)
        size = self.members[member].file_size
        if size > limit:
            raise self.error(f"{member} has {size} bytes; at most {limit} are read")
        data = self.checked_data(member, member, 0)
        with data:
            return data.take(size)

    def _check_stored(self, member: str) -> None:
        if member not in self.members:
            raise self.error(f"it has no {member}, which its data.pkl refers to: the file is not whole")
        if self.members[member].compress_type != zipfile.ZIP_STORED:
            raise self.error(f"{member} is compressed, and torch's are not: unpack the archive and zip it with -0, or save it again with torch.save")

    def _check_storage(self, tensor: Tensor, view: View) -> None:
        """Hold a tensor against its storage, and that against the file."""
        name, member, claimed = tensor.name, self._member(view), view.storage.count * tensor.raw.itemsize
        self._check_stored(member)
        if self.members[member].file_size != claimed:
            raise self.error(f"{member} has {self.members[member].file_size} bytes, but {name}'s storage takes {claimed}")
        if tensor.offset + tensor.n_bytes > claimed:
            raise self.error(f"{name} has bytes {tensor.offset} to {tensor.offset + tensor.n_bytes} of a storage of {claimed}")
        self.member_data(member, name)

    def _member(self, view: View) -> str:
        return f"{self._root}data/{view.storage.key}"


def _is_in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the numbers follow each other; a stride that nobody takes, along an axis of one, says nothing."""
    step = 1
    for extent, stride in zip(shape[::-1], strides[::-1]):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _is_transpose(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether there are two axes, and the numbers follow each other along the first."""
    return len(shape) == 2 and not _is_in_order(shape, strides) and _is_in_order(shape[::-1], strides[::-1])


def _shown(numbers: Sequence[int]) -> str:
    return str(list(numbers))[:80]
