"""From the customers of a request to the rows of the data contract, one history each, kept apart from one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from features.tables import CONTRACT

Row = dict[str, Any]


def rows_of(customers: Sequence[Mapping[str, Any]], needed_tables: Iterable[str]) -> dict[str, list[Row]]:
    """customers (each a mapping of table name -> rows) -> table name -> rows, as `open_rows` takes them.

    Each row gets its customer's place in the request ("0", "1", ...) for a `customer_id`, whatever it says itself, and
    its row and order ids are put behind that place: two customers with an order "1" do not disturb each other, and no
    customer id enters the engine. `needed_tables` are in the result even when nobody sent rows of them.
    """
    tables: dict[str, list[Row]] = {table: [] for table in CONTRACT if table in set(needed_tables)}
    for place, customer in enumerate(customers):
        for table in CONTRACT:
            rows = [_row_of(str(place), table, row) for row in customer.get(table) or ()]
            if rows:
                tables.setdefault(table, []).extend(rows)
    return tables


def _row_of(place: str, table: str, row: Mapping[str, Any]) -> Row:
    own = {column: _behind(place, row[column]) for column in _ID_COLUMNS[table] if column in row}
    return {**row, **own, "customer_id": place}


def _behind(place: str, row_id: str | None) -> str | None:
    """An id within its customer; blanks around it do not count, and a blank id is none, as in the engine."""
    stripped = (row_id or "").strip(" ")
    return f"{place}:{stripped}" if stripped else None


_ID_COLUMNS = {
    table: tuple(c.name for c in columns if c.kind == "id" and c.name != "customer_id")
    for table, columns in CONTRACT.items()
}
