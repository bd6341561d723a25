# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weights that we make: the demo's synthetic repos, one for each format, and exact test vectors that catch one kind of mistake each.

May import references and all below it. Start with demo.py; of exact vectors with variants.py: a row for each format, gate and input.
"""
