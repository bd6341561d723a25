# SPDX-License-Identifier: MIT OR Apache-2.0
"""A layer's weight files as its format has them: tensors, named and checked against each other, and the encoder that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from oracle.arithmetic import decoder
from oracle.arithmetic.chain import EncoderInput, Gate, Gated, Largest, Threshold, exp_float32
from oracle.arithmetic.constants import ABSTOPK, GATED, GROUPMAX, JUMPRELU, RELU, SCALED, TOPK
from oracle.arithmetic.encoder import Encoder
from oracle.arithmetic.products import Matrix
from oracle.errors import WeightsError
from oracle.weights.formats import ENCODER, SIDE, Format, TensorSpec
from oracle.weights.npz import Npz
from oracle.weights.safetensors import Safetensors
from oracle.weights.sidefiles import (
    B_DEC,
    B_ENC,
    B_GATE,
    B_MAG,
    LOG_THRESHOLD,
    R_MAG,
    SCALING,
    THRESHOLD,
    UNUSED,
    W_DEC,
    W_ENC,
    W_SKIP,
    Context,
    K,
    Settings,
    Side,
)  # fmt: skip
from oracle.weights.tensors import StoredTensor, Tensor, TensorFile, listed


def _torch_zip(reader: BinaryIO, label: str) -> TensorFile:
    from oracle.weights.torchzip import TorchZip  # not at the top: few files are torch's, and it takes 3 ms

    return TorchZip(reader, label)


READERS: dict[str, Callable[[BinaryIO, str], TensorFile]] = {".npz": Npz, ".safetensors": Safetensors, ".pt": _torch_zip, ".pth": _torch_zip}
# Which tensors a gate needs, beside W_enc and b_dec.
NEEDED = {RELU: (B_ENC,), JUMPRELU: (B_ENC,), TOPK: (B_ENC,), ABSTOPK: (B_ENC,), GROUPMAX: (B_ENC,), GATED: (B_GATE, R_MAG, B_MAG)}


class OpenFile(NamedTuple):
    """A weight file that is open. Its `path` in the repo tells the container, `label` names it in messages."""

    reader: BinaryIO
    path: str
    label: str

    def tensors(self) -> TensorFile:
        """The file's tensors. Raises WeightsError."""
        suffix = next((suffix for suffix in READERS if self.path.endswith(suffix)), None)
        if suffix is None:
            raise WeightsError(f"{self.label}: none of {', '.join(READERS)}: its format is not known")
        return READERS[suffix](self.reader, self.label)


class LayerWeights:
    """One layer's weights: `d_model`, `n_features`, its tensors, and the `settings` that say how the numbers follow from them.

    `files` are some of the layer's, by their role: one that has no part in the work may be left out. Vectors are read at
    once, of matrices only the headers: what is wrong shows before the work. Raises WeightsError where a file is not one
    of the format.
    """

    def __init__(self, weights_format: Format, layer: int, files: Mapping[str, OpenFile], context: Context = Context()):
        self.format, self.layer = weights_format, layer
        self.label = next(iter(files.values())).label
        self._tensors: dict[str, StoredTensor] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._extents: dict[str, int] = {}
        for role, file in files.items():
            if role != SIDE:
                self._take(role, file)
        self.settings = self._settings(files, context)
        self._check_parts(ENCODER in files)
        self._vectors = {
            part: tensor.vector()
            for part, tensor in self._tensors.items()
            if (len(tensor.axes) < 2 or part == B_DEC) and part not in (K, *self.settings.unused)
        }
        self.d_model, self.n_features = self._extents["d_model"], self._extents["n_features"]
        self.d_out = self._extents.get("d_model_out", self.d_model)
        self.n_input_layers = self._extents.get("n_input_layers")
        self.input_length = self.d_model * (self.n_input_layers or 1)
        self._check_k()

    def _settings(self, files: Mapping[str, OpenFile], context: Context) -> Settings:
        side = Side(self.label)
        if self.format.side_file and SIDE in files:
            file = files[SIDE]
            side = Side.read(self.format.side_file, file.reader, file.label, context.ignore_key)
        elif self.format.side_file and ENCODER in files:
            raise WeightsError(f"{self.label}: its {self.format.side_file.name} is not there, which says what is computed")
        elif self.format.side_file:
            return Settings()  # a decoder's file alone
        count = self._tensors[K].file.integer(self._tensors[K].header) if K in self._tensors else None
        return self.format.settings(side, self._tensors.keys(), count, context)._replace(ignored=side.ignored)

    # --- the encoder --------------------------------------------------------------------------------------------------

    @property
    def w_enc(self) -> Matrix:
        """W_enc, in blocks of rows as they lie in the file. Its values are not checked: the encoder looks at them."""
        tensor = self._tensors[W_ENC]
        return Matrix(
            lambda: tensor.file.blocks(tensor.header), tensor.features_first, lambda wanted: tensor.file.rows(tensor.header, wanted)
        )

    @cached_property
    def encoder(self) -> Encoder:
        """What is computed of an input."""
        offset = self.b_enc.astype(np.float64)
        if self.settings.gate == GATED:
            return Encoder(self.w_enc, self._vectors[B_MAG].astype(np.float64), self.gate, self._exp(R_MAG))
        if self.settings.by_decoder_norm:
            # float32 times float32 is exact in float64.
            return Encoder(self.w_enc, offset * self.decoder_norms, self.gate, self.decoder_norms)
        return Encoder(self.w_enc, offset, self.gate)

    @property
    def encoder_input(self) -> EncoderInput:
        """What is multiplied by W_enc."""
        settings = self.settings
        if settings.root_scaled:
            return EncoderInput(SCALED, self.d_model**-0.5)
        return EncoderInput(settings.normalised, settings.factor, settings.back, self.b_dec if settings.minus_b_dec else None)

    @cached_property
    def gate(self) -> Gate:
        """Which features fire."""
        settings = self.settings
        if settings.gate == GATED:
            return Gated(self._vectors[B_GATE])
        if settings.gate in (TOPK, ABSTOPK, GROUPMAX):
            relu = settings.gate == GROUPMAX or settings.gate == TOPK and settings.relu
            return Largest(settings.k or 0, relu, settings.gate == ABSTOPK, settings.gate == GROUPMAX)
        return Threshold(np.maximum(self.threshold, 0)) if settings.gate == JUMPRELU else Threshold()

    @property
    def b_enc(self) -> np.ndarray:
        """float32 [n_features]; b_gate where the gate is gated, which has no other."""
        return self._vectors[B_GATE if self.settings.gate == GATED else B_ENC]

    @property
    def b_dec(self) -> np.ndarray:
        """float32 [d_out], or [n_targets, d_out]."""
        return self._vectors[B_DEC]

    def b_dec_of(self, target: int) -> np.ndarray | None:
        """What is added to what goes to a target, float32 [d_out]; None where nothing is."""
        if self.b_dec.ndim > 1:
            row: np.ndarray = self.b_dec[target]
            return row
        return self.b_dec if target == self.own_target else None

    @property
    def has_threshold(self) -> bool:
        """Whether the gate is JumpReLU's."""
        return self.settings.gate == JUMPRELU

    @cached_property
    def threshold(self) -> np.ndarray:
        """float32 [n_features]: JumpReLU's, or 0 where the gate is another."""
        settings = self.settings
        if not self.has_threshold:
            return np.zeros(self.n_features, np.float32)
        if LOG_THRESHOLD in self._tensors:
            return self._exp(LOG_THRESHOLD)
        level = self._vectors[THRESHOLD] if settings.level is None else np.asarray(settings.level)
        values = np.asarray(level.astype(np.float64) * settings.level_factor, np.float32)
        return np.array(np.broadcast_to(values, (self.n_features,)))

    @property
    def n_negative_thresholds(self) -> int:
        return int(np.count_nonzero(self.threshold < 0))

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """The tensors that are read, by what they are for."""
        return {part: spec for part, spec in self._specs.items() if part not in self.settings.unused}

    @property
    def schema(self) -> str:
        """What the JSON calls the format."""
        return self.format.schema(self.has_threshold)

    @property
    def gate_record(self) -> dict[str, Any]:
        """What the JSON says of the gate; peers differ in what they make of negative thresholds."""
        record = self.gate.record | ({"times_decoder_norms": True} if self.settings.by_decoder_norm else {})
        negative = self.n_negative_thresholds
        return record | ({"n_negative_thresholds": negative, "negative_values": "never active"} if negative else {})

    def _exp(self, part: str) -> np.ndarray:
        values = exp_float32(self._vectors[part])
        if not np.all(np.isfinite(values)):
            raise WeightsError(f"{self.label}: {self._tensors[part].header.name} is too large: its exponential overflows float32")
        return values

    # --- the decoder --------------------------------------------------------------------------------------------------

    @property
    def w_dec(self) -> StoredTensor:
        """W_dec. Raises WeightsError where it is not there."""
        if W_DEC not in self._tensors:
            raise WeightsError(f"{self.label}: it has no {self.format.of_part(W_DEC)[0].name.format(layer=self.layer)}")
        return self._tensors[W_DEC]

    def decoder_rows(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of `wanted`, which ascends, with float32 [len(part), d_out] or [len(part), n_targets, d_out] of W_dec. Raises WeightsError."""
        before = self.targets_before
        for part, block in self.w_dec.rows(wanted):
            if before and np.any(block[:, :before]):
                raise WeightsError(f"{self.label}: {self.w_dec.header.name} writes to layers before its own, {self.layer}")
            yield part, block[:, before:] if before else block

    @property
    def targets_before(self) -> int:
        """How many of W_dec's targets are layers before its own, to which it writes nothing."""
        return self.layer if self.format.all_targets else 0

    @property
    def first_target(self) -> int:
        """Which layer the first target is: its own, or of a crosscoder the first of its layers."""
        return 0 if self.n_input_layers else self.layer

    @property
    def own_target(self) -> int:
        """Which target is its own."""
        return self.layer - self.first_target

    @property
    def decoder_shape(self) -> tuple[int, ...]:
        """[d_out], or [n_targets, d_out]. Raises WeightsError where there is no target."""
        shape = self.w_dec.header.row_shape if self.w_dec.features_first else (self.d_out,)
        if self.targets_before >= (shape[0] if self.targets_before else 1):
            raise WeightsError(f"{self.label}: {self.w_dec.header.name} has {shape[0]} targets, and its layer is {self.layer}")
        return (shape[0] - self.targets_before, *shape[1:])

    @cached_property
    def decoder_norms(self) -> np.ndarray:
        """float32 [n_features]: the norms of W_dec's rows, by a pass over it."""
        return decoder.norms(self.w_dec.blocks(), features_first=self.w_dec.features_first)

    @property
    def row_factor(self) -> float:
        """What the decoder's rows are multiplied by."""
        return math.sqrt(self.d_model) if self.settings.root_scaled else 1.0

    @property
    def w_skip(self) -> Matrix | None:
        """W_skip, None where there is none; `features_first` says that a row is that of an output."""
        if W_SKIP not in self._tensors:
            return None
        tensor = self._tensors[W_SKIP]
        return Matrix(tensor.blocks, features_first=tensor.axes[0] == "d_model_out")

    # --- tensors ------------------------------------------------------------------------------------------------------

    def _take(self, role: str, file: OpenFile) -> None:
        """Look at a file's tensors, and check them against the format and against each other."""
        tensors = file.tensors()
        specs: dict[str, list[TensorSpec]] = {}
        for spec in self.format.of_role(role):
            specs.setdefault(spec.name.format(layer=self.layer), []).append(spec)
        for name in tensors.names:
            if name in self.format.absent:
                raise WeightsError(f"{file.label}: it has a tensor {name}, which a {self.format.name} file never has")
            if name not in specs:  # a gate, a scale or a skip by another name would be left out in silence
                raise WeightsError(
                    f"{file.label}: it has a tensor {ascii(name[:80])}, whose part in the encoding is not known: "
                    f"a {self.format.name} file has none"
                )
        for value in getattr(tensors, "values", {}):
            raise WeightsError(f"{file.label}: it has a value {ascii(value[:80])} beside its tensors, whose part in the encoding is not known")
        for name, choices in specs.items():
            if name not in tensors.names:
                continue
            if choices[0].part in self._tensors:
                raise WeightsError(f"{file.label}: it has both {self._tensors[choices[0].part].header.name} and {name}, which are one thing")
            if choices[0].part == UNUSED:
                continue
            header = tensors.tensor(name)
            spec = next((spec for spec in choices if len(spec.axes) == len(header.shape)), choices[0])
            self._check_shape(header, spec, file.label)
            axes = spec.axes[::-1] if header.transposed else spec.axes
            if spec.part == W_ENC and len(axes) == 3:  # the layers' inputs are one input, one behind the other
                header, axes = header._replace(shape=(header.shape[0] * header.shape[1], header.shape[2])), ("inputs", "n_features")
            self._tensors[spec.part], self._specs[spec.part] = StoredTensor(header, axes, tensors, file.label), spec
        for spec in self.format.of_role(role):
            if spec.required and spec.part not in self._tensors:
                names = " or ".join(other.name.format(layer=self.layer) for other in self.format.of_part(spec.part))
                raise WeightsError(f"{file.label}: it has no tensor {names}; it has {listed(tensors.names)}")

    def _check_shape(self, tensor: Tensor, spec: TensorSpec, label: str) -> None:
        """Hold a tensor's shape against the extents known; those that it is the first to have are taken from it."""
        shape = list(tensor.shape)
        if not self._extents and len(shape) != len(spec.axes):
            raise WeightsError(f"{label}: {tensor.name} has shape {shape}, not [{', '.join(spec.axes)}]")
        same_out = not any("d_model_out" in other.axes for other in self.format.of_part(B_DEC))
        for axis, extent in zip(spec.axes, shape):
            self._extents.setdefault(axis, extent)
            if axis == "d_model" and same_out:
                self._extents.setdefault("d_model_out", extent)
        if shape != [self._extents.get(axis) for axis in spec.axes]:
            known = [self._extents.get("d_model"), self._extents.get("n_features")]
            raise WeightsError(
                f"{label}: {tensor.name} has shape {shape}, but with [d_model, n_features] = {known} it must be "
                f"[{', '.join(str(self._extents.get(axis, axis)) for axis in spec.axes)}]"
            )

    def _check_parts(self, has_encoder: bool) -> None:
        """Hold the tensors that there are against those that the settings need. Raises WeightsError."""
        if not has_encoder:
            return
        settings = self.settings
        needed = {W_ENC, B_DEC, W_DEC, *NEEDED[settings.gate]}
        if settings.gate == JUMPRELU and settings.level is None:
            needed.add(LOG_THRESHOLD if self.format.of_part(LOG_THRESHOLD) else THRESHOLD)
        missing = sorted(part for part in needed - self._tensors.keys() if any(spec.role == ENCODER for spec in self.format.of_part(part)))
        if missing:
            names = " and ".join(" or ".join(spec.name for spec in self.format.of_part(part)) or part for part in missing)
            raise WeightsError(f"{self.label}: it has no tensor {names}, which a {settings.gate} gate needs")
        unknown = self._tensors.keys() - needed - {W_SKIP, K, *settings.unused}
        if SCALING in unknown:  # what a side file says of it says nothing where it is 1, as in SAELens
            if np.any(self._tensors[SCALING].vector() != 1):
                raise WeightsError(f"{self.label}: its {self._tensors[SCALING].header.name} is not 1: activations that it scales are not read")
            unknown -= {SCALING}
        if unknown:
            name = self._tensors[sorted(unknown)[0]].header.name
            raise WeightsError(f"{self.label}: it has a tensor {name}, which has no part in what is computed: a {settings.gate} gate")
        if settings.minus_b_dec and self._extents.get("d_model_out", self._extents["d_model"]) != self._extents["d_model"]:
            raise WeightsError(f"{self.label}: b_dec is subtracted from the input, and has another length")

    def _check_k(self) -> None:
        """Hold k against the number of features. Raises WeightsError."""
        settings, n = self.settings, self.n_features
        if settings.k is None:
            return
        if settings.k > n:
            raise WeightsError(f"{self.label}: its gate keeps the {settings.k} largest of {n} features")
        if settings.gate == GROUPMAX and n % settings.k:
            raise WeightsError(f"{self.label}: its {n} features cannot be {settings.k} groups of one size")
