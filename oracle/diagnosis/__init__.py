# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which mistake reproduces a candidate: ports as values, the mistakes as rows, one search, the explanation.

May import checking and all below it. Start with mistakes.py, the table: a new mistake is a new row.
"""
