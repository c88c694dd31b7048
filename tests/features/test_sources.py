"""Every place that rows can come from, and every way in which such a place can be broken."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import ContractError, Refused
from features.settings import Settings, SourceTable
from features.sources import load_settings, open_folder
from features.tables import TableIntake, Tables

Folder = Callable[[Mapping[str, Any]], Path]
HEADER = "order_id,customer_id,time,amount\n"
ORDERS = HEADER + "a,c1,2024-01-05 10:00:00,12.50\nb,c2,2024-01-06,3\nc,c1,2024-02-01,-2.5\n"
HELD = [
    ("a", "c1", datetime(2024, 1, 5, 10), 1250),
    ("b", "c2", datetime(2024, 1, 6), 300),
    ("c", "c1", datetime(2024, 2, 1), -250),
]


def orders_of(tables: Tables) -> list[tuple[Any, ...]]:
    found = tables.tables["orders"].order_by("order_id").to_pyarrow().to_pylist()
    return [tuple(row[column] for column in ("order_id", "customer_id", "time", "amount")) for row in found]


def read(folder: Path) -> tuple[list[tuple[Any, ...]], TableIntake]:
    with open_folder(folder, load_settings(folder)) as tables:
        intake = tables.intake[[i.table for i in tables.intake].index("orders")]
        assert intake.rows_in == intake.accepted + sum(intake.quarantined.values())
        return orders_of(tables), intake


def refusal(folder: Path) -> str:
    with pytest.raises(Refused) as caught, open_folder(folder, load_settings(folder)):
        pass
    return str(caught.value)


def arrow_orders() -> pa.Table:
    rows = [{"order_id": i, "customer_id": c, "time": t, "amount": a / 100} for i, c, t, a in HELD]
    return pa.Table.from_pylist(rows)


# Files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("orders.csv", ORDERS),
        ("orders.csv", ORDERS.replace("\n", "\r\n")),
        ("orders.csv", ORDERS.replace("\n", "\r")),
        ("orders.csv", ORDERS.rstrip("\n")),
        ("orders.csv", ORDERS.replace("\n", "\n\n")),
        ("orders.csv", b"\xef\xbb\xbf" + ORDERS.encode()),
        ("orders.csv", ORDERS.replace("order_id,customer_id", '"order_id", customer_id')),
        ("orders.txt", ORDERS),
        ("orders.tsv", ORDERS.replace(",", "\t")),
        ("orders.csv.gz", gzip.compress(ORDERS.encode())),
        ("orders.csv.gz", gzip.compress(ORDERS[:60].encode()) + gzip.compress(ORDERS[60:].encode())),
        ("orders.tsv.gz", gzip.compress(ORDERS.replace(",", "\t").encode())),
        ("orders.parquet", arrow_orders()),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(name: str, content: Any, folder_of: Folder) -> None:
    found, intake = read(folder_of({name: content}))
    assert found == HELD
    assert (intake.rows_in, intake.unused_columns) == (3, ())


def test_quotes_hold_delimiters_line_breaks_and_quotes(folder_of: Folder) -> None:
    text = HEADER + '"a,1","c\n1",2024-01-05,"12.50"\n"b""2""",c2,2024-01-06,3\n'
    found, _ = read(folder_of({"orders.csv": text}))
    assert [(row[0], row[1]) for row in found] == [("a,1", "c\n1"), ('b"2"', "c2")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_read_when_it_is_said(encoding: str, folder_of: Folder) -> None:
    settings = f'[sources.orders]\npath = "orders.csv"\nencoding = "{encoding}"'
    files = {"orders.csv": ORDERS.replace("c2", "é2").encode(encoding), "tiercast.toml": settings}
    assert [row[1] for row in read(folder_of(files))[0]] == ["c1", "é2", "c1"]


def test_another_encoding_that_is_not_said_is_refused(folder_of: Folder) -> None:
    message = refusal(folder_of({"orders.csv": ORDERS.replace("c2", "é2").encode("latin-1")}))
    assert message == (
        "orders has 1 problem:\n"
        "  1 of 3 rows: line cannot be read (invalid encoding) (first: row 2); say how its lines are split (delimiter, "
        "encoding) under [sources.orders], or raise max_malformed_share"
    )
    assert "is not utf-8 text" in refusal(folder_of({"orders.csv": ORDERS.replace("time", "temps é").encode("utf-16")}))


def test_columns_between_blanks(folder_of: Folder) -> None:
    text = " order_id  customer_id\ttime amount\n\n a c1 2024-01-05T10:00:00  12.50\n"
    text += "\t b\tc2 2024-01-06 3 \nc c1 2024-02-01 -2.5\n"
    settings = '[sources.orders]\npath = "sales.txt"\ndelimiter = "whitespace"'
    found, intake = read(folder_of({"sales.txt": text, "tiercast.toml": settings}))
    assert (found, intake.rows_in) == (HELD, 3)


def test_columns_between_blanks_with_too_few_or_too_many_words(folder_of: Folder) -> None:
    text = "order_id customer_id time amount\na c 2024-01-05\nb c 2024-01-06 3\nc c 2024-01-06 3 extra\n"
    settings = 'max_malformed_share = 1.0\n[sources.orders]\npath = "sales.txt"\ndelimiter = "whitespace"'
    _, intake = read(folder_of({"sales.txt": text, "tiercast.toml": settings}))
    assert dict(intake.first_rows) == {
        "line cannot be read (missing columns)": 1,
        "line cannot be read (too many columns)": 3,
    }


def test_several_files_of_one_table(folder_of: Folder) -> None:
    settings = '[sources.orders]\npath = "20*.csv"'
    lines = ORDERS.splitlines(keepends=True)
    files = {"2023.csv": HEADER + lines[1], "2024.csv": HEADER + "".join(lines[2:]), "tiercast.toml": settings}
    assert read(folder_of(files))[0] == HELD
    files["2024.csv"] = "customer_id,order_id,time,amount\n" + "".join(lines[2:])
    assert "2024.csv and 2023.csv have different headers" in refusal(folder_of(files))


def test_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    for name in ("shop[1]", "shop1", "a*b?"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "orders.csv").write_text(ORDERS.replace("c2", name[:5]), encoding="utf-8")
        assert read(tmp_path / name)[0][1][1] == name[:5]


@pytest.mark.parametrize("name", ["orders.csv", "orders.parquet"])
def test_folders_named_as_patterns_are_read_beside_those_that_they_match(name: str, tmp_path: Path) -> None:
    pairs = [("s[12]", "s1"), ("q?", "qz"), ("x*", "xy"), ("b]", "b")]
    for folder in (folder for pair in pairs for folder in pair):
        shop = tmp_path / folder
        shop.mkdir()
        if name == "orders.csv":
            (shop / name).write_text(ORDERS.replace("c2", folder), encoding="utf-8")
        else:
            table = arrow_orders()
            pq.write_table(table.set_column(1, "customer_id", pa.array(["c1", folder, "c1"])), shop / name)
    ways = [SourceTable(path=path) for path in (name, "ord*" + Path(name).suffix)]
    read_rows = 0
    for folder in (folder for pair in pairs for folder in pair):
        for way in ways:
            with open_folder(tmp_path / folder, Settings(sources={"orders": way})) as tables:
                assert [row[1] for row in orders_of(tables)] == ["c1", folder, "c1"]
                read_rows += 3
    print(f"{read_rows} rows of {len(pairs) * 2} folders")
    pattern = Settings(sources={"orders": SourceTable(path="s[12]/" + name.replace("ord", "[no]rd"))})
    with open_folder(tmp_path, pattern) as tables:  # in `path` signs are a pattern, where no file has the name itself
        assert {row[1] for row in orders_of(tables)} == {"c1", "s1"}


CELLS = ["c1 anna@example.com", "2024-13-45", "777", "anna", "12"]
PERSONAL = 'who,when,x,paid,time\nc1 anna@example.com,2024-13-45,777,"12\nanna",2024-01-01\n'
LEAKS = [
    "who::INT[]",
    "json_extract(who, '$.a')",
    "x::INT::TINYINT",
    '"when"::TIMESTAMP',
    "paid::DECIMAL(18, 2)",
    "who::INT",
    "strptime(who, '%Y')",
    "error(who)",
    "timezone(who, now())",
    "make_date(x::INT, 99, 1)",
    "(who::JSON).a",
    "chr(x::INT * 10000)",
]


def test_no_error_of_the_engine_quotes_a_cell(folder_of: Folder) -> None:
    folder = folder_of({"a.csv": PERSONAL})
    with duckdb.connect() as con:
        con.execute(f"CREATE VIEW cells AS SELECT * FROM read_csv('{folder}/a.csv', all_varchar = true)")
        raw = [_engine_says(con, expression) for expression in LEAKS]
    quoting = sum(any(cell in text for cell in CELLS) for text in raw)
    checked = found = 0
    for expression in LEAKS:
        columns = {"customer_id": "who", "time": "time", "amount": expression}
        for key in ("columns", "filter", "group_by"):
            message = (
                refused_mapping(folder, columns, expression, key).replace(expression, "").replace(repr(expression), "")
            )
            assert "error" in message, message
            checked += 1
            found += any(cell in message for cell in CELLS)
    print(f"{checked} errors checked, {found} quote a cell; of {len(raw)} of the engine's own {quoting} do")
    assert (found, checked, quoting) == (0, 3 * len(LEAKS), len(LEAKS))


def _engine_says(con: Any, expression: str) -> str:
    with pytest.raises(duckdb.Error) as caught:
        con.execute(f"SELECT max(({expression})::VARCHAR) FROM cells").fetchall()
    return str(caught.value)


def refused_mapping(folder: Path, columns: dict[str, str], expression: str, key: str) -> str:
    fine = columns | {"amount": "1"}
    mappings = {
        "columns": SourceTable(path="a.csv", columns=columns),
        "filter": SourceTable(path="a.csv", columns=fine, filter=f"({expression})::VARCHAR <> ''"),
        "group_by": SourceTable(path="a.csv", columns=fine, group_by=("who", "time", expression)),
    }
    with (
        pytest.raises(ContractError) as caught,
        open_folder(folder, Settings(sources={"orders": mappings[key]})),
    ):
        pass
    return str(caught.value)


HEADERLESS = {
    "a row": ("c1 anna@example.com,2024-01-01,777\nc2,2024-01-02,5\n", {}, "of 3 columns"),
    "equal cells": ("anna,2024-01-01,777,777\nc2,2024-01-02,5,5\n", {}, "4 columns, some of them equal"),
    "another delimiter": ("anna;777\nb;5\n", {}, "of 1 column,"),
    "a mapping of others": (
        "anna,777,NULL,sale,12\nb,5,x,y,5\n",
        {"time": '"when"', "amount": "12 * nullif(x, 'sale') -- anna"},
        "of 5 columns",
    ),
}


@pytest.mark.parametrize("case", HEADERLESS)
def test_a_first_line_that_is_no_header_is_not_shown(case: str, folder_of: Folder) -> None:
    text, columns, said = HEADERLESS[case]
    mapping = SourceTable(path="a.csv", columns=columns)
    with (
        pytest.raises(ContractError) as caught,
        open_folder(folder_of({"a.csv": text}), Settings(sources={"orders": mapping})),
    ):
        pass
    message = str(caught.value)
    assert said in message and "does not look like a header" in message
    cells = text.splitlines()[0].replace(";", ",").split(",")
    assert [cell for cell in cells if cell in message] == []
    print(f"{len(cells)} cells, none shown")


def test_a_foreign_header_is_shown_when_one_name_is_known(folder_of: Folder) -> None:
    folder = folder_of({"orders.csv": "Customer_ID,Total\nc,5\n", "b.csv": "kunde,summe\nc,5\n"})
    assert "(found: Customer_ID, Total)" in refusal(folder)
    mapping = SourceTable(path="b.csv", columns={"amount": 'round("Summe"::DOUBLE)'})
    with pytest.raises(ContractError, match=r"found: kunde, summe\)"):
        open_folder(folder, Settings(sources={"orders": mapping})).__enter__()
    pq.write_table(pa.table({"kunde": ["c"]}), folder / "c.parquet")
    with pytest.raises(ContractError, match=r"found: kunde\)"):
        open_folder(folder, Settings(sources={"orders": SourceTable(path="c.parquet")})).__enter__()


def test_rows_keep_their_numbers_between_lines_that_cannot_be_read(folder_of: Folder) -> None:
    rows = [
        "a,c,2024-01-05,1",
        "b,c,2024-01-05",
        "c,c,2024-01-05,x",
        "d,c,2024-01-05,1,2",
        "e,c,2024-01-05,1",
        "f,,2024-01-05,1",
    ]
    files = {"orders.csv": HEADER + "\n".join(rows), "tiercast.toml": "max_malformed_share = 1"}
    _, intake = read(folder_of(files))
    assert dict(intake.first_rows) == {
        "line cannot be read (missing columns)": 2,
        "amount is not an amount": 3,
        "line cannot be read (too many columns)": 4,
        "no customer_id": 6,
    }
    assert (intake.rows_in, intake.accepted) == (6, 2)


def test_bytes_of_zero_within_a_row_do_no_harm(folder_of: Folder) -> None:
    found, intake = read(folder_of({"orders.csv": ORDERS.replace("c2", "c\0")}))
    assert (found[1][1], intake.accepted) == ("c\0", 3)


LONG = HEADER + "".join(f"o{i},c{i % 9},2024-01-05,{i % 50}.25\n" for i in range(20_000))
ZIPPED = gzip.compress(LONG.encode())
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({n: [str(i) for i in range(9000)] for n in ("customer_id", "time", "amount")}), PARQUET)
PARQUET_BYTES = PARQUET.getvalue().to_pybytes()


def flipped(content: bytes, start: int, length: int) -> bytes:
    start %= len(content)
    return content[:start] + bytes(b ^ 255 for b in content[start : start + length]) + content[start + length :]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "orders is missing; it is the one table that must be there: orders.parquet, orders.csv"),
    "only events": ({"events.csv": "customer_id,time,type\n"}, "orders is missing"),
    "0 bytes": ({"orders.csv": b""}, "orders has 1 problem:\n  orders.csv is empty: no header line"),
    "a byte order mark": ({"orders.csv": b"\xef\xbb\xbf"}, "orders.csv is empty"),
    "blank lines": ({"orders.csv": "\n\n\n"}, "orders.csv is empty"),
    "header only": ({"orders.csv": HEADER}, "orders has no rows"),
    "two files": (
        {"orders.csv": ORDERS, "orders.parquet": b"x"},
        "found more than once: orders.parquet, orders.csv; keep one",
    ),
    "equal headers": (
        {"orders.csv": HEADER.replace("order_id", "amount") + "1,2,3,4"},
        "orders.csv has columns named twice: 'amount'",
    ),
    "headers equal but for case": (
        {"orders.csv": HEADER.replace("order_id", "TIME") + "1,2,3,4"},
        "columns named twice: 'TIME', 'time'",
    ),
    "other columns": ({"orders.csv": "a,b\n1,2\n"}, "column 'customer_id' is missing (the first line, of 2 columns, "),
    "another delimiter": (
        {"orders.csv": ORDERS.replace(",", ";")},
        "the first line, of 1 column, does not look like a header; check it, and the delimiter",
    ),
    "random bytes": ({"orders.csv": random.Random(1).randbytes(5000)}, "orders has 1 problem"),
    "random bytes, one line": (
        {"orders.csv": bytes(b or 1 for b in random.Random(2).randbytes(200_000) if b not in b"\r\n")},
        "orders has 1",
    ),
    "a picture": ({"orders.csv": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(500)}, "orders has 1 problem"),
    "a Parquet file named csv": ({"orders.csv": PARQUET_BYTES}, "orders has 1 problem"),
    "a zip named csv": ({"orders.csv": ZIPPED}, "orders has 1 problem"),
    "gz cut in half": ({"orders.csv.gz": ZIPPED[: len(ZIPPED) // 2]}, "orders.csv.gz is not a whole gzip file"),
    "gz without its end": ({"orders.csv.gz": ZIPPED[:-4]}, "orders.csv.gz is not a whole gzip file"),
    "gz with changed bytes": (
        {"orders.csv.gz": flipped(ZIPPED, len(ZIPPED) // 2, 3)},
        "orders.csv.gz is not a whole gzip file",
    ),
    "gz of 10 bytes": ({"orders.csv.gz": ZIPPED[:10]}, "orders.csv.gz cannot be read"),
    "gz that is not": ({"orders.csv.gz": ORDERS}, "orders.csv.gz cannot be read: Not a gzipped file"),
    "a quote to the end": (
        {"orders.csv": LONG + 'x,"c,2024-01-05,1\n' + LONG[len(HEADER) :]},
        "row 20,001 opens a quote that is not closed",
    ),
    "a quote to another": (
        {"orders.csv": LONG + 'x,"c,2024-01-05,1\n' + LONG[len(HEADER) :] + 'x",c,2024-01-05,1\n'},
        "row 20,001 opens a quote",
    ),
    "parquet of 0 bytes": ({"orders.parquet": b""}, "orders.parquet is not a whole Parquet file"),
    "parquet cut": ({"orders.parquet": PARQUET_BYTES[:-500]}, "orders has 1 problem"),
    "parquet that is not": ({"orders.parquet": ORDERS * 3}, "orders has 1 problem"),
    "parquet with changed data": ({"orders.parquet": flipped(PARQUET_BYTES, 2000, 3000)}, "orders has 1 problem"),
    "parquet with changed footer": ({"orders.parquet": flipped(PARQUET_BYTES, -400, 300)}, "orders has 1 problem"),
    "parquet without rows": ({"orders.parquet": arrow_orders().slice(0, 0)}, "orders has no rows"),
    "refunds only": (
        {"orders.csv": HEADER + "a,c,2024-01-01,-5\nb,c,2024-01-01,0"},
        "orders has no paid order: 2 usable rows, none with a positive",
    ),
    "all unusable": (
        {"orders.csv": HEADER + "a,,2024-01-01,-5\nb,c,,0"},
        "orders has no usable row: 2 in, all quarantined (1 no customer_id, 1 no time)",
    ),
    "database that is not": ({"shop.duckdb": ORDERS}, "not a valid DuckDB database file"),
    "mapped file not there": ({"tiercast.toml": "[sources.orders]\npath = 'x/*.csv'"}, "no file x/*.csv in "),
    "mapped pattern that is none": ({"tiercast.toml": "[sources.orders]\npath = '**x'"}, "orders has 1 problem"),
    "mapped database not there": (
        {"tiercast.toml": "[sources.orders]\ndatabase = 'x.duckdb'\ntable = 't'"},
        "no database file x.duckdb in ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_by_name(case: str, folder_of: Folder) -> None:
    files, said = BROKEN[case]
    assert said in refusal(folder_of(files))


def test_a_file_in_place_of_the_folder_is_refused(folder_of: Folder) -> None:
    with pytest.raises(ContractError, match="is not a folder; give the folder that holds"):
        open_folder(folder_of({"orders.csv": ORDERS}) / "orders.csv", Settings()).__enter__()


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.parquet").mkdir()
    assert "orders.parquet is a folder; name the files in it, as in path = 'orders.parquet/*.parquet'" in refusal(
        tmp_path
    )


CHANGES = 15


def test_changed_files_end_in_rows_or_in_a_refusal(folder_of: Folder) -> None:
    dice = random.Random(9)
    small = LONG[:3000].rpartition("\n")[0].encode()
    originals = {"orders.csv": small, "orders.csv.gz": gzip.compress(small), "orders.parquet": PARQUET_BYTES}
    refused = 0
    for name, content in originals.items():
        for _ in range(CHANGES):
            start = dice.randrange(len(content))
            folder = folder_of({name: dice.choice([content[:start], flipped(content, start, dice.choice([1, 8, 64]))])})
            try:
                read(folder)
            except Refused:
                refused += 1
        (folder / name).unlink()
    print(f"{CHANGES * len(originals)} changed files, {refused} refused, no other error")
    assert refused > CHANGES


def test_all_problems_of_all_tables_come_in_one_error(folder_of: Folder) -> None:
    files = {
        "orders.csv": "customer_id,when,total\nc,2024-01-01,5\n",
        "events.csv": "customer_id,time\nc,2024-01-01\n",
        "feedback.csv": "customer_id,time,kind,score\nc,5.1.2024,nps,9\n",
        "customers.csv": b"",
    }
    assert refusal(folder_of(files)) == (
        "customers has 1 problem:\n"
        "  customers.csv is empty: no header line\n"
        "orders has 2 problems:\n"
        "  column 'time' is missing (found: customer_id, when, total); map it under [sources.orders.columns]\n"
        "  column 'amount' is missing (found: customer_id, when, total); map it under [sources.orders.columns]\n"
        "events has 1 problem:\n"
        "  column 'type' is missing (found: customer_id, time); map it under [sources.events.columns]\n"
        "feedback has 1 problem:\n"
        "  1 of 1 rows: time is not a time (first: row 1); say how to read it under [sources.feedback.columns], "
        "or raise max_malformed_share"
    )


def test_columns_that_are_not_used_are_named(folder_of: Folder) -> None:
    _, intake = read(folder_of({"orders.csv": "amount,colour,,time,customer_id\n5,red,x,2024-01-01,c\n"}))
    assert (intake.unused_columns, intake.accepted) == (("colour", "column_3"), 1)


def test_nothing_stays_behind(folder_of: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of({"orders.csv": ORDERS})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with open_folder(folder, Settings()):
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []
    assert [path.name for path in folder.iterdir() if path != scratch] == ["orders.csv"]


# Mapped tables


LINES = "Invoice;Customer;Sold;Pieces;Price;Kind\n" + "\n".join(
    f"{invoice};{customer};{day:02d}.01.2024 10:0{day % 10};{pieces};{price};{kind}"
    for invoice, customer, day, pieces, price, kind in [
        ("i2", "c2", 6, 1, "2,00", "sale"), ("i1", "c1", 5, 2, "5,00", "sale"), ("i2", "c2", 7, 1, "1,00", "sale"),
        ("i1", "c1", 5, 1, "2,50", "sale"), ("i9", "c9", 1, 1, "9,99", "test"), ("i3", "c1", 31, -1, "2,50", "sale"),
    ]
)  # fmt: skip
MAPPED = """
[sources.orders]
path = "lines.csv"
delimiter = ";"
filter = "Kind = 'sale' -- no tests"
group_by = ["Invoice", "Customer"]
[sources.orders.columns]
order_id = "Invoice"
customer_id = "Customer"
time = "min(strptime(Sold, '%d.%m.%Y %H:%M')) -- first line"
amount = "sum(Pieces::INT * replace(Price, ',', '.')::DECIMAL(9, 2))"
"""


def test_a_mapped_source_filters_groups_and_computes(folder_of: Folder) -> None:
    found, intake = read(folder_of({"lines.csv": LINES, "tiercast.toml": MAPPED}))
    assert found == [
        ("i1", "c1", datetime(2024, 1, 5, 10, 5), 1250),
        ("i2", "c2", datetime(2024, 1, 6, 10, 6), 300),
        ("i3", "c1", datetime(2024, 1, 31, 10, 1), -250),
    ]
    assert (intake.rows_in, intake.unused_columns) == (3, ())


def test_groups_have_the_same_numbers_whatever_the_order_of_the_lines(folder_of: Folder) -> None:
    dice = random.Random(4)
    header = "Invoice;Customer;Sold;Pieces;Price;Kind"
    lines = [
        f"i{dice.randrange(900)};c{dice.randrange(5)};01.01.2024 10:00;1;{dice.randrange(99)},50;sale"
        for _ in range(5000)
    ]
    settings = MAPPED.replace('order_id = "Invoice"\n', "")
    found = []
    for _ in range(3):
        dice.shuffle(lines)
        found.append(read(folder_of({"lines.csv": "\n".join([header, *lines]), "tiercast.toml": settings})))
    assert found[0] == found[1] == found[2]
    print(f"{found[0][1].rows_in} groups in 3 orders")
    assert found[0][1].rows_in > 2000


def test_rows_that_the_filter_leaves_out_count_in_the_row_number(folder_of: Folder) -> None:
    files = {
        "orders.csv": ORDERS + "d,c1,2024-01-01,x\n",
        "tiercast.toml": '[sources.orders]\npath = "orders.csv"\nfilter = "amount != \'3\'"',
    }
    files["tiercast.toml"] = "max_malformed_share = 1\n" + files["tiercast.toml"]
    _, intake = read(folder_of(files))
    assert (intake.rows_in, dict(intake.first_rows)) == (3, {"amount is not an amount": 4})


def test_a_mapped_column_named_as_ours_is_no_trouble(folder_of: Folder) -> None:
    text = "raw_time,tiercast row,reason,line fault,groups,staged_orders\nc,2024-01-01,5,x,y,z\n"
    settings = '[sources.orders]\npath = "a.csv"\n[sources.orders.columns]\n'
    settings += 'customer_id = "raw_time"\ntime = "reason || \'-01-01\'"\namount = "5"'
    files = {"a.csv": text.replace("2024-01-01,5", "x,2024"), "tiercast.toml": settings}
    assert read(folder_of(files))[0] == [("1", "c", datetime(2024, 1, 1), 500)]


FAULTS = [
    ("amount", "nope + 1", "amount = 'nope + 1' fails: Binder Error: Referenced column \"nope\" not found"),
    (
        "amount",
        "customer_id::INTEGER",
        "amount = 'customer_id::INTEGER' fails: a conversion error",
    ),
    ("amount", "sum(amount::DOUBLE)", "amount = 'sum(amount::DOUBLE)' fails: Binder Error"),
    ("amount", "(amount", "amount = '(amount' fails: Parser Error"),
    (
        "time",
        "strptime(time, '%Y')",
        "time = \"strptime(time, '%Y')\" fails: an invalid input error",
    ),
    (
        "time",
        "made_up(time)",
        "time = 'made_up(time)' fails: Catalog Error: Scalar Function with name made_up does not exist",
    ),
    (
        "filter",
        "colour = 'red'",
        'filter = "colour = \'red\'" fails: Binder Error: Referenced column "colour" not found',
    ),
    ("filter", "1 +", "filter = '1 +' fails: Parser Error"),
    ("group_by", "colour", "group_by 'colour' fails: Binder Error"),
]


@pytest.mark.parametrize(("key", "sql", "said"), FAULTS)
def test_sql_of_the_shop_that_fails_is_named(key: str, sql: str, said: str, folder_of: Folder) -> None:
    columns = {"customer_id": "customer_id", "time": "time", "amount": "amount"}
    mapping = SourceTable(path="orders.csv", columns=columns)
    if key in columns:
        columns[key] = sql
    elif key == "filter":
        mapping = SourceTable(path="orders.csv", columns=columns, filter=sql)
    else:
        mapping = SourceTable(path="orders.csv", columns=columns, group_by=(sql,))
    folder = folder_of({"orders.csv": ORDERS})
    with pytest.raises(ContractError) as caught, open_folder(folder, Settings(sources={"orders": mapping})):
        pass
    assert said in str(caught.value)
    assert str(caught.value).startswith("orders has 1 problem:\n")


def test_every_expression_that_fails_is_named(folder_of: Folder) -> None:
    columns = {"customer_id": "a", "time": "b", "amount": "amount"}
    settings = Settings(sources={"orders": SourceTable(path="orders.csv", columns=columns)})
    with pytest.raises(ContractError) as caught, open_folder(folder_of({"orders.csv": ORDERS}), settings):
        pass
    assert str(caught.value).startswith("orders has 2 problems:\n  customer_id = 'a' fails: ")


def test_an_error_does_not_quote_the_customers(folder_of: Folder) -> None:
    columns = {"customer_id": "customer_id", "time": "time", "amount": "customer_id::INTEGER"}
    settings = Settings(sources={"orders": SourceTable(path="orders.csv", columns=columns)})
    files = {"orders.csv": ORDERS.replace("c1", "jane@example.org")}
    with pytest.raises(ContractError) as caught, open_folder(folder_of(files), settings):
        pass
    assert "jane" not in str(caught.value)


def test_a_mapping_that_leaves_out_a_column_says_which(folder_of: Folder) -> None:
    settings = '[sources.orders]\npath = "orders.csv"\n[sources.orders.columns]\namount = "amount"'
    message = refusal(folder_of({"orders.csv": ORDERS, "tiercast.toml": settings}))
    assert (
        "column 'customer_id' is not mapped, though the source has it; add customer_id = \"customer_id\" under "
        in message
    )


# Databases


def duckdb_shop(path: Path, table: str = "orders") -> None:
    with duckdb.connect(str(path)) as con:
        con.execute(
            f"CREATE TABLE {table} (order_id VARCHAR, customer_id VARCHAR, time TIMESTAMP, amount DECIMAL(18, 4))"
        )
        con.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?::DECIMAL(18, 4) / 100)", HELD)
        con.execute("CREATE VIEW events AS SELECT customer_id, time, 'visit' AS type FROM " + table)


def test_a_shop_in_a_duckdb_file(tmp_path: Path) -> None:
    duckdb_shop(tmp_path / "shop.duckdb")
    before = (tmp_path / "shop.duckdb").read_bytes()
    assert read(tmp_path)[0] == HELD
    with open_folder(tmp_path, Settings()) as tables:
        assert tables.present == {"orders", "events"}
        assert tables.tables["events"].count().execute() == 3
    assert (tmp_path / "shop.duckdb").read_bytes() == before
    (tmp_path / "events.csv").write_text("customer_id,time,type\n")
    assert "events has 1 problem:\n  found more than once: events.csv, shop.duckdb; keep one" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["tables.duckdb", "2024 sales.duckdb", "main.duckdb", "temp.db"])
def test_mapped_tables_and_queries_of_duckdb_files_of_any_name(name: str, tmp_path: Path) -> None:
    duckdb_shop(tmp_path / name, "sales")
    (tmp_path / "other").mkdir()
    duckdb_shop(tmp_path / "other" / name, "visits")
    (tmp_path / "tiercast.toml").write_text(f"""
        [sources.orders]
        database = "{name}"
        query = "SELECT * FROM sales"
        [sources.events]
        database = "other/{name}"
        table = "main.visits"
        filter = "order_id != 'a'"
        columns = {{customer_id = "customer_id", time = "time", type = "'visit'"}}
        """)
    with open_folder(tmp_path, load_settings(tmp_path)) as tables:
        assert orders_of(tables) == HELD
        assert tables.tables["events"].count().execute() == 2


def test_a_query_that_fails_names_its_table_and_no_other(tmp_path: Path) -> None:
    duckdb_shop(tmp_path / "a.duckdb")
    (tmp_path / "events.csv").write_text("customer_id,time,type\nc1,2024-01-01,visit\n")
    (tmp_path / "tiercast.toml").write_text(
        '[sources.orders]\ndatabase = "a.duckdb"\nquery = "SELECT nope FROM orders"'
    )
    message = refusal(tmp_path)
    assert message.startswith("orders has 1 problem:\n")
    assert '"nope" not found' in message
    (tmp_path / "tiercast.toml").write_text('[sources.orders]\ndatabase = "a.duckdb"\ntable = "nope"')
    assert "nope" in refusal(tmp_path)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a PostgreSQL server of our own, on loopback; its password is `p%40ss` in an address."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if initdb is None:
        pytest.skip("no PostgreSQL server (initdb) on this machine")
    pytest.importorskip("adbc_driver_postgresql", reason="the extra 'postgres' is not installed")
    home = tmp_path_factory.mktemp("postgres")
    as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if as_user:
        shutil.chown(home, "nobody", "nogroup")
        for parent in (home.parent, home.parent.parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    (home / "password").write_text("p@ss")
    server = Path(initdb).resolve().parent / "postgres"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [initdb, "-D", "data", "-U", "shop", "--auth=scram-sha-256", "--pwfile=password", "--no-sync"],
        check=True, capture_output=True, cwd=home, **as_user,
    )  # fmt: skip
    process = subprocess.Popen(
        [server, "-D", "data", "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", "", "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home, **as_user,
    )  # fmt: skip
    try:
        yield _when_ready(f"postgresql://shop:p%40ss@127.0.0.1:{port}/postgres")
    finally:
        process.terminate()
        process.wait(30)


def _when_ready(address: str) -> str:
    import adbc_driver_postgresql.dbapi as dbapi

    for attempt in range(100):
        try:
            with dbapi.connect(address) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "CREATE TABLE sales (order_id text, customer_id text, time timestamptz, amount numeric, at date)"
                )
                for row in HELD:
                    cursor.execute(
                        "INSERT INTO sales VALUES ($1, $2, $3, $4::numeric / 100, '2024-01-01')",
                        [*row[:2], row[2].replace(tzinfo=UTC), str(row[3])],
                    )
                connection.commit()
                return address
        except dbapi.Error:
            if attempt == 99:
                raise
            time.sleep(0.1)
    return address


def postgres_settings(address: str, **source: str) -> Settings:
    return Settings(sources={"orders": SourceTable(database=address, **source)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "source", [{"table": "sales"}, {"table": "public.sales"}, {"query": "SELECT * FROM sales WHERE amount < 1000"}]
)
def test_tables_and_queries_of_postgresql(source: dict[str, str], postgres: str, tmp_path: Path) -> None:
    with open_folder(tmp_path, postgres_settings(postgres, **source)) as tables:
        assert orders_of(tables) == HELD
        assert tables.intake[0].unused_columns == ("at",)


def test_errors_of_postgresql_name_the_table_and_never_the_password(postgres: str, tmp_path: Path) -> None:
    wrong = postgres.replace("p%40ss", "s3%40cret")
    cases = [
        (postgres, {"table": "nope"}, "table fails: a table or view does not exist (SQLSTATE 42P01)"),
        (postgres, {"query": "SELEC 1"}, "query fails: syntax error (SQLSTATE 42601)"),
        (
            postgres,
            {"query": "SELECT 1 / (amount * 0) AS amount FROM sales"},
            "query fails: an error in its rows (a division by zero",
        ),
        (wrong, {"table": "sales"}, "password authentication failed"),
        (wrong.replace("127.0.0.1", "no.such.host.invalid"), {"table": "sales"}, "no.such.host.invalid"),
        (wrong.replace("/postgres", "/nope?password=s3%40cret2"), {"table": "sales"}, "postgresql://127.0.0.1:"),
        ("postgresql://shop:s3@cret/x@127.0.0.1:1/a", {"table": "sales"}, "write them as %XX"),
        ("postgresql://shop:s3cret@127.0.0.1:port/a", {"table": "sales"}, "postgresql://127.0.0.1:port/a"),
        ("postgresql://shop:s3cret@[::1/a", {"table": "sales"}, "orders has 1 problem"),
        ("postgresql://127.0.0.1:1/a?sslmode=s3cret", {"table": "sales"}, "orders has 1 problem"),
    ]
    for address, source, said in cases:
        with pytest.raises(ContractError) as caught, open_folder(tmp_path, postgres_settings(address, **source)):
            pass
        message = str(caught.value)
        assert said in message, message
        assert message.startswith("orders has 1 problem:\n")
        for part in ("p%40ss", "p@ss", "cret"):
            assert part not in message or "sslmode" in address, message
    print(f"{len(cases)} errors without a password")


def test_no_error_of_postgresql_quotes_a_cell(postgres: str, tmp_path: Path) -> None:
    row = "FROM (VALUES ('c1 anna@example.com', '2024-13-45', '777777')) AS t(who, born, n)"
    leaks = ["who::int", "born::timestamp", "n::smallint", "who::json", "who::regclass", "('{' || who)::int[]"]
    leaks += [
        "CASE WHEN length(who) > 3 THEN who::uuid END",
        "to_date(who, 'YYYY')",
        "who::inet",
        "query_to_xml(who, true, true, '')",
    ]
    found = 0
    for leak in leaks:
        source = {"query": f"SELECT {leak} AS amount {row}"}
        with pytest.raises(ContractError) as caught, open_folder(tmp_path, postgres_settings(postgres, **source)):
            pass
        message = str(caught.value)
        assert "query fails: " in message, message
        found += any(cell in message for cell in ("anna", "2024-13-45", "777777"))
    print(f"{len(leaks)} errors of PostgreSQL, {found} quote a cell")
    assert found == 0


def test_a_refused_connection_stays_understandable(tmp_path: Path) -> None:
    pytest.importorskip("adbc_driver_postgresql", reason="the extra 'postgres' is not installed")
    address = "postgresql://shop:s3cret@127.0.0.1:1/a"
    with pytest.raises(ContractError, match="Connection refused") as caught:
        open_folder(tmp_path, postgres_settings(address, table="t")).__enter__()
    assert "s3cret" not in str(caught.value)


def test_postgresql_without_its_driver_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "adbc_driver_postgresql.dbapi", None)
    with (
        pytest.raises(ContractError, match=r"pip install 'tiercast\[postgres\]'"),
        open_folder(tmp_path, postgres_settings("postgresql://x@127.0.0.1/a", table="t")),
    ):
        pass
