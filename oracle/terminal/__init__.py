# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a person types and sees: commands, options, tables, progress, GitHub's annotations.

May import every wing below it, and the words at the door; nothing imports it but `__main__`, and nothing else prints.
Start with commands.py: a function for each command.
"""
