"""From a shop's files and databases to `Tables`: the only input of the package.

Everything is read as text and made into the contract's types by SQL in DuckDB (`intake`), so that a file, a database
and rows sent to the service go through the same door. Values that cannot be used put their row into quarantine.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa

from features.delimited import path_list, read_text
from features.errors import ContractError, SettingsError
from features.intake import Foreign, create_empty, first_line, known_names, take_in
from features.quoting import literal
from features.settings import FILE_NAME, Settings, SourceTable, read_settings
from features.tables import COLUMN_NAMES, CONTRACT, TableIntake, Tables

FILE_ENDINGS = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz")
DATABASE_NAME = "shop.duckdb"
_SQLSTATES = {
    "22003": "a number is out of range",
    "22007": "a value is not a date or time",
    "22008": "a date or time is out of range",
    "22012": "division by zero",
    "22P02": "a value cannot be converted",
    "42501": "permission denied",
    "42601": "syntax error",
    "42703": "a column does not exist",
    "42804": "types do not match",
    "42883": "a function or operator does not exist",
    "42P01": "a table or view does not exist",
    "57014": "the query was cancelled",
}
_POSTGRES = ("postgresql://", "postgres://")
# The engine's own database, next to those of the shop that are attached.
_OWN = "tables"
_EPOCH = datetime(1970, 1, 1)
_NO_ORDERS = (
    "orders is missing; it is the one table that must be there: "
    f"orders{', orders'.join(FILE_ENDINGS[:3])}, or a path under [sources.orders] in {FILE_NAME}"
)

Progress = Callable[[str], None]
Reader = Callable[[], Foreign | None]


def load_settings(folder: Path, file: Path | None = None) -> Settings:
    """The settings of a shop: those in `file`, else in the folder's `tiercast.toml`, else the defaults."""
    if file is not None and not file.exists():
        raise SettingsError(f"there is no settings file {file}")
    return read_settings(file or folder / FILE_NAME, COLUMN_NAMES)


@contextlib.contextmanager
def open_folder(folder: Path, settings: Settings, progress: Progress = lambda _: None) -> Iterator[Tables]:
    """The contract's tables out of the files and databases of `folder`, for the length of a `with`.

    Accepted rows are held in a temporary DuckDB file that goes away at the end. Raises ContractError with all
    problems of all tables: a missing file or column, no paid order, a column that seems to be misread.
    """
    if not folder.is_dir():
        raise ContractError(
            f"{folder} is not a folder; give the folder that holds orders.parquet, orders.csv or {FILE_NAME}"
        )
    with _engine(settings) as con:
        tables = _load(con, {t: _folder_reader(con, folder, t, settings) for t in CONTRACT}, settings, progress)
        _require_paid_order(tables)
        yield tables


@contextlib.contextmanager
def open_rows(rows: Mapping[str, Sequence[Mapping[str, Any]]], settings: Settings) -> Iterator[Tables]:
    """The contract's tables out of rows in memory (table name -> rows), as an app sends them.

    A table that is not named is empty; `orders` is present even then. Unusable rows go to quarantine as those of a
    file do, and all of them may be.
    """
    held = {"orders": [], **rows}
    lenient = replace(settings, max_malformed_share=1.0)
    with _engine(settings, in_memory=True) as con:
        yield _load(con, {t: _rows_reader(con, t, held.get(t)) for t in CONTRACT}, lenient)


@contextlib.contextmanager
def _engine(settings: Settings, in_memory: bool = False) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        path = ":memory:"
        if not in_memory:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiercast-"))
            path = str(Path(folder) / f"{_OWN}.duckdb")
        con = ibis.duckdb.connect(path, autoinstall_known_extensions=False)
        stack.callback(con.disconnect)
        con.raw_sql(f"SET TimeZone = {literal(settings.timezone)}")
        yield con


def _load(con: Any, readers: Mapping[str, Reader], settings: Settings, progress: Progress = lambda _: None) -> Tables:
    """Takes in every table, then reports all problems at once."""
    problems: list[str] = []
    intakes: list[TableIntake] = []
    for table in CONTRACT:
        progress(table)
        try:
            foreign = readers[table]()
            intake, found = take_in(con, foreign, settings) if foreign else (None, [])
        except (duckdb.Error, ContractError) as error:
            foreign, intake, found = None, None, [first_line(error)]
        if intake:
            intakes.append(intake)
        else:
            create_empty(con, table)
        if found:
            problems.append(_listed(table, found))
        elif table == "orders" and foreign is None:
            problems.append(_NO_ORDERS)
    if problems:
        raise ContractError("\n".join(problems))
    return _tables(con, tuple(intakes), settings)


def _tables(con: Any, intakes: tuple[TableIntake, ...], settings: Settings) -> Tables:
    first_paid = con.con.execute("SELECT min(time) FROM orders WHERE amount > 0").fetchone()[0]
    last_order = next((i.last_time for i in intakes if i.table == "orders"), None)
    end = _next_midnight(last_order or _EPOCH, settings)
    return Tables(
        tables={table: con.table(table) for table in CONTRACT},
        present=frozenset(intake.table for intake in intakes),
        currency=settings.currency,
        currency_digits=settings.currency_digits,
        timezone=settings.timezone,
        intake=intakes,
        start=first_paid or end,
        end=end,
    )


def _require_paid_order(tables: Tables) -> None:
    if tables.start < tables.end:
        return
    orders = next(intake for intake in tables.intake if intake.table == "orders")
    if orders.accepted:
        raise ContractError(f"orders has no paid order: {orders.accepted:,} usable rows, none with a positive amount")
    if orders.rows_in:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in orders.quarantined.items())
        raise ContractError(f"orders has no usable row: {orders.rows_in:,} in, all quarantined ({reasons})")
    raise ContractError("orders has no rows")


def _next_midnight(last: datetime, settings: Settings) -> datetime:
    """The shop's first midnight after `last`, in UTC: where the data end when nothing else is said."""
    local = last.replace(tzinfo=UTC).astimezone(settings.zone)
    midnight = datetime(local.year, local.month, local.day, tzinfo=settings.zone) + timedelta(days=1)
    return midnight.astimezone(UTC).replace(tzinfo=None)


def _listed(table: str, problems: list[str]) -> str:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return f"{table} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems)


# Where the rows are


def _folder_reader(con: Any, folder: Path, table: str, settings: Settings) -> Reader:
    def read() -> Foreign | None:
        mapping = settings.sources.get(table) or _default_source(con, folder, table)
        if mapping is None:
            return None
        if mapping.path is not None:
            return _file_rows(con, folder, table, mapping)
        return _database_rows(con, folder, table, mapping)

    return read


def _foreign(table: str, sql: str, names: Sequence[str], mapping: SourceTable) -> Foreign:
    return Foreign(table, sql, tuple(names), mapping, where=f"[sources.{table}.columns]")


def _default_source(con: Any, folder: Path, table: str) -> SourceTable | None:
    """The contract-named file of `table`, or the table of that name in `shop.duckdb`."""
    found = [table + ending for ending in FILE_ENDINGS if (folder / (table + ending)).exists()]
    if (folder / DATABASE_NAME).exists() and table in _held_tables(con, _attach(con, folder / DATABASE_NAME)):
        found.append(DATABASE_NAME)
    if len(found) > 1:
        raise ContractError(f"found more than once: {', '.join(found)}; keep one, or say which under [sources.{table}]")
    if found == [DATABASE_NAME]:
        return SourceTable(database=DATABASE_NAME, table=table)
    return SourceTable(path=found[0]) if found else None


def _file_rows(con: Any, folder: Path, table: str, mapping: SourceTable) -> Foreign:
    paths = _matching_files(folder, mapping.path or "")
    if paths[0].suffix.lower() == ".parquet":
        sql = f"read_parquet({path_list(paths)})"
        return _foreign(table, sql, _names_in_parquet(con, sql, mapping), mapping)
    delimiter = mapping.delimiter or ("\t" if ".tsv" in paths[0].name.lower() else ",")
    text = read_text(paths, delimiter, mapping.encoding, f"rejects_{table}", known_names(table, mapping))
    foreign = _foreign(table, text.sql, text.names, mapping)
    return replace(foreign, rejects=text.rejects, has_faults=text.has_faults)


def _matching_files(folder: Path, pattern: str) -> list[Path]:
    place = folder / pattern
    if place.is_file():
        return [place]
    if place.is_dir():
        raise ContractError(f"{pattern} is a folder; name the files in it, as in path = '{pattern}/*.parquet'")
    anchor = place.anchor if Path(pattern).is_absolute() else ""
    try:
        found = sorted(p for p in Path(anchor or folder).glob(pattern.removeprefix(anchor)) if p.is_file())
    except ValueError as error:
        raise ContractError(f"path {pattern!r} is not a pattern of file names: {error}") from None
    if not found:
        raise ContractError(f"no file {pattern} in {folder.name or folder}")
    return found


def _database_rows(con: Any, folder: Path, table: str, mapping: SourceTable) -> Foreign:
    database = mapping.database or ""
    if database.startswith(_POSTGRES):
        sql = _copy_from_postgres(con, table, database, mapping)
        return _foreign(table, sql, _names_of(con, sql), mapping)
    if not (folder / database).is_file():
        raise ContractError(f"no database file {database} in {folder.name or folder}")
    alias = _attach(con, folder / database)
    if mapping.query is None:
        sql = f"{alias}.{mapping.table}"
        return _foreign(table, sql, _names_of(con, sql), mapping)
    sql = f"{_OWN}.incoming_{table}"
    con.raw_sql(f"USE {alias}")
    try:
        con.raw_sql(f"CREATE OR REPLACE TABLE {sql} AS {mapping.query}")
    finally:
        con.raw_sql(f"USE {_OWN}")
    return _foreign(table, sql, _names_of(con, sql), mapping)


def _attach(con: Any, path: Path) -> str:
    """Attaches a DuckDB file, read-only, and returns its name here: file names repeat and need not be SQL names."""
    alias = f"source_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    con.raw_sql(f"ATTACH IF NOT EXISTS {literal(str(path))} AS {alias} (READ_ONLY)")
    return alias


def _held_tables(con: Any, database: str) -> set[str]:
    held = (
        "SELECT table_name FROM duckdb_tables() WHERE database_name = $1 UNION ALL SELECT view_name FROM duckdb_views()"
    )
    return {row[0] for row in con.con.execute(f"{held} WHERE database_name = $1", [database]).fetchall()}


def _names_of(con: Any, relation: str) -> tuple[str, ...]:
    return tuple(row[0] for row in con.con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall())


def _names_in_parquet(con: Any, relation: str, mapping: SourceTable) -> tuple[str, ...]:
    try:
        return _names_of(con, relation)
    except (duckdb.DataError, duckdb.ProgrammingError, duckdb.InternalError):
        raise ContractError(f"{mapping.path} is not a whole Parquet file, or not one at all; copy it again") from None


def _copy_from_postgres(con: Any, table: str, address: str, mapping: SourceTable) -> str:
    """Copies the rows of a PostgreSQL table or query into the engine, batch by batch; returns the copy's name."""
    try:
        import adbc_driver_postgresql.dbapi as postgres
    except ImportError:
        raise ContractError("PostgreSQL needs one more package: pip install 'tiercast[postgres]'") from None
    secrets = _secrets(address)
    try:
        connection = postgres.connect(address)
    except postgres.Error as error:
        # The server has not seen a query yet, so its words hold no cells.
        said = _redacted(str(error).strip().partition("\n")[0], [address, *secrets])
        raise ContractError(f"{_shown(address)}: {said}") from None
    with connection:
        return _copied(con, table, connection, mapping, _shown(address))


def _copied(con: Any, table: str, connection: Any, mapping: SourceTable, shown: str) -> str:
    copy, stream = f"{_OWN}.incoming_{table}", f"stream_{table}"
    try:
        with connection.cursor() as cursor:
            cursor.execute(mapping.query or f"SELECT * FROM {mapping.table}")
            con.con.register(stream, cursor.fetch_record_batch())
            con.raw_sql(f"CREATE OR REPLACE TABLE {copy} AS SELECT * FROM {stream}")
            con.con.unregister(stream)
    except (connection.Error, pa.ArrowException, duckdb.Error) as error:
        kind = _postgres_kind(error)
        raise ContractError(f"{shown}: {'query' if mapping.query else 'table'} fails: {kind}") from None
    return copy


def _postgres_kind(error: Exception) -> str:
    """The kind of an error of PostgreSQL; its own words may quote cells."""
    state = getattr(error, "sqlstate", None)
    if state is None:
        # The driver gives no state for what fails after the first rows.
        return "an error in its rows (a division by zero, a value that cannot be converted, ...); run it there to see"
    return f"{_SQLSTATES[state]} (SQLSTATE {state})" if state in _SQLSTATES else f"SQLSTATE {state}"


def _shown(address: str) -> str:
    """A database address without user, password and options."""
    scheme, _, rest = address.partition("?")[0].partition("//")
    return f"{scheme}//{rest.rpartition('@')[2]}"


def _secrets(address: str) -> list[str]:
    """What may not be shown; raises ContractError where the password's own signs break the address apart."""
    user_info, _, rest = address.partition("//")[2].rpartition("@")
    if any(sign in user_info.replace(":", "", 1) for sign in "/@?#[]: "):
        raise ContractError(
            "the database's user or password has signs that an address cannot hold (/ @ ? # [ ] : or a blank); write "
            "them as %XX, or leave the password out and set PGPASSWORD"
        )
    options = urllib.parse.parse_qsl(rest.partition("?")[2])
    given = [user_info.partition(":")[2], *(value for key, value in options if "password" in key)]
    return [form for secret in given for form in (secret, urllib.parse.unquote(secret)) if form]


def _redacted(text: str, secrets: list[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _rows_reader(con: Any, table: str, rows: Sequence[Mapping[str, Any]] | None) -> Reader:
    def read() -> Foreign | None:
        if rows is None:
            return None
        columns = {
            name: pa.array([_as_text(row.get(name)) for row in rows], pa.string()) for name in COLUMN_NAMES[table]
        }
        con.con.register(f"incoming_{table}", pa.table(columns))
        required = {column.name for column in CONTRACT[table] if column.required}
        from_order = {"customer_id", "time"} if table == "order_lines" else set()
        used = [n for n in columns if columns[n].null_count < len(rows) or n in required - from_order]
        return Foreign(table, f"incoming_{table}", tuple(used), SourceTable(), "the request")

    return read


def _as_text(value: Any) -> str | None:
    """A value of a row as the text that a file would hold; signs that no file can hold are spelled out."""
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, date) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()
