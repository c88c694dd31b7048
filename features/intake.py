"""From foreign rows to the contract: typing by SQL, quarantine with a reason, and the report of what became of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from features.delimited import FAULT, RejectedLines, rejected_lines
from features.errors import ContractError
from features.quoting import literal, quoted
from features.settings import Settings, SourceTable
from features.tables import COLUMN_NAMES, CONTRACT, ROW_ID, Column, TableIntake

# Amounts beyond this many minor units are typing errors, and sums of them would leave 64 bits.
MAX_MINOR_UNITS = 10**13
_ROW = "tiercast row"
# Words of SQL that cells hold too: a row of data must not pass for a header because of them.
_KEYWORDS = frozenset(
    ["and", "as", "between", "case", "date", "distinct", "else", "end", "false", "in", "is", "like", "not", "null"]
) | {"or", "then", "true", "when"}
_SQL_TYPE = {
    "id": "VARCHAR",
    "text": "VARCHAR",
    "time": "TIMESTAMP",
    "date": "DATE",
    "money": "BIGINT",
    "number": "DOUBLE",
}
_UNREADABLE = {
    "time": "is not a time",
    "date": "is not a date",
    "money": "is not an amount",
    "number": "is not a number",
}


@dataclass(frozen=True)
class Foreign:
    """Foreign rows of one contract table: an SQL relation, its columns, and how contract columns are made of them.

    `where` is the place in the settings that says so; `rejects` names the engine's table of lines it could not split,
    `has_faults` says that the relation has a FAULT column.
    """

    table: str
    sql: str
    names: tuple[str, ...]
    mapping: SourceTable
    where: str
    rejects: str | None = None
    has_faults: bool = False

    def expression(self, column: str) -> str | None:
        """SQL of one contract column, None where the source does not have it."""
        if column in self.mapping.columns:
            return self.mapping.columns[column]
        return quoted(column) if column in self.names and not self.mapping.columns else None

    @property
    def names_are_known(self) -> bool:
        """Whether the names are surely column names: those of a text file without a header are the cells of a row."""
        known = known_names(self.table, self.mapping)
        return self.rejects is None or any(name.casefold() in known for name in self.names)

    @property
    def lacks_who_or_when(self) -> bool:
        """Whether these are order lines that take their customer or time from their order."""
        return self.table == "order_lines" and None in (self.expression("customer_id"), self.expression("time"))


def known_names(table: str, mapping: SourceTable) -> frozenset[str]:
    """Column names, case-folded, that the contract or the shop's own SQL gives to a table."""
    names = set(COLUMN_NAMES[table])
    for sql in (*mapping.columns.values(), *mapping.group_by, mapping.filter or ""):
        code = re.sub(r"'(?:[^']|'')*'|--[^\n]*", " ", sql)
        names.update(found.replace('""', '"') for found in re.findall(r'"((?:[^"]|"")+)"', code))
        words = re.findall(r"\b[^\W\d]\w*\b(?!\s*\()", re.sub(r'"(?:[^"]|"")+"', " ", code))
        names.update(word for word in words if word.lower() not in _KEYWORDS)
    return frozenset(name.casefold() for name in names)


def take_in(con: Any, foreign: Foreign, settings: Settings) -> tuple[TableIntake | None, list[str]]:
    """Creates the view of accepted rows, named as the table; returns what became of the rows, and the problems.

    The view stands over a table `staged_<table>` of all rows with a reason, NULL for the accepted ones.
    """
    problems = _missing_columns(foreign)
    if problems:
        return None, problems
    try:
        _stage(con, foreign, settings)
    except duckdb.Error as error:
        return None, list(_blamed(con, foreign)) or [f"its rows cannot be read: {first_line(error)}"]
    if foreign.expression(ROW_ID.get(foreign.table, "")) is not None:
        _quarantine_duplicates(con, foreign.table)
    _create_view(con, foreign.table)
    rejected = rejected_lines(con, foreign.rejects) if foreign.rejects else []
    intake = _intake(con, foreign, rejected)
    return intake, _misread_columns(foreign, intake, settings) + _swallowed_lines(rejected)


def create_empty(con: Any, table: str) -> None:
    """Creates the view of a table without rows."""
    typed = ", ".join(f"{quoted(column.name)} {_SQL_TYPE[column.kind]}" for column in CONTRACT[table])
    con.raw_sql(f"CREATE OR REPLACE TABLE staged_{table} ({typed}, {quoted(_ROW)} BIGINT, reason VARCHAR)")
    _create_view(con, table)


# Staging


def _stage(con: Any, foreign: Foreign, settings: Settings) -> None:
    columns = CONTRACT[foreign.table]
    raw = ", ".join(f"{_raw(foreign, column)} AS {quoted('raw_' + column.name)}" for column in columns)
    fault = quoted(FAULT) if foreign.has_faults and not foreign.mapping.group_by else "NULL"
    numbered = _numbered(foreign, f"{raw}, {fault} AS fault")
    if foreign.lacks_who_or_when:
        numbered = _with_order(numbered)
    types = {name: kind for name, kind, *_ in con.con.execute(f"DESCRIBE {numbered}").fetchall()}
    typed = ", ".join(
        f"{_typed(column, types['raw_' + column.name], settings)} AS {quoted(column.name)}" for column in columns
    )
    kept = ", ".join(quoted(column.name) for column in columns)
    con.raw_sql(f"""
        CREATE OR REPLACE TABLE staged_{foreign.table} AS
        SELECT {kept}, {quoted(_ROW)}, {_reason(foreign, types, settings)} AS reason
        FROM (SELECT *, {typed} FROM ({numbered}))""")


def _raw(foreign: Foreign, column: Column) -> str:
    expression = foreign.expression(column.name)
    # A comment at the end of a user's SQL must not swallow ours.
    return "NULL" if expression is None else f"({expression}\n)"


def _numbered(foreign: Foreign, selected: str) -> str:
    """SQL of `selected` and the row's number: its place in the source, or among the groups in their own order."""
    where = f"WHERE ({foreign.mapping.filter}\n)" if foreign.mapping.filter else ""
    if not foreign.mapping.group_by:
        rows = f"SELECT row_number() OVER () AS {quoted(_ROW)}, * FROM {foreign.sql}"
        return f"SELECT {selected}, {quoted(_ROW)} FROM ({rows}) {where}"
    group_by = ", ".join(foreign.mapping.group_by)
    groups = f"SELECT {selected} FROM {foreign.sql} {where} GROUP BY {group_by}\n"
    # Groups come in no order of their own, and row numbers must not change from run to run.
    return f"SELECT row_number() OVER (ORDER BY groups) AS {quoted(_ROW)}, * FROM ({groups}) AS groups"


def _with_order(numbered: str) -> str:
    """Order lines with who and when of their order where they do not say it themselves."""

    def own_or(column: str, from_order: str) -> str:
        return f"coalesce(nullif(trim(lines.raw_{column}::VARCHAR), ''), {from_order}) AS raw_{column}"

    return f"""
        SELECT lines.* REPLACE (
            {own_or("customer_id", "orders.customer_id")},
            {own_or("time", _utc_text("orders.time"))},
            {own_or("known_time", _utc_text("coalesce(orders.known_time, orders.time)"))})
        FROM ({numbered}) AS lines
        LEFT JOIN (SELECT * FROM staged_orders WHERE reason IS NULL AND order_id IS NOT NULL) AS orders
        ON orders.order_id = trim(lines.raw_order_id::VARCHAR)"""


def _utc_text(time: str) -> str:
    return f"strftime({time}, '%Y-%m-%dT%H:%M:%S.%f') || 'Z'"


def _typed(column: Column, raw_type: str, settings: Settings) -> str:
    """SQL that makes the contract's type of a raw value of DuckDB's `raw_type`; NULL where it cannot."""
    raw = quoted("raw_" + column.name)
    match column.kind:
        case "id" | "text":
            return _text(raw)
        case "time" if raw_type == "TIMESTAMP" and settings.timezone == "UTC":
            return f"CASE WHEN isfinite({raw}) THEN {raw} END"  # the way through TIMESTAMPTZ is seven times as long
        case "time":
            moment = f"try_cast({raw} AS TIMESTAMPTZ)"
            return f"CASE WHEN isfinite({moment}) THEN timezone('UTC', {moment}) END"
        case "date":
            return f"CASE WHEN isfinite(try_cast({raw} AS DATE)) THEN try_cast({raw} AS DATE) END"
        case "money":
            # Cut off far beyond belief, so that the product stays inside its type.
            amount = f"greatest(least(try_cast({raw} AS DECIMAL(38, 9)), 1e14::DECIMAL(38, 9)), -1e14::DECIMAL(38, 9))"
            readable = f"try_cast({raw} AS DECIMAL(38, 9)) IS NOT NULL"
            return f"CASE WHEN {readable} THEN round({amount} * {10**settings.currency_digits})::BIGINT END"
        case "number":
            return f"CASE WHEN isfinite(try_cast({raw} AS DOUBLE)) THEN try_cast({raw} AS DOUBLE) END"


def _text(raw: str) -> str:
    return f"nullif(trim({raw}::VARCHAR), '')"


def _present(raw: str, raw_type: str) -> str:
    return f"{_text(raw)} IS NOT NULL" if raw_type == "VARCHAR" else f"{raw} IS NOT NULL"


def _reason(foreign: Foreign, types: Mapping[str, str], settings: Settings) -> str:
    """SQL for why a row cannot be used; NULL when it can."""
    cases = [("fault IS NOT NULL", "fault")]
    for column in CONTRACT[foreign.table]:
        name, raw = quoted(column.name), quoted("raw_" + column.name)
        if column.kind in _UNREADABLE:
            unreadable = f"{column.name} {_UNREADABLE[column.kind]}"
            cases.append((f"{_present(raw, types['raw_' + column.name])} AND {name} IS NULL", literal(unreadable)))
        if column.required and foreign.expression(column.name) is None:
            cases.append((f"{name} IS NULL AND order_id IS NOT NULL", literal("no such order")))
        elif column.required:
            cases.append((f"{name} IS NULL", literal(f"no {column.name}")))
        if column.kind == "money":
            cases.append((f"abs({name}) > {MAX_MINOR_UNITS}", literal(f"{column.name} is beyond belief")))
    cases.append((f"time > {_latest(settings)}", literal("time is after the extract time")))
    cases.append(("time < TIMESTAMP '1970-01-01'", literal("time is before 1970")))
    return f"CASE {' '.join(f'WHEN {condition} THEN {text}' for condition, text in cases)} END"


def _latest(settings: Settings) -> str:
    extract_time = settings.extract_time.astimezone(UTC) if settings.extract_time else datetime.now(UTC)
    return f"TIMESTAMP {literal(extract_time.replace(tzinfo=None).isoformat(sep=' '))}"


def _quarantine_duplicates(con: Any, table: str) -> None:
    """Of accepted rows with one id, the one that the shop knew first stays.

    Not the first of the file: a row learned of later must not take away what was known at an earlier cutoff.
    """
    key, row, usable = ROW_ID[table], quoted(_ROW), f"reason IS NULL AND {ROW_ID[table]} IS NOT NULL"
    # Nearly always there are none, and hashes of millions of ids take a fraction of the memory of the ids.
    suspects = f"SELECT hash({key}) FROM staged_{table} WHERE {usable} GROUP BY 1 HAVING count(*) > 1"
    first = f"arg_min({row}, row(coalesce(known_time, time), time, {row}))"
    con.raw_sql(f"""
        UPDATE staged_{table} SET reason = 'duplicate {key}'
        FROM (SELECT {key} AS id, {first} AS first FROM staged_{table}
              WHERE {usable} AND hash({key}) IN ({suspects}) GROUP BY 1 HAVING count(*) > 1) AS twice
        WHERE {usable} AND staged_{table}.{key} = twice.id AND {row} <> twice.first""")


def _create_view(con: Any, table: str) -> None:
    """Accepted rows with the defaults of the contract filled in."""
    row_id = ROW_ID.get(table)
    filled = ["coalesce(known_time, time) AS known_time"]
    if row_id:
        filled.append(f"coalesce({row_id}, {quoted(_ROW)}::VARCHAR) AS {row_id}")
    con.raw_sql(f"""
        CREATE OR REPLACE VIEW {table} AS
        SELECT * EXCLUDE ({quoted(_ROW)}, reason) REPLACE ({", ".join(filled)}) FROM staged_{table}
        WHERE reason IS NULL""")


# What became of the rows


def _intake(con: Any, foreign: Foreign, rejected: list[RejectedLines]) -> TableIntake:
    rows = con.con.execute(f"""
        SELECT reason, count(*), min({quoted(_ROW)}),
               min(time) FILTER (reason IS NULL), max(time) FILTER (reason IS NULL)
        FROM staged_{foreign.table} GROUP BY 1 ORDER BY 2 DESC, 1""").fetchall()
    shift = _shift([row for lines in rejected for row in lines.rows], foreign)
    quarantined = {reason: count for reason, count, *_ in rows if reason is not None}
    first_rows = {reason: shift(first) for reason, _, first, *_ in rows if reason is not None}
    for lines in rejected:
        first_rows[lines.reason] = min(lines.rows[0], first_rows.get(lines.reason, lines.rows[0]))
        quarantined[lines.reason] = quarantined.get(lines.reason, 0) + len(lines.rows)
    accepted = next(((count, start, last) for reason, count, _, start, last in rows if reason is None), (0, None, None))
    silent = foreign.mapping.columns or not foreign.names_are_known
    unused = () if silent else tuple(n for n in foreign.names if n not in COLUMN_NAMES[foreign.table])
    return TableIntake(
        table=foreign.table,
        rows_in=accepted[0] + sum(quarantined.values()),
        accepted=accepted[0],
        quarantined=quarantined,
        first_rows=first_rows,
        first_time=accepted[1],
        last_time=accepted[2],
        unused_columns=unused,
    )


def _shift(rejected: list[int], foreign: Foreign) -> Callable[[int], int]:
    """From the number of a row among those that could be split to its number in the file."""

    def shifted(row: int) -> int:
        for line in sorted(rejected):
            row += line <= row
        return row

    return (lambda row: row) if foreign.mapping.group_by else shifted


def _missing_columns(foreign: Foreign) -> list[str]:
    """Columns without which a row means nothing; order_lines may take who and when from their order."""
    from_order = ("customer_id", "time") if foreign.table == "order_lines" else ()
    problems = []
    for name in (c.name for c in CONTRACT[foreign.table] if c.required and c.name not in from_order):
        if foreign.expression(name) is None and name in foreign.names:
            way_out = f'add {name} = "{name}" under {foreign.where}'
            problems.append(f"column {name!r} is not mapped, though the source has it; {way_out}")
        elif foreign.expression(name) is None:
            problems.append(f"column {name!r} is missing ({_found(foreign)}); map it under {foreign.where}")
    return problems


def _found(foreign: Foreign) -> str:
    if foreign.names_are_known:
        return f"found: {', '.join(foreign.names)}"
    count = f"{len(foreign.names)} column" + ("s" if len(foreign.names) > 1 else "")
    return f"the first line, of {count}, does not look like a header; check it, and the delimiter"


def _misread_columns(foreign: Foreign, intake: TableIntake, settings: Settings) -> list[str]:
    """Columns of which so many values are unreadable that the format, not the value, must be wrong."""
    allowed = settings.max_malformed_share * intake.rows_in
    problems = []
    for reason, count in intake.quarantined.items():
        line = reason.startswith("line cannot be read")
        if (line or reason.endswith(tuple(_UNREADABLE.values()))) and count > allowed:
            way_out = (
                f"say how its lines are split (delimiter, encoding) under [sources.{foreign.table}]"
                if line
                else f"say how to read it under {foreign.where}"
            )
            problems.append(
                f"{count:,} of {intake.rows_in:,} rows: {reason} (first: row {intake.first_rows[reason]:,}); "
                f"{way_out}, or raise max_malformed_share"
            )
    return problems


def _swallowed_lines(rejected: list[RejectedLines]) -> list[str]:
    return [
        f"row {row:,} opens a quote that is not closed on its line and swallows the lines after it; close it"
        for lines in rejected
        for row in lines.swallowing[:3]
    ]


# Whose fault it is


def _blamed(con: Any, foreign: Foreign) -> Iterator[str]:
    """The parts of the shop's own SQL that fail when they are tried one by one."""
    mapping = foreign.mapping
    if mapping.filter:
        fault = _fault(con, f"SELECT count(*) FROM {foreign.sql} WHERE ({mapping.filter}\n)")
        if fault:
            yield f"filter = {mapping.filter!r} fails: {fault}"
            return
    for key in mapping.group_by:
        fault = _fault(con, f"SELECT count(*) FROM (SELECT {key} FROM {foreign.sql})")
        if fault:
            yield f"group_by {key!r} fails: {fault}"
            return
    for column, expression in mapping.columns.items():
        fault = _fault(
            con, f"SELECT max(tried::VARCHAR) FROM ({_numbered(foreign, f'({expression}{chr(10)}) AS tried')})"
        )
        if fault:
            yield f"{column} = {expression!r} fails: {fault}"


def _fault(con: Any, sql: str) -> str | None:
    try:
        con.con.execute(sql).fetchall()
    except duckdb.Error as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """What went wrong, without the cells that an engine quotes: they may be personal data.

    The engine's own words only where it stopped before it read a row, or could not open a file.
    """
    text = str(error).strip()
    return text.splitlines()[0] if text and _is_without_values(error) else _kind_of(error)


def _is_without_values(error: Exception) -> bool:
    by_engine = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.IOException)
    return isinstance(error, ContractError) or type(error) in by_engine


def _kind_of(error: Exception) -> str:
    """The kind of an engine's error, as in "a conversion error"."""
    name = type(error).__name__.removesuffix("Exception").removesuffix("Error")
    words = " ".join([*(word.lower() for word in re.findall("[A-Z][a-z]*", name)), "error"])
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
