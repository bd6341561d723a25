# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which mistake gives a candidate's numbers: the mistakes as rows, trials, searches, the explanation.

May import checking and all below it. Start with mistakes.py, the table: a new mistake is a new row.
"""
