# SPDX-License-Identifier: MIT OR Apache-2.0
"""A reference, and a comparison, as one HTML page.

May import diagnosis and all below it: documents and verdicts come in, text goes out. Start with page.py, which puts the
sections together; charts.py and markup.py are what the sections are made of.
"""
