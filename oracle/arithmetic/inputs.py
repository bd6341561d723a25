# SPDX-License-Identifier: MIT OR Apache-2.0
"""What an encoder makes of a residual before it multiplies it by W_enc."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IDENTITY, SCALED = "identity", "scaled"


@dataclass(frozen=True)
class EncoderInput:
    """The input is the residual times `factor`, computed in float64 and rounded once to float32."""

    factor: float = 1.0

    @property
    def kind(self) -> str:
        return IDENTITY if self.factor == 1.0 else SCALED

    @property
    def record(self) -> dict[str, str | float]:
        """What the JSON says of it."""
        return {"kind": self.kind} | ({} if self.kind == IDENTITY else {"factor": self.factor})

    def apply(self, residuals: np.ndarray) -> np.ndarray:
        """float32 residuals [..., d_model] -> float32 inputs of the same shape."""
        if self.kind == IDENTITY:
            return residuals
        return (residuals.astype(np.float64) * self.factor).astype(np.float32)
