# SPDX-License-Identifier: MIT OR Apache-2.0
"""A job from end to end, and the JSON document: plan, layers, workers, write, read, validate.

May import sources and all below it. Start with generate.py: one job from the plan to the document.
"""
