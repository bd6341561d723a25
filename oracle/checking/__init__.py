# SPDX-License-Identifier: MIT OR Apache-2.0
"""A candidate against a reference, a reference against its weights.

May import vectors and all below it. Start with compare.py: what a right port may answer, and why.
"""
