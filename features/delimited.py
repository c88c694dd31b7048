"""Delimited text (CSV, TSV, columns between blanks) as rows of texts, and which lines could not be split."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from features.errors import ContractError
from features.quoting import literal, quoted

WHITESPACE = "whitespace"
# Column of `TextRows.sql` that says why a line could not be split; only there when `TextRows.has_faults`.
FAULT = "line fault"


@dataclass(frozen=True)
class TextRows:
    """Text files as an SQL relation of texts. The engine writes lines it cannot split to the table `rejects`."""

    sql: str
    names: tuple[str, ...]
    rejects: str
    has_faults: bool = False


@dataclass(frozen=True)
class RejectedLines:
    """Lines that could not be split for one `reason`; the rows' numbers, 1 is the first after the header.

    `swallowing` are those that go on over the end of their line: a quote that opens there is never closed.
    """

    reason: str
    rows: tuple[int, ...]
    swallowing: tuple[int, ...]


def read_text(
    paths: Sequence[Path], delimiter: str, encoding: str, rejects: str, known: Collection[str] = ()
) -> TextRows:
    """The rows of `paths`, which share one header; raises ContractError for a file that is not such text.

    An error shows column names only when one of them is `known` (case-folded): others may be the cells of a row.
    """
    names = _header(paths[0], delimiter, encoding)
    _require_distinct(paths[0].name, names, known)
    for path in paths:
        if path.suffix.lower() == ".gz":
            _require_whole(path)
        if _header(path, delimiter, encoding) != names:
            raise ContractError(f"{path.name} and {paths[0].name} have different headers; give them one each")
    whitespace = delimiter == WHITESPACE
    columns = ["line"] if whitespace else names
    typed = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in columns)
    splitting = "delim = '\\0', quote = '', escape = ''" if whitespace else _quotes(delimiter)
    sql = f"""read_csv({path_list(paths)}, columns = {{{typed}}}, {splitting},
        header = true, auto_detect = false, null_padding = false, encoding = {literal(encoding)}, store_rejects = true,
        rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + "_scan")}, rejects_limit = 0)"""
    return TextRows(_split_at_blanks(sql, names) if whitespace else sql, names, rejects, has_faults=whitespace)


def path_list(paths: Sequence[Path]) -> str:
    """`paths` as an SQL list; the engine reads texts there as patterns, and these are names."""
    names = (re.sub(r"([\[?*])", r"[\1]", str(path)) for path in paths)
    return f"[{', '.join(map(literal, names))}]"


def _quotes(delimiter: str) -> str:
    return f"delim = {literal(delimiter)}, quote = '\"', escape = '\"'"


def _split_at_blanks(lines: str, names: tuple[str, ...]) -> str:
    """`lines` cut at blanks; a line with another number of words than the header has only a FAULT."""
    count = len(names)
    words = ", ".join(
        f"CASE WHEN len(words) = {count} THEN words[{i}] END AS {quoted(n)}" for i, n in enumerate(names, 1)
    )
    fault = f"""CASE WHEN len(words) < {count} THEN 'line cannot be read (missing columns)'
                     WHEN len(words) > {count} THEN 'line cannot be read (too many columns)' END"""
    split = f"SELECT regexp_extract_all(line, '\\S+') AS words FROM {lines}"
    return f"(SELECT {words}, {fault} AS {quoted(FAULT)} FROM ({split}) WHERE len(words) > 0)"


def _header(path: Path, delimiter: str, encoding: str) -> tuple[str, ...]:
    """Column names of a text file's first line; a column without a name becomes column_1, column_2, ..."""
    try:
        with _open(path) as file:
            text = io.TextIOWrapper(file, "utf-8-sig" if encoding == "utf-8" else encoding, "replace", newline="")
            lines = iter(lambda: text.readline(1_000_000), "")
            names = (
                next(lines, "").split() if delimiter == WHITESPACE else next(csv.reader(lines, delimiter=delimiter), [])
            )
    except (OSError, EOFError, UnicodeError, csv.Error, zlib.error) as error:
        raise ContractError(f"{path.name} cannot be read: {error}") from None
    if any(sign in name for name in names for sign in "\0\ufffd"):
        raise ContractError(f"{path.name} is not {encoding} text; say its encoding, or path, where the table is mapped")
    names = [name.strip() for name in names]
    if not any(names):
        raise ContractError(f"{path.name} is empty: no header line")
    return tuple(name or f"column_{place}" for place, name in enumerate(names, 1))


def _require_distinct(file: str, names: tuple[str, ...], known: Collection[str]) -> None:
    folded = [name.casefold() for name in names]
    twice = sorted({name for name, fold in zip(names, folded, strict=True) if folded.count(fold) > 1})
    if not twice:
        return
    if any(fold in known for fold in folded):
        raise ContractError(f"{file} has columns named twice: {', '.join(map(repr, twice))}")
    raise ContractError(f"{file}: the first line does not look like a header: {len(names)} columns, some of them equal")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _require_whole(path: Path) -> None:
    """Raises ContractError for a cut or changed gzip file: the engine would end at the damage and say nothing."""
    try:
        with gzip.open(path, "rb") as file:
            while file.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise ContractError(f"{path.name} is not a whole gzip file ({error}); copy it again") from None


def rejected_lines(con: Any, rejects: str) -> list[RejectedLines]:
    """What the engine could not split, once the rows have been read."""
    exists = con.con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [rejects]).fetchone()[0]
    if not exists:
        return []
    # A line may be rejected several times. Empty lines before it belong to its text.
    found = con.con.execute(f"""
        SELECT 'line cannot be read (' || lower(replace(error, '_', ' ')) || ')', list(row ORDER BY file, row),
               list(row ORDER BY file, row) FILTER (goes_on)
        FROM (SELECT file_id AS file, line - 1 AS row, min(error_type::VARCHAR) AS error,
                     bool_or(regexp_matches(ltrim(csv_line, chr(10) || chr(13)), '[\\n\\r].')) AS goes_on
              FROM {rejects} GROUP BY ALL)
        GROUP BY 1 ORDER BY 1""").fetchall()
    return [RejectedLines(reason, tuple(rows), tuple(swallowing or ())) for reason, rows, swallowing in found]
