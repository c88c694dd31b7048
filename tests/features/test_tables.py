"""The contract: what a value becomes, which rows are set aside and why, and what a moment knew."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from features.errors import ContractError, CutoffOutsideData, UsageRefused
from features.settings import Settings
from features.sources import open_folder, open_rows
from features.tables import COLUMN_NAMES, CONTRACT, Tables

Folder = Callable[[dict[str, Any]], Path]
GOOD = {"customer_id": "c1", "time": "2024-01-05T10:00:00Z", "amount": "5"}
EXTRACTED = Settings(extract_time=datetime(2025, 1, 1, tzinfo=UTC))
ORDER_HEADER = "order_id,customer_id,time,amount\n"


def values(tables: Tables, table: str, *columns: str) -> list[Any]:
    """Accepted values in the order of the rows' ids; tuples when there are several columns."""
    key = {"customers": "customer_id", "order_lines": "line_id"}.get(table, COLUMN_NAMES[table][3])
    found = tables.tables[table].order_by(key).to_pyarrow().to_pylist()
    return [tuple(row[c] for c in columns) if len(columns) > 1 else row[columns[0]] for row in found]


@contextmanager
def opened(settings: Settings = EXTRACTED, **rows: list[dict[str, Any]]) -> Iterator[Tables]:
    with open_rows(rows, settings) as tables:
        for intake in tables.intake:
            assert (
                intake.rows_in == intake.accepted + sum(intake.quarantined.values()) == len(rows.get(intake.table, []))
            )
            assert intake.quarantined.keys() == intake.first_rows.keys()
            assert intake.accepted == tables.tables[intake.table].count().execute()
        yield tables


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"order_id": f"{number:06d}", **row} for number, row in enumerate(rows)]


# Rows that cannot be used


REASONS: list[tuple[dict[str, Any], str]] = [
    ({"customer_id": None}, "no customer_id"),
    ({"customer_id": "  "}, "no customer_id"),
    ({"time": None}, "no time"),
    ({"time": "yesterday"}, "time is not a time"),
    ({"time": "2024-02-30"}, "time is not a time"),
    ({"time": "1/2/2024"}, "time is not a time"),
    ({"time": "infinity"}, "time is not a time"),
    ({"time": 1704067200}, "time is not a time"),
    ({"time": "0001-01-01"}, "time is before 1970"),
    ({"time": "1969-12-31T23:59:59.999999Z"}, "time is before 1970"),
    ({"time": "2025-01-01T00:00:00.000001Z"}, "time is after the extract time"),
    ({"time": "9999-12-31"}, "time is after the extract time"),
    ({"time": "290000-01-01"}, "time is after the extract time"),
    ({"known_time": "soon"}, "known_time is not a time"),
    ({"known_time": "infinity"}, "known_time is not a time"),
    ({"amount": None}, "no amount"),
    ({"amount": ""}, "no amount"),
    ({"amount": "12,50"}, "amount is not an amount"),
    ({"amount": "$5"}, "amount is not an amount"),
    ({"amount": float("nan")}, "amount is not an amount"),
    ({"amount": float("-inf")}, "amount is not an amount"),
    ({"amount": 1e40}, "amount is not an amount"),
    ({"amount": 1e28}, "amount is beyond belief"),
    ({"amount": "-100000000000.01"}, "amount is beyond belief"),
    ({"discount": "none"}, "discount is not an amount"),
]


def test_each_unusable_row_gets_its_reason_and_its_number() -> None:
    for place, (change, reason) in enumerate(REASONS):
        rows = [GOOD] * place + [GOOD | change] + [GOOD]
        with opened(orders=rows) as tables:
            assert dict(tables.intake[0].quarantined) == {reason: 1}, change
            assert dict(tables.intake[0].first_rows) == {reason: place + 1}, change
    print(f"{len(REASONS)} unusable rows")


@pytest.mark.parametrize(
    "change",
    [
        {"time": "2025-01-01T00:00:00Z"},
        {"time": "1970-01-01T00:00:00Z"},
        {"amount": "-100000000000.00"},
        {"amount": "1e3"},
        {"amount": " 7.50 "},
        {"amount": 0},
        {"known_time": "2031-01-01"},
        {"known_time": " "},
        {"discount": ""},
    ],
)
def test_rows_at_the_limit_are_used(change: dict[str, Any]) -> None:
    with opened(orders=[GOOD | change]) as tables:
        assert tables.intake[0].accepted == 1


def test_every_required_column_and_unreadable_kind_of_every_table_is_watched() -> None:
    valid = {"time": "2024-01-05", "known_time": "2024-01-05", "date": "2000-01-01", "money": "1", "number": "1"}
    watched = 0
    for table, columns in CONTRACT.items():
        full = {c.name: valid.get(c.kind, "x") for c in columns}
        for column in columns:
            if column.kind not in ("id", "text"):
                with opened(**({"orders": [GOOD]} | {table: [full | {column.name: "?"}]})) as tables:
                    intake = next(i for i in tables.intake if i.table == table)
                    assert [r.split(" is not a")[0] for r in intake.quarantined] == [column.name]
                    watched += 1
            if column.required:
                with opened(**({"orders": [GOOD]} | {table: [full | {column.name: None}, full]})) as tables:
                    intake = next(i for i in tables.intake if i.table == table)
                    assert list(intake.quarantined) == [f"no {column.name}"]
                    watched += 1
    print(f"{watched} columns watched")
    assert watched > 30


def test_of_rows_with_one_id_the_first_usable_one_stays() -> None:
    ids = ["a", "b", "a", None, "", "a", " b ", None]
    amounts = ["bad", "1", "2", "3", "4", "5", "6", "7"]
    rows = [GOOD | {"order_id": i, "amount": a} for i, a in zip(ids, amounts, strict=True)]
    with opened(orders=rows) as tables:
        assert dict(tables.intake[0].quarantined) == {"duplicate order_id": 2, "amount is not an amount": 1}
        assert dict(tables.intake[0].first_rows) == {"duplicate order_id": 6, "amount is not an amount": 1}
        assert values(tables, "orders", "order_id", "amount") == [
            ("4", 300),
            ("5", 400),
            ("8", 700),
            ("a", 200),
            ("b", 100),
        ]


def test_a_row_without_an_id_is_known_by_its_number() -> None:
    with opened(orders=[GOOD, GOOD | {"amount": "x"}, GOOD]) as tables:
        assert values(tables, "orders", "order_id") == ["1", "3"]


def test_garbage_goes_in_and_every_row_comes_out_once(folder_of: Folder) -> None:
    dice = random.Random(3)
    cells = [
        "",
        " ",
        "x",
        "-",
        "NaN",
        "1e400",
        "5",
        "5.005",
        "-3",
        "2024-01-01",
        "2024-13-01",
        "infinity",
        "9999-01-01",
        '"a\nb"',
        '"q""q"',
        "é",
        "\t",
        "NULL",
        "1970-01-01 00:00",
        "a,b",
        '"',
        "\0",
    ]
    lines = [",".join(dice.choice(cells[:-3]) for _ in range(4)) for _ in range(4000)]
    lines += [",".join(dice.choice(["1", "2"]) for _ in range(dice.choice([1, 3, 5, 7]))) for _ in range(200)]
    dice.shuffle(lines)
    folder = folder_of(
        {"orders.csv": "order_id,customer_id,time,amount\n" + "\n".join(["o,c,2024-01-01,5", *lines]) + "\n"}
    )
    with open_folder(folder, Settings(max_malformed_share=1.0)) as tables:
        intake = tables.intake[0]
        assert intake.rows_in == 4201 == intake.accepted + sum(intake.quarantined.values())
        assert len(intake.quarantined) > 8
        assert intake.accepted == tables.tables["orders"].count().execute() > 5
        print(f"{intake.rows_in} rows of garbage, {len(intake.quarantined)} reasons, {intake.accepted} usable")


def test_few_unreadable_values_are_set_aside_and_many_are_refused(folder_of: Folder) -> None:
    good = [f"o{i},c,2024-01-01,5" for i in range(198)]
    with open_folder(
        folder_of({"orders.csv": ORDER_HEADER + "\n".join([*good, "x,c,1.1.2024,5", "y,c,2024-01-01,5"])}), Settings()
    ) as t:
        assert dict(t.intake[0].quarantined) == {"time is not a time": 1}
        assert dict(t.intake[0].first_rows) == {"time is not a time": 199}
    bad = ["x,c,1.1.2024,5", "y,c,2.1.2024,abc", "z,c,3.1.2024,5"]
    with (
        pytest.raises(ContractError) as caught,
        open_folder(folder_of({"orders.csv": ORDER_HEADER + "\n".join(good + bad)}), Settings()),
    ):
        pass
    assert str(caught.value) == (
        "orders has 1 problem:\n"
        "  3 of 201 rows: time is not a time (first: row 199); say how to read it under [sources.orders.columns], "
        "or raise max_malformed_share"
    )


def test_rows_without_a_value_are_set_aside_however_many(folder_of: Folder) -> None:
    lines = "\n".join(["1,,2024-01-01,5"] * 9 + ["2,c,2024-01-01,5"])
    with open_folder(folder_of({"orders.csv": ORDER_HEADER + lines}), Settings()) as tables:
        assert (tables.intake[0].rows_in, tables.intake[0].accepted) == (10, 1)


# Money


@pytest.mark.parametrize(("currency", "digits"), [("USD", 2), ("VND", 0), ("KWD", 3), ("CLF", 4)])
def test_money_is_exact_in_minor_units(currency: str, digits: int) -> None:
    dice = random.Random(digits)
    texts = [
        "0.1",
        "-0.005",
        "0.005",
        "1.005",
        "-1.0005",
        "2.5",
        "3.5",
        "-2.5",
        "1e2",
        "00012.50",
        "+3",
        ".5",
        "99999999.99",
    ]
    texts += [f"{dice.randrange(-(10**9), 10**9)}.{dice.randrange(10**6):06d}" for _ in range(1500)]
    with opened(Settings(currency=currency), orders=numbered([GOOD | {"amount": text} for text in texts])) as tables:
        found = values(tables, "orders", "amount")
    wanted = [int((Decimal(t) * 10**digits).quantize(Decimal(1), ROUND_HALF_UP)) for t in texts]
    assert found == wanted
    print(f"{len(found)} amounts in {currency} equal to those of decimal arithmetic")


def test_doubles_of_parquet_mean_the_decimal_that_they_print_as(folder_of: Folder) -> None:
    amounts = [0.1 + 0.2, 1.005, -1.005, 2.675, 1e-12, 1e9 + 0.01, -0.0, 0.29 * 100]
    size = len(amounts)
    orders = pa.table(
        {
            "order_id": [str(i) for i in range(size)],
            "customer_id": ["c"] * size,
            "time": pa.array([datetime(2024, 1, 1)] * size, pa.timestamp("us")),
            "amount": amounts,
        }
    )
    with open_folder(folder_of({"orders.parquet": orders}), Settings()) as tables:
        assert values(tables, "orders", "amount") == [30, 101, -101, 268, 0, 100000000001, 0, 2900]


@pytest.mark.parametrize("kind", [pa.decimal128(20, 4), pa.float32(), pa.int64(), pa.string(), pa.decimal128(38, 20)])
def test_every_number_type_of_parquet_is_money(kind: pa.DataType, folder_of: Folder) -> None:
    amount = pa.array(["12", "-3"]).cast(pa.decimal128(38, 20)) if pa.types.is_decimal(kind) else pa.array([12, -3])
    orders = pa.table({"customer_id": ["c", "c"], "time": ["2024-01-01"] * 2, "amount": amount.cast(kind)})
    with open_folder(folder_of({"orders.parquet": orders}), Settings()) as tables:
        assert values(tables, "orders", "amount") == [1200, -300]


# Time


def times(settings: Settings, texts: list[Any]) -> list[datetime]:
    with opened(settings, orders=numbered([GOOD | {"time": text} for text in texts])) as tables:
        return values(tables, "orders", "time")


@pytest.mark.parametrize("zone", ["Asia/Ho_Chi_Minh", "Europe/London", "America/St_Johns", "UTC"])
def test_a_time_without_an_offset_is_local_time_of_the_shop(zone: str) -> None:
    dice = random.Random(1)
    local = [datetime(2020, 1, 1, 12) + timedelta(hours=dice.randrange(24 * 365 * 4)) for _ in range(500)]
    local += [
        datetime(2024, 3, 31, 0, 59, 59, 999999),
        datetime(2024, 3, 31, 2),
        datetime(2024, 10, 27, 2),
        datetime(2024, 1, 1),
    ]
    # fold=1: of an hour that comes twice, the second, so that nothing is known too early.
    wanted = [moment.replace(tzinfo=ZoneInfo(zone), fold=1) for moment in local]
    real = [
        moment.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) == m
        for moment, m in zip(wanted, local, strict=True)
    ]
    found = times(Settings(timezone=zone), [str(moment) for moment in local])
    compared = [
        (f, w.astimezone(UTC).replace(tzinfo=None))
        for f, w, is_real in zip(found, wanted, real, strict=True)
        if is_real
    ]
    assert [f for f, _ in compared] == [w for _, w in compared]
    assert len(compared) > 490
    print(f"{len(compared)} local times of {zone}")


def test_hours_that_do_not_exist_or_come_twice_are_read_as_the_later() -> None:
    found = times(Settings(timezone="Europe/London"), ["2024-03-31 01:30", "2024-10-27 01:30"])
    assert found == [datetime(2024, 3, 31, 1, 30), datetime(2024, 10, 27, 1, 30)]


def test_an_offset_counts_and_a_date_alone_is_the_shop_s_midnight() -> None:
    texts = [
        "2024-07-05T10:00:00Z",
        "2024-07-05T10:00:00+00:00",
        "2024-07-05 10:00:00-0330",
        "2024-07-05 10:00:00+07",
        "2024-07-05",
        datetime(2024, 7, 5, 10),
        datetime(2024, 7, 5, 10, tzinfo=timezone(timedelta(hours=-1))),
        date(2024, 7, 5),
    ]
    day = datetime(2024, 7, 5)
    hours = [10, 10, 13.5, 3, -7, 3, 11, -7]
    assert times(Settings(timezone="Asia/Ho_Chi_Minh"), texts) == [day + timedelta(hours=h) for h in hours]


def test_times_of_parquet_with_and_without_a_zone(folder_of: Folder) -> None:
    moment = datetime(2024, 7, 5, 10)
    kinds = [
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("s"),
        pa.timestamp("us", "UTC"),
        pa.timestamp("ms", "Asia/Tokyo"),
        pa.date32(),
    ]
    for kind, hour in zip(kinds, [3, 3, 3, 10, 10, -7], strict=True):
        cell = (
            pa.array([moment.date()], kind)
            if kind == pa.date32()
            else pa.array([moment], pa.timestamp("us")).cast(kind)
        )
        orders = pa.table({"customer_id": ["c"], "time": cell, "amount": [1]})
        with open_folder(folder_of({"orders.parquet": orders}), Settings(timezone="Asia/Ho_Chi_Minh")) as tables:
            assert values(tables, "orders", "time") == [datetime(2024, 7, 5) + timedelta(hours=hour)], kind


PROGRAM = """
import sys
from datetime import datetime
from pathlib import Path
from features.snapshot import build_snapshot, learn_spec
from features.sources import load_settings, open_folder
folder = Path(sys.argv[1])
with open_folder(folder, load_settings(folder)) as tables:
    frame = build_snapshot(tables, [datetime(2024, 6, 1)], learn_spec(tables, datetime(2024, 6, 1))).frame
    print(tables.start, tables.end, frame.to_csv())
"""


def test_the_machine_s_time_zone_changes_nothing(folder_of: Folder) -> None:
    lines = [f"{i},c{i % 5},2024-0{1 + i % 4}-{10 + i % 19} 0{i % 10}:30:00,{i}.5" for i in range(1, 60)]
    settings = 'timezone = "Europe/London"\nextract_time = 2024-12-01T00:00:00+01:00\n'
    folder = folder_of({"orders.csv": ORDER_HEADER + "\n".join(lines), "tiercast.toml": settings})
    said = {}
    for zone in ("Asia/Tokyo", "America/Los_Angeles"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=os.environ | {"TZ": zone},
            capture_output=True,
            check=True,
            text=True,
        )
        said[zone] = done.stdout
    assert said["Asia/Tokyo"] == said["America/Los_Angeles"]
    assert said["Asia/Tokyo"].count("\n") == 7
    print(f"{len(said)} values of TZ, {len(lines)} orders")


# Order lines


ORDERS = [
    GOOD | {"order_id": "o1", "known_time": "2024-02-01T00:00:00Z"},
    GOOD | {"order_id": "o2", "customer_id": "c2", "time": "2024-03-01T00:00:00.123456Z"},
    GOOD | {"order_id": "o3", "amount": "bad"},
    GOOD,
]


def test_lines_take_customer_time_and_known_time_from_their_order() -> None:
    lines = [{"order_id": "o1", "product_id": "p"}, {"order_id": " o2 ", "product_id": "q"}]
    with opened(orders=ORDERS, order_lines=lines) as tables:
        assert values(tables, "order_lines", "customer_id", "time", "known_time") == [
            ("c1", datetime(2024, 1, 5, 10), datetime(2024, 2, 1)),
            ("c2", datetime(2024, 3, 1, 0, 0, 0, 123456), datetime(2024, 3, 1, 0, 0, 0, 123456)),
        ]


def test_lines_without_a_usable_order_have_no_such_order() -> None:
    lines = [{"order_id": i} for i in ("o1", "nope", "o3", "4", None)]
    with opened(orders=ORDERS, order_lines=lines) as tables:
        assert dict(tables.intake[1].quarantined) == {"no such order": 3, "no order_id": 1}
        assert dict(tables.intake[1].first_rows) == {"no such order": 2, "no order_id": 5}


def test_lines_with_their_own_customer_and_time_need_no_order() -> None:
    own = {"time": "2024-05-01T00:00:00Z", "customer_id": "x"}
    lines = [
        own | {"order_id": "nope"},
        own | {"order_id": "o1", "customer_id": None},
        own | {"order_id": "o1", "time": None},
    ]
    with opened(orders=ORDERS, order_lines=lines) as tables:
        assert dict(tables.intake[1].quarantined) == {"no customer_id": 1, "no time": 1}
        assert values(tables, "order_lines", "customer_id", "known_time") == [("x", datetime(2024, 5, 1))]


def test_lines_with_only_a_customer_of_their_own_still_need_their_order() -> None:
    lines = [{"order_id": "nope", "customer_id": "x"}, {"order_id": "o1", "customer_id": "x"}, {"order_id": "o2"}]
    with opened(orders=ORDERS, order_lines=lines) as tables:
        assert dict(tables.intake[1].quarantined) == {"no such order": 1}
        assert values(tables, "order_lines", "customer_id") == ["x", "c2"]


# What a moment knew


def test_history_is_before_the_cutoff_and_known_by_it() -> None:
    cutoff = datetime(2024, 6, 1)
    tick = timedelta(microseconds=1)
    moments = [
        (cutoff - tick, None),
        (cutoff, None),
        (cutoff + tick, None),
        (cutoff - tick, cutoff),
        (cutoff - tick, cutoff + tick),
    ]
    rows = [GOOD | {"time": t.replace(tzinfo=UTC), "known_time": k and k.replace(tzinfo=UTC)} for t, k in moments]
    with opened(orders=numbered(rows)) as tables:
        found = tables.before(cutoff).orders.order_by("order_id").to_pyarrow().to_pydict()
    assert (found["order_id"], found["age_us"]) == (["000000", "000003"], [1, 1])


def test_a_cutoff_with_microseconds_cuts_there() -> None:
    with opened(
        orders=numbered([GOOD | {"time": f"2024-05-31T23:59:59.{i:06d}Z"} for i in (999997, 999998, 999999)])
    ) as tables:
        ages = (
            tables.before(datetime(2024, 5, 31, 23, 59, 59, 999999)).orders.order_by("order_id").to_pyarrow()["age_us"]
        )
    assert ages.to_pylist() == [2, 1]


def test_a_cutoff_with_a_time_zone_is_refused() -> None:
    with opened(orders=[GOOD]) as tables, pytest.raises(UsageRefused, match="has a time zone; give it in UTC"):
        tables.before(datetime(2024, 6, 1, tzinfo=UTC))


def test_the_data_start_with_a_paid_order_and_end_at_the_shop_s_midnight() -> None:
    rows = [GOOD | {"time": "2024-01-01", "amount": "-5"}, GOOD | {"time": "2024-01-03 09:00"}]
    rows.append(GOOD | {"time": "2024-10-27 00:30"})
    with opened(Settings(timezone="Europe/London"), orders=rows) as tables:
        assert (tables.start, tables.end) == (datetime(2024, 1, 3, 9), datetime(2024, 10, 28))
        tables.require_inside(datetime(2024, 10, 28))
        for outside in (datetime(2024, 1, 3, 9), datetime(2024, 10, 28, 0, 0, 0, 1)):
            with pytest.raises(
                CutoffOutsideData, match="outside the data: orders start 2024-01-03 09:00:00 and end 2024-10-28"
            ):
                tables.require_inside(outside)


@pytest.mark.parametrize(
    "rows",
    [{}, {"orders": []}, {"orders": [{}]}, {"orders": [GOOD | {"amount": "x"}]}, {"events": [{"type": "visit"}]}],
)
def test_rows_of_which_none_is_usable_make_empty_tables(rows: dict[str, list[dict[str, Any]]]) -> None:
    with opened(**rows) as tables:
        assert tables.present == {"orders", *rows}
        assert [name for name in CONTRACT if tables.tables[name].count().execute()] == []
        assert [tuple(tables.tables[name].columns) for name in CONTRACT] == [COLUMN_NAMES[name] for name in CONTRACT]
        with pytest.raises(CutoffOutsideData):
            tables.require_inside(datetime(2024, 1, 1))


def test_values_that_no_file_can_hold_do_not_end_in_another_error() -> None:
    odd: list[Any] = [
        "\ud800",
        "a\0b",
        [],
        {},
        True,
        b"x",
        Decimal("1.5"),
        object(),
        "x" * 100_000,
        "'; DROP TABLE orders",
    ]
    with opened(orders=[GOOD | {column: value} for column in COLUMN_NAMES["orders"] for value in odd]) as tables:
        intake = tables.intake[0]
        print(f"{intake.rows_in} odd values, {intake.accepted} usable")
        assert intake.rows_in == len(odd) * len(COLUMN_NAMES["orders"])


def test_of_two_rows_with_one_id_the_one_known_first_stays_wherever_it_stands() -> None:
    later = {"order_id": "a", "customer_id": "c1", "time": "2024-03-01", "amount": "9"}
    late_news = {"order_id": "b", "customer_id": "c1", "time": "2024-01-01", "known_time": "2024-03-02", "amount": "9"}
    first = {"order_id": "a", "customer_id": "c1", "time": "2024-01-05", "amount": "5"}
    prompt = {"order_id": "b", "customer_id": "c1", "time": "2024-01-06", "amount": "6"}
    with open_rows({"orders": [later, late_news, first, prompt]}, Settings()) as tables:
        assert tables.intake[0].quarantined == {"duplicate order_id": 2}
        kept = tables.before(datetime(2024, 2, 1)).orders.order_by("order_id").to_pyarrow()["amount"].to_pylist()
    assert kept == [500, 600]


def test_the_data_end_with_the_orders_whatever_other_tables_hold() -> None:
    order = {"customer_id": "c1", "time": "2024-01-31T10:00:00", "amount": "5"}
    event = {"customer_id": "c1", "time": "2024-04-30", "type": "visit"}
    with open_rows({"orders": [order], "events": [event]}, Settings()) as tables:
        assert tables.end == datetime(2024, 2, 1)
