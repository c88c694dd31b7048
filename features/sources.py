"""From a shop's files and databases to `Tables`: the only input of the package.

Everything is read as text and made into the contract's types by SQL in DuckDB, so that a file, a database and
rows sent to the service go through the same door. Values that cannot be used put their row into quarantine.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa

from features.errors import ContractError
from features.settings import FILE_NAME, Settings, SourceTable, read_settings
from features.tables import COLUMN_NAMES, CONTRACT, ROW_ID, Column, TableIntake, Tables, show_time

FILE_ENDINGS = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
DATABASE_NAME = "shop.duckdb"
# Amounts beyond this many minor units are typing errors, and sums of them would leave 64 bits.
MAX_MINOR_UNITS = 10**13
_SQL_TYPE = {"id": "VARCHAR", "text": "VARCHAR", "time": "TIMESTAMP", "date": "DATE", "money": "BIGINT", "number": "DOUBLE"}

Progress = Callable[[str], None]


def load_settings(folder: Path, file: Path | None = None) -> Settings:
    """The settings of a shop: those in `file`, else in the folder's `tiercast.toml`, else the defaults."""
    return read_settings(file or folder / FILE_NAME, COLUMN_NAMES)


@contextlib.contextmanager
def open_folder(folder: Path, settings: Settings, progress: Progress = lambda table: None) -> Iterator[Tables]:
    """The contract's tables out of the files and databases of `folder`, for the length of a `with`.

    Accepted rows are held in a temporary DuckDB file that goes away at the end. Raises ContractError with all
    problems of all tables: a missing file or column, no usable row, a column that seems to be misread.
    """
    if not folder.is_dir():
        raise ContractError(f"{folder} is not a folder; give the folder that holds orders.parquet, orders.csv or {FILE_NAME}")
    with _engine(settings) as con:
        yield _load(con, {t: _folder_reader(con, folder, t, settings) for t in CONTRACT}, settings, progress)


@contextlib.contextmanager
def open_rows(rows: Mapping[str, Sequence[Mapping[str, Any]]], settings: Settings) -> Iterator[Tables]:
    """The contract's tables out of rows in memory (table name -> rows), as an app sends them.

    A table that is not named is empty. Unusable rows go to quarantine as those of a file do.
    """
    with _engine(settings, in_memory=True) as con:
        yield _load(con, {t: _rows_reader(con, t, rows.get(t)) for t in CONTRACT}, settings)


@dataclass(frozen=True)
class _Relation:
    """Foreign rows: an SQL relation, its column names, and how contract columns are made of them."""

    sql: str
    names: tuple[str, ...]
    mapping: SourceTable
    where: str

    def expression(self, column: str) -> str | None:
        """SQL of one contract column, None where the source does not have it."""
        if column in self.mapping.columns:
            return self.mapping.columns[column]
        return _quoted(column) if column in self.names and not self.mapping.columns else None


Reader = Callable[[], "_Relation | None"]


@contextlib.contextmanager
def _engine(settings: Settings, in_memory: bool = False) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        path = ":memory:"
        if not in_memory:
            path = str(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiercast-"))) / "tables.duckdb")
        con = ibis.duckdb.connect(path, autoinstall_known_extensions=False)
        stack.callback(con.disconnect)
        con.raw_sql(f"SET TimeZone = {_literal(settings.timezone)}")
        yield con


def _load(con: Any, readers: Mapping[str, Reader], settings: Settings, progress: Progress = lambda table: None) -> Tables:
    """Stages every table, then reports all problems at once."""
    problems: list[str] = []
    intakes: list[TableIntake] = []
    present = set()
    for table in CONTRACT:
        progress(table)
        found: list[str] = []
        try:
            relation = readers[table]()
            if relation is None:
                _create_empty(con, table)
                continue
            present.add(table)
            found = _missing_columns(table, relation)
            if not found:
                intake = _stage(con, table, relation, settings)
                found = _misread_columns(table, intake, settings)
                intakes.append(intake)
        except duckdb.Error as error:
            found = [_first_line(error)]
        if found:
            problems.append(_problem_list(table, found))
            _create_empty(con, table)
    if "orders" not in present:
        problems.insert(0, "orders is missing; it is the one table that must be there: "
                           f"orders{', orders'.join(FILE_ENDINGS[:3])}, or a path under [sources.orders] in {FILE_NAME}")
    if problems:
        raise ContractError("\n".join(problems))
    return _tables(con, frozenset(present), tuple(intakes), settings)


def _tables(con: Any, present: frozenset[str], intakes: tuple[TableIntake, ...], settings: Settings) -> Tables:
    by_name = {intake.table: intake for intake in intakes}
    start = by_name["orders"].first_time
    last = max(i.last_time for i in intakes if i.last_time is not None) if start else None
    if start is None or last is None:
        raise ContractError(f"orders has no usable row: {by_name['orders'].rows_in} in, all quarantined "
                            f"({_reasons(by_name['orders'])})" if by_name["orders"].rows_in else "orders has no rows")
    return Tables(
        tables={table: con.table(table) for table in CONTRACT},
        present=present,
        currency=settings.currency,
        currency_digits=settings.currency_digits,
        timezone=settings.timezone,
        intake=intakes,
        start=start,
        end=_next_midnight(last, settings),
    )


def _next_midnight(last: datetime, settings: Settings) -> datetime:
    """The shop's first midnight after `last`, in UTC: where the data end when nothing else is said."""
    local = last.replace(tzinfo=UTC).astimezone(settings.zone)
    midnight = datetime(local.year, local.month, local.day, tzinfo=settings.zone) + timedelta(days=1)
    return midnight.astimezone(UTC).replace(tzinfo=None)


# Where the rows are


def _folder_reader(con: Any, folder: Path, table: str, settings: Settings) -> Reader:
    def read() -> _Relation | None:
        mapping = settings.sources.get(table)
        if mapping is None:
            mapping = _default_source(con, folder, table)
        if mapping is None:
            return None
        sql, names = _database_rows(con, folder, table, mapping) if mapping.database else _file_rows(con, folder, table, mapping)
        return _Relation(sql, names, mapping, f"[sources.{table}.columns]")

    return read


def _default_source(con: Any, folder: Path, table: str) -> SourceTable | None:
    """The contract-named file of `table`, or the table of that name in `shop.duckdb`."""
    found = [folder / (table + ending) for ending in FILE_ENDINGS if (folder / (table + ending)).exists()]
    if len(found) > 1:
        raise duckdb.Error(f"found more than once: {', '.join(path.name for path in found)}; keep one")
    if found:
        return SourceTable(path=found[0].name)
    if (folder / DATABASE_NAME).exists():
        _attach(con, folder / DATABASE_NAME)
        held = con.con.execute(
            "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'shop' AND table_name = ?", [table]
        ).fetchone()[0]
        if held:
            return SourceTable(database=DATABASE_NAME, table=table)
    return None


def _file_rows(con: Any, folder: Path, table: str, mapping: SourceTable) -> tuple[str, tuple[str, ...]]:
    assert mapping.path is not None
    paths = sorted(glob.glob(str(folder / mapping.path)))
    if not paths:
        raise duckdb.Error(f"no file {mapping.path} in {folder.name or folder}")
    listed = "[" + ", ".join(_literal(path) for path in paths) + "]"
    if paths[0].endswith(".parquet"):
        return f"read_parquet({listed})", _names_of(con, f"read_parquet({listed})")
    return _text_rows(con, table, paths, listed, mapping)


def _text_rows(con: Any, table: str, paths: list[str], listed: str, mapping: SourceTable) -> tuple[str, tuple[str, ...]]:
    """Delimited text as rows of texts; lines that cannot be split are left to `_rejected_lines`."""
    delimiter = mapping.delimiter or ("\t" if ".tsv" in Path(paths[0]).name else ",")
    names = _header(paths[0], delimiter, mapping.encoding)
    if delimiter == "whitespace":
        parts = ", ".join(f"parts[{i}] AS {_quoted(name)}" for i, name in enumerate(names, start=1))
        lines = f"read_csv({listed}, columns = {{'line': 'VARCHAR'}}, delim = '\\0', quote = '', escape = '', header = true, auto_detect = false)"
        return f"(SELECT {parts} FROM (SELECT regexp_split_to_array(trim(line), '\\s+') AS parts FROM {lines}) WHERE parts[1] != '')", names
    columns = "{" + ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in names) + "}"
    options = f"""delim = {_literal(delimiter)}, quote = '"', escape = '"', header = true, auto_detect = false,
        encoding = {_literal(mapping.encoding)}, null_padding = false, store_rejects = true,
        rejects_table = {_literal(f"rejects_{table}")}, rejects_scan = {_literal(f"rejects_{table}_scan")}, rejects_limit = 0"""
    return f"read_csv({listed}, columns = {columns}, {options})", names


def _header(path: str, delimiter: str, encoding: str) -> tuple[str, ...]:
    """Column names of a text file's first line."""
    opened = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
    try:
        with opened as file:
            line = file.readline(1_000_000).decode("utf-8-sig" if encoding == "utf-8" else encoding).strip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError, LookupError) as error:
        raise duckdb.Error(f"{Path(path).name} cannot be read: {error}") from None
    names = line.split() if delimiter == "whitespace" else next(csv.reader([line], delimiter=delimiter), [])
    names = [name.strip() for name in names]
    if not any(names):
        raise duckdb.Error(f"{Path(path).name} is empty: no header line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise duckdb.Error(f"{Path(path).name} has columns named twice: {', '.join(map(repr, twice))}")
    return tuple(names)


def _database_rows(con: Any, folder: Path, table: str, mapping: SourceTable) -> tuple[str, tuple[str, ...]]:
    assert mapping.database is not None
    if mapping.database.startswith(("postgresql://", "postgres://")):
        query = mapping.query or f"SELECT * FROM {mapping.table}"
        reader = _postgres_reader(mapping.database, query)
        con.con.register(f"incoming_{table}", reader)
        return f"incoming_{table}", tuple(reader.schema.names)
    path = folder / mapping.database
    if not path.is_file():
        raise duckdb.Error(f"no database file {mapping.database} in {folder.name or folder}")
    name = _attach(con, path)
    if mapping.query:
        con.raw_sql(f"USE {name}")
        con.raw_sql(f"CREATE OR REPLACE TABLE tables.incoming_{table} AS {mapping.query}")
        con.raw_sql("USE tables")
        sql = f"tables.incoming_{table}"
    else:
        sql = f"{name}.{mapping.table}"
    return sql, _names_of(con, sql)


def _attach(con: Any, path: Path) -> str:
    """Attaches a DuckDB file, read-only, under the name it has on disk."""
    name = re.sub(r"\W", "_", path.stem)
    con.raw_sql(f"ATTACH IF NOT EXISTS {_literal(str(path))} AS {name} (READ_ONLY)")
    return name


def _postgres_reader(address: str, query: str) -> pa.RecordBatchReader:
    """The rows of a PostgreSQL query as a stream of Arrow batches."""
    import adbc_driver_postgresql.dbapi as postgres

    try:
        connection = postgres.connect(address)
        cursor = connection.cursor()
        cursor.execute(query)
        return cursor.fetch_record_batch()
    except postgres.Error as error:
        # The address may hold a password: the driver's text is shown without it.
        shown = re.sub(r"//[^@/]*@", "//", address)
        raise duckdb.Error(f"{shown}: {_first_line(error).replace(address, shown)}") from None


def _rows_reader(con: Any, table: str, rows: Sequence[Mapping[str, Any]] | None) -> Reader:
    def read() -> _Relation | None:
        if rows is None:
            return None
        names = COLUMN_NAMES[table]
        columns = {name: pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in names}
        con.con.register(f"incoming_{table}", pa.table(columns))
        used = tuple(name for name in names if columns[name].null_count < len(rows) or name in _required(table))
        return _Relation(f"incoming_{table}", used, SourceTable(), "the request")

    return read


def _as_text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else repr(value)


# From foreign rows to the contract


def _required(table: str) -> list[str]:
    """Columns without which a row means nothing; order_lines may take who and when from their order."""
    from_order = ("customer_id", "time") if table == "order_lines" else ()
    return [c.name for c in CONTRACT[table] if c.required and c.name not in from_order]


def _missing_columns(table: str, relation: _Relation) -> list[str]:
    found = relation.names
    return [
        f"column {name!r} is missing (found: {', '.join(found)}); map it under {relation.where}"
        for name in _required(table)
        if relation.expression(name) is None
    ]


def _stage(con: Any, table: str, relation: _Relation, settings: Settings) -> TableIntake:
    """Creates the view `table` of accepted rows over a table `staged_<table>` of all rows with a reason."""
    columns = CONTRACT[table]
    selected = ", ".join(f"{_raw(relation, column)} AS {_quoted('raw_' + column.name)}" for column in columns)
    where = f"WHERE {relation.mapping.filter}" if relation.mapping.filter else ""
    grouped = f"GROUP BY {', '.join(relation.mapping.group_by)}" if relation.mapping.group_by else ""
    raw = f"SELECT {selected} FROM {relation.sql} {where} {grouped}"
    if relation.mapping.group_by:
        raw += " ORDER BY ALL"  # groups come in no order of their own, and row numbers must not change from run to run
    numbered = f"SELECT row_number() OVER () AS row_number, * FROM ({raw})"
    from_order = table == "order_lines" and None in (relation.expression("customer_id"), relation.expression("time"))
    if from_order:
        numbered = _with_order(numbered)
    typed = ", ".join(f"{_typed(column, settings)} AS {_quoted(column.name)}" for column in columns)
    con.raw_sql(f"""
        CREATE OR REPLACE TABLE staged_{table} AS
        SELECT {", ".join(_quoted(c.name) for c in columns)}, row_number, {_reason(table, settings, from_order)} AS reason
        FROM (SELECT *, {typed} FROM ({numbered}))""")
    if relation.expression(ROW_ID.get(table, "")) is not None:
        _quarantine_duplicates(con, table)
    _create_view(con, table)
    unused = () if relation.mapping.columns else tuple(n for n in relation.names if n not in COLUMN_NAMES[table])
    return _intake(con, table, unused)


def _raw(relation: _Relation, column: Column) -> str:
    expression = relation.expression(column.name)
    return "NULL" if expression is None else f"({expression})"


def _with_order(numbered: str) -> str:
    """Order lines with who and when of their order where they do not say it themselves."""
    return f"""
        SELECT lines.* REPLACE (
            coalesce(lines.raw_customer_id::VARCHAR, orders.customer_id) AS raw_customer_id,
            coalesce(lines.raw_time::VARCHAR, {_utc_text("orders.time")}) AS raw_time,
            coalesce(lines.raw_known_time::VARCHAR, {_utc_text("orders.known_time")}) AS raw_known_time)
        FROM ({numbered}) AS lines
        LEFT JOIN (SELECT DISTINCT ON (order_id) order_id, customer_id, time, known_time FROM orders) AS orders
        ON orders.order_id = trim(lines.raw_order_id::VARCHAR)"""


def _utc_text(time: str) -> str:
    return f"strftime({time}, '%Y-%m-%dT%H:%M:%S.%f') || 'Z'"


def _typed(column: Column, settings: Settings) -> str:
    """SQL that makes the contract's type of a raw value; NULL where it cannot."""
    raw = _quoted("raw_" + column.name)
    match column.kind:
        case "id" | "text":
            return f"nullif(trim({raw}::VARCHAR), '')"
        case "time":
            return f"timezone('UTC', try_cast({raw} AS TIMESTAMPTZ))"
        case "date":
            return f"try_cast({raw} AS DATE)"
        case "money":
            scaled = f"round(try_cast({raw} AS DECIMAL(38, 9)) * {10**settings.currency_digits})"
            return f"try_cast({scaled} AS BIGINT)"
        case "number":
            return f"CASE WHEN isfinite(try_cast({raw} AS DOUBLE)) THEN try_cast({raw} AS DOUBLE) END"


def _reason(table: str, settings: Settings, from_order: bool) -> str:
    """SQL for why a row cannot be used; NULL when it can."""
    extract_time = settings.extract_time.astimezone(UTC) if settings.extract_time else datetime.now(UTC)
    latest = f"TIMESTAMP {_literal(extract_time.replace(tzinfo=None).isoformat(sep=' '))}"
    cases = []
    for column in CONTRACT[table]:
        name, present = _quoted(column.name), f"nullif(trim({_quoted('raw_' + column.name)}::VARCHAR), '') IS NOT NULL"
        if column.kind in _UNREADABLE:
            cases.append((f"{present} AND {name} IS NULL", f"{column.name} {_UNREADABLE[column.kind]}"))
        if column.required:
            missing = "no such order" if from_order and column.name == "customer_id" else f"no {column.name}"
            cases.append((f"{name} IS NULL", missing))
        if column.kind == "money":
            cases.append((f"abs({name}) > {MAX_MINOR_UNITS}", f"{column.name} is beyond belief"))
        if column.name == "time":
            cases.append((f"{name} > {latest}", "time is after the extract time"))
            cases.append((f"{name} < TIMESTAMP '1970-01-01'", "time is before 1970"))
    whens = " ".join(f"WHEN {condition} THEN {_literal(text)}" for condition, text in cases)
    return f"CASE {whens} END"


_UNREADABLE = {"time": "is not a time", "date": "is not a date", "money": "is not an amount", "number": "is not a number"}


def _quarantine_duplicates(con: Any, table: str) -> None:
    """Of accepted rows with one id, the first stays."""
    key = ROW_ID[table]
    con.raw_sql(f"""
        UPDATE staged_{table} SET reason = 'duplicate {key}'
        FROM (SELECT {key} AS id, min(row_number) AS first FROM staged_{table} WHERE reason IS NULL
              GROUP BY ALL HAVING count(*) > 1) AS twice
        WHERE reason IS NULL AND staged_{table}.{key} = twice.id AND row_number > twice.first""")


def _create_view(con: Any, table: str) -> None:
    """Accepted rows with the defaults of the contract filled in."""
    row_id = ROW_ID.get(table)
    filled = ["coalesce(known_time, time) AS known_time"]
    if row_id:
        filled.append(f"coalesce({row_id}, row_number::VARCHAR) AS {row_id}")
    con.raw_sql(f"""
        CREATE OR REPLACE VIEW {table} AS
        SELECT * EXCLUDE (row_number, reason) REPLACE ({", ".join(filled)}) FROM staged_{table} WHERE reason IS NULL""")


def _create_empty(con: Any, table: str) -> None:
    typed = ", ".join(f"{_quoted(column.name)} {_SQL_TYPE[column.kind]}" for column in CONTRACT[table])
    con.raw_sql(f"CREATE OR REPLACE TABLE staged_{table} ({typed}, row_number BIGINT, reason VARCHAR)")
    _create_view(con, table)


def _intake(con: Any, table: str, unused: tuple[str, ...]) -> TableIntake:
    rows = con.con.execute(
        f"SELECT reason, count(*), min(row_number), min(time), max(time) FROM staged_{table} GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    quarantined = {reason: count for reason, count, *_ in rows if reason is not None}
    first_rows = {reason: first for reason, _, first, *_ in rows if reason is not None}
    for reason, count, first in _rejected_lines(con, table):
        quarantined[reason], first_rows[reason] = count, first
    accepted = next(((count, start, last) for reason, count, _, start, last in rows if reason is None), (0, None, None))
    return TableIntake(
        table=table,
        rows_in=accepted[0] + sum(quarantined.values()),
        accepted=accepted[0],
        quarantined=quarantined,
        first_rows=first_rows,
        first_time=accepted[1],
        last_time=accepted[2],
        unused_columns=unused,
    )


def _rejected_lines(con: Any, table: str) -> list[tuple[str, int, int]]:
    """Lines of a text file that could not be split into its columns: reason, how many, the first."""
    exists = con.con.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [f"rejects_{table}"]).fetchone()[0]
    if not exists:
        return []
    return con.con.execute(f"""
        SELECT 'line cannot be read (' || lower(replace(error_type::VARCHAR, '_', ' ')) || ')', count(*), min(line) - 1
        FROM (SELECT line, min(error_type) AS error_type FROM rejects_{table} GROUP BY ALL) GROUP BY 1""").fetchall()


def _misread_columns(table: str, intake: TableIntake, settings: Settings) -> list[str]:
    """Columns of which so many values are unreadable that the format, not the value, must be wrong."""
    wrong = [reason for reason in intake.quarantined if reason.endswith(tuple(_UNREADABLE.values())) or "cannot be read" in reason]
    allowed = settings.max_malformed_share * intake.rows_in
    return [
        f"{intake.quarantined[reason]:,} of {intake.rows_in:,} rows: {reason} (first: row {intake.first_rows[reason]}); "
        f"say how to read it under [sources.{table}.columns], or raise max_malformed_share"
        for reason in wrong
        if intake.quarantined[reason] > allowed
    ]


# Small words


def _reasons(intake: TableIntake) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in intake.quarantined.items())


def _problem_list(table: str, problems: list[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return f"{table} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems)


def _names_of(con: Any, relation: str) -> tuple[str, ...]:
    return tuple(row[0] for row in con.con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall())


def _first_line(error: Exception) -> str:
    """What an engine says, without the values it quotes: they may be personal data."""
    text = str(error).strip()
    return re.sub(r"string '.*?'", "a value", text.splitlines()[0]) if text else type(error).__name__


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def describe(intake: TableIntake) -> str:
    """One line about a table for the data report."""
    span = f", {show_time(intake.first_time)} to {show_time(intake.last_time)}" if intake.first_time and intake.last_time else ""
    return f"{intake.table}: {intake.accepted:,} of {intake.rows_in:,} rows accepted{span}"


def as_json(intake: TableIntake) -> dict[str, Any]:
    """The same for programs."""
    return json.loads(json.dumps(intake.__dict__, default=str))
