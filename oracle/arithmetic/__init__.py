# SPDX-License-Identifier: MIT OR Apache-2.0
"""Arrays in, arrays out: the residual generator (and residual.rs, its twin in Rust), the encoder's chain, the decoder.

May import nothing of the package but the words at its door, and knows no files and no network. Start with chain.py, then encoder.py.
"""
