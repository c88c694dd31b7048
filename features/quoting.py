"""Names and texts inside SQL."""

from __future__ import annotations


def quoted(name: str) -> str:
    """`name` as an SQL name."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as an SQL text."""
    return "'" + text.replace("'", "''") + "'"
