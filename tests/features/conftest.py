"""Folders of files, and a shop of random customers on and around every window's edge."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Row = dict[str, Any]
CUTOFF = datetime(2025, 3, 1)
MICROSECOND = timedelta(microseconds=1)
WINDOWS = (7, 14, 28, 90, 180, 365)
EVENT_TYPES = ("visit", "cart", "email_open", "email_click")


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """File name -> text, bytes or Arrow table, written into one folder."""

    def write(files: Mapping[str, Any]) -> Path:
        for name, content in files.items():
            if isinstance(content, pa.Table):
                pq.write_table(content, tmp_path / name)
            else:
                (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write


@dataclass(frozen=True)
class RandomShop:
    """Rows of the contract's tables, `time` and `known_time` as datetimes, amounts in cents."""

    cutoff: datetime
    rows: Mapping[str, list[Row]]

    def sent(self) -> dict[str, list[Row]]:
        """The rows as `open_rows` takes them."""
        return {table: [_sent(row) for row in rows] for table, rows in self.rows.items()}


def _sent(row: Row) -> Row:
    times = {key: row[key].isoformat() + "Z" for key in ("time", "known_time") if row.get(key)}
    money = {key: f"{row[key] / 100:.2f}" for key in ("amount", "discount") if row.get(key) is not None}
    return row | times | money


@pytest.fixture(scope="session")
def random_shop() -> RandomShop:
    """360 customers: many with one order, some with refunds or free orders only, rows before and after the cutoff."""
    dice = random.Random(5)
    rows: dict[str, list[Row]] = {"orders": [], "events": [], "exposures": []}
    for number in range(360):
        for table, own in _customer(dice, number).items():
            rows[table] += [{"customer_id": f"customer-{number:03d}", **row} for row in own]
    return RandomShop(CUTOFF, rows)


def _customer(dice: random.Random, number: int) -> dict[str, list[Row]]:
    orders = [_moment(dice) | _money(dice, number) for _ in range(dice.choice([1, 1, 2, 3, 8, 20]))]
    events = [_moment(dice) | {"type": dice.choice(EVENT_TYPES)} for _ in range(dice.choice([0, 0, 3, 12]))]
    arms = ["treated", "control", None]
    exposures = [_moment(dice) | {"arm": dice.choice(arms)} for _ in range(dice.choice([0, 2, 5]))]
    return {"orders": orders, "events": events, "exposures": exposures}


def _moment(dice: random.Random) -> Row:
    edge = timedelta(days=dice.choice((0, *WINDOWS, 1, 30))) + dice.choice([-1, 0, 0, 1]) * MICROSECOND
    anywhere = timedelta(microseconds=dice.randrange(-30 * 86_400_000_000, 700 * 86_400_000_000))
    time = CUTOFF - dice.choice([edge, anywhere, anywhere])
    delay = dice.choice([timedelta(0), timedelta(hours=5), timedelta(days=40)])
    known = dice.choice([None, None, time + delay, CUTOFF, CUTOFF + MICROSECOND])
    return {"time": time, "known_time": known}


def _money(dice: random.Random, number: int) -> Row:
    if number % 20 == 0:
        return {"amount": dice.choice([0, -500]), "discount": None}
    amount = dice.choice([dice.randrange(1, 30_000)] * 8 + [0, -dice.randrange(1, 9_000)])
    return {"amount": amount, "discount": dice.choice([None, 0, dice.randrange(1, 900)])}
