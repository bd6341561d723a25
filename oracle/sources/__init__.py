# SPDX-License-Identifier: MIT OR Apache-2.0
"""Where files come from: curation, listing, Hub, stream, mirror.

May import weights and all below it, and vendored_hf, which has the cache and the requests. Start with source.py.
"""
