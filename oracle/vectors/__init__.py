# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weights that we make: the demo's synthetic repos, one for each format.

May import references and all below it. Start with demo.py.
"""
