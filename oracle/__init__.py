# SPDX-License-Identifier: MIT OR Apache-2.0
"""Reference encodings of transcoders and sparse autoencoders, for people who port them."""

__version__ = "0.1.0"
