# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files to named tensors, and the formats as rows, with what their side files say: npz, safetensors, torch's zip.

May import arithmetic and the words at the door; knows no Hub: a weight file is a seekable binary reader. Start with
formats.py, the table: a new format is a new row.
"""
