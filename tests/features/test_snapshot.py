"""A snapshot row depends on its customer's past and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from features import rfm, snapshot
from features.errors import SpecMismatch
from features.naming import Feature
from features.settings import Settings
from features.snapshot import FeatureSpec, Snapshot, build_snapshot, learn_spec, list_features
from features.sources import open_rows
from features.tables import History, Tables

CUTOFF = datetime(2025, 3, 1)
TICK = timedelta(microseconds=1)
Row = dict[str, Any]
Rows = dict[str, list[Row]]
SPEC = FeatureSpec(
    tables=("events", "exposures", "orders"),
    event_types=("email_open", "visit"),
    currency="USD",
    names=tuple(f.name for f in list_features(("events", "exposures", "orders"), ("email_open", "visit"))),
)


@contextmanager
def opened(rows: Rows) -> Iterator[Tables]:
    """Tables of rows whose times are datetimes, amounts in cents."""
    with open_rows(
        {"orders": [], "events": [], "exposures": []} | {t: [sent(r) for r in own] for t, own in rows.items()},
        Settings(),
    ) as tables:
        assert [intake.quarantined for intake in tables.intake if intake.quarantined] == []
        yield tables


def sent(row: Row) -> Row:
    times = {key: row[key].replace(tzinfo=UTC) for key in ("time", "known_time") if row.get(key)}
    money = {key: f"{row[key] / 100:.2f}" for key in ("amount", "discount") if row.get(key) is not None}
    return row | times | money


def frame_of(rows: Rows, *cutoffs: datetime, spec: FeatureSpec = SPEC) -> pd.DataFrame:
    with opened(rows) as tables:
        return build_snapshot(tables, cutoffs or [CUTOFF], spec).frame


def equal(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    """The same rows, columns, types and bits; missing where the other is missing."""
    return left.equals(right) and left.dtypes.equals(right.dtypes)


# Point in time: customer `past-i` and its twin `twin-i` share what was known at the cutoff and differ in all else.


ages_us = st.one_of(
    st.sampled_from([1, 2, *(days * 86_400_000_000 + tick for days in (7, 28, 90, 365) for tick in (-1, 0, 1))]),
    st.integers(1, 500 * 86_400_000_000),
)
delays_us = st.one_of(st.sampled_from([0, 1, 86_400_000_000]), st.integers(0, 90 * 86_400_000_000))


def row_of(table: str, time: datetime, known_time: datetime | None, kind: int) -> tuple[str, Row]:
    own = {
        "orders": {"amount": (500, 1250, -300, 0)[kind]},
        "events": {"type": ("visit", "email_open")[kind % 2]},
        "exposures": {"arm": None},
    }
    return table, {"time": time, "known_time": known_time, **own[table]}


@st.composite
def known_rows(draw: st.DrawFn) -> tuple[str, Row]:
    time = CUTOFF - timedelta(microseconds=draw(ages_us))
    known_time = min(time + timedelta(microseconds=draw(delays_us)), CUTOFF)
    return row_of(draw(tables_), time, draw(st.sampled_from([None, known_time, CUTOFF])), draw(st.integers(0, 3)))


@st.composite
def unknown_rows(draw: st.DrawFn) -> tuple[str, Row]:
    if draw(st.booleans()):
        time, known_time = (
            CUTOFF + timedelta(microseconds=draw(st.sampled_from([0, 0, 1, 10**12]))),
            draw(st.sampled_from([None, CUTOFF, CUTOFF - TICK])),
        )
    else:
        time = CUTOFF - timedelta(microseconds=draw(ages_us))
        known_time = CUTOFF + timedelta(microseconds=draw(st.sampled_from([1, 1, 10**9, 10**13])))
    return row_of(draw(tables_), time, known_time, draw(st.integers(0, 3)))


tables_ = st.sampled_from(["orders", "orders", "events", "exposures"])
paid_orders = st.builds(lambda age: row_of("orders", CUTOFF - timedelta(microseconds=age), None, 0), ages_us)
# Three of four cases have a paid order for certain, so that most have a row to compare.
known = st.tuples(st.one_of(paid_orders, paid_orders, paid_orders, known_rows()), st.lists(known_rows(), max_size=5))
one_case = st.tuples(
    known.map(lambda both: [both[0], *both[1]]),
    st.lists(unknown_rows(), max_size=4),
    st.lists(unknown_rows(), max_size=4),
)
cases = st.lists(one_case, min_size=30, max_size=30)
quick = hypothesis_settings(
    max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
Case = tuple[list[tuple[str, Row]], list[tuple[str, Row]], list[tuple[str, Row]]]


def differing(found: list[Case]) -> tuple[int, int]:
    """How many of the cases change with what was not known, and how many cases have a snapshot row."""
    rows: Rows = {"orders": [], "events": [], "exposures": []}
    for number, (known, unknown, other) in enumerate(found):
        for name, later in (("past", unknown), ("twin", other)):
            for table, row in [*known, *later]:
                rows[table].append({"customer_id": f"{name}-{number:02d}", **row})
    frame = frame_of(rows).drop(columns="cutoff").set_index("customer_id")
    past, twin = (frame[frame.index.str.startswith(name)].rename(lambda c: c[5:]) for name in ("past", "twin"))
    changed = len(past.index.symmetric_difference(twin.index))
    both = past.index.intersection(twin.index)
    past, twin = past.loc[both], twin.loc[both]
    return changed + int(((past != twin) & ~(past.isna() & twin.isna())).any(axis=1).sum()), len(both) + changed


def test_rows_not_known_at_the_cutoff_change_nothing() -> None:
    counted = {"cases": 0, "rows": 0}

    @quick
    @given(cases)
    def prove(found: list[Case]) -> None:
        changed, compared = differing(found)
        assert changed == 0
        counted["cases"] += len(found)
        counted["rows"] += compared

    prove()
    print(f"{counted['cases']} customers and their twins, {counted['rows']} with a snapshot row")
    assert counted["cases"] >= 300
    assert counted["rows"] >= 250


def _cut_at(keep: Callable[[Any, Any], Any]) -> Callable[[Any, Any, int], History]:
    def known_at(cutoff: Any, tables: Any, currency_digits: int) -> History:
        cut = {
            name: t.filter(keep(t, cutoff)).mutate(age_us=cutoff.delta(t.time, unit="microsecond"))
            for name, t in tables.items()
        }
        return History(currency_digits, cut)

    return known_at


LEAKS = {
    "the cutoff itself is history": _cut_at(lambda t, m: (t.time <= m) & (t.known_time <= m)),
    "known_time is not looked at": _cut_at(lambda t, m: t.time < m),
    "nothing is cut": _cut_at(lambda t, m: t.time > ibis.timestamp(datetime(1900, 1, 1))),
    "known a microsecond too early": _cut_at(
        lambda t, m: (t.time < m) & (t.known_time <= m + ibis.interval(microseconds=1))
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_history_that_is_cut_wrongly_is_caught(leak: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "known_at", LEAKS[leak])
    snapshot._compiled.cache_clear()
    caught = []

    @hypothesis_settings(quick, max_examples=2)
    @given(cases)
    def watch(found: list[Case]) -> None:
        caught.append(differing(found)[0])

    watch()
    snapshot._compiled.cache_clear()
    print(f"{leak}: {sum(caught)} customers changed")
    assert sum(caught) > 0


def test_a_block_that_reads_the_other_customers_is_caught(random_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = rfm.block

    def planted(history: History) -> tuple[Any, Any]:
        table, features = honest(history)
        rank = Feature("spend", "rank", "planted")
        return table.mutate(spend_rank=ibis.rank().over(order_by=table.spend_sum).cast("float64")), (*features, rank)

    monkeypatch.setattr(rfm, "block", planted)
    spec = replace(SPEC, names=(*SPEC.names, "spend_rank"))
    assert not _same_one_by_one(random_shop.rows, 3, spec)


# The battery that every family must pass


@pytest.fixture(scope="module")
def together(random_shop: Any) -> pd.DataFrame:
    return frame_of(random_shop.rows)


def test_the_snapshot_is_full_of_cases(together: pd.DataFrame) -> None:
    print(f"{len(together)} customers, {len(SPEC.names)} features")
    assert len(together) > 100
    assert (together["orders_count"] == 1).sum() > 20
    assert together[list(SPEC.names)].nunique().min() > 1


def test_the_order_of_the_rows_changes_nothing(random_shop: Any, together: pd.DataFrame) -> None:
    dice = random.Random(2)
    for _ in range(2):
        shuffled = {table: dice.sample(rows, len(rows)) for table, rows in random_shop.rows.items()}
        assert equal(frame_of(shuffled), together)


def _same_one_by_one(rows: Rows, count: int, spec: FeatureSpec = SPEC) -> bool:
    chosen = [f"customer-{number:03d}" for number in range(1, count + 1)]
    whole = frame_of(rows, spec=spec)
    whole = whole[whole["customer_id"].isin(chosen)].reset_index(drop=True)
    alone = [
        frame_of({t: [r for r in own if r["customer_id"] == c] for t, own in rows.items()}, spec=spec) for c in chosen
    ]
    assert len(whole) > count / 2
    return equal(pd.concat(alone, ignore_index=True), whole)


def test_one_customer_alone_is_the_same_as_among_others(random_shop: Any) -> None:
    assert _same_one_by_one(random_shop.rows, 9)


def test_several_cutoffs_in_one_call_are_the_same_as_one_by_one(random_shop: Any) -> None:
    cutoffs = [CUTOFF - timedelta(days=days) for days in (0, 7, 100, 10_000)]
    with opened(random_shop.rows) as tables:
        at_once = build_snapshot(tables, [*cutoffs, cutoffs[1]], SPEC)
        one_by_one = [build_snapshot(tables, [cutoff], SPEC).frame for cutoff in sorted(cutoffs)]
    assert equal(at_once.frame, pd.concat(one_by_one, ignore_index=True))
    assert at_once.frame["cutoff"].nunique() == 3
    assert equal(at_once.at(CUTOFF).frame, one_by_one[-1])
    keys = list(zip(at_once.frame["cutoff"], at_once.frame["customer_id"], strict=True))
    assert keys == sorted(set(keys))


def test_the_number_of_threads_changes_nothing(random_shop: Any, together: pd.DataFrame) -> None:
    with opened(random_shop.rows) as tables:
        for threads in (1, 2):
            tables.tables["orders"].get_backend().raw_sql(f"SET threads = {threads}")
            assert equal(build_snapshot(tables, [CUTOFF], SPEC).frame, together)


def test_a_year_later_everything_is_the_same(random_shop: Any, together: pd.DataFrame) -> None:
    year = timedelta(days=365)

    def later(row: Row) -> Row:
        return row | {key: row[key] + year for key in ("time", "known_time") if row[key]}

    shifted = {table: [later(row) for row in rows] for table, rows in random_shop.rows.items()}
    frame = frame_of(shifted, CUTOFF + year)
    assert equal(frame.assign(cutoff=together["cutoff"]), together)


def test_customers_without_a_paid_order_are_not_there(random_shop: Any, together: pd.DataFrame) -> None:
    paid = {
        r["customer_id"]
        for r in random_shop.rows["orders"]
        if r["amount"] > 0 and r["time"] < CUTOFF and (r["known_time"] or r["time"]) <= CUTOFF
    }
    assert list(together["customer_id"]) == sorted(paid)
    assert len({row["customer_id"] for row in random_shop.rows["orders"]}) > len(paid)


def test_tables_that_features_do_not_use_change_nothing(random_shop: Any, together: pd.DataFrame) -> None:
    more = [{"customer_id": "customer-001", "time": CUTOFF - TICK, "kind": "nps", "score": 3}]
    assert equal(frame_of(random_shop.rows | {"feedback": more}), together)


# Edges


def dtypes(frame: pd.DataFrame) -> list[str]:
    return [str(dtype) for dtype in frame.dtypes]


WANTED_DTYPES = ["str", "datetime64[us]", *["float64"] * len(SPEC.names)]


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {"orders": [{"customer_id": "c", "time": CUTOFF, "amount": 5}]},
        {"orders": [{"customer_id": "c", "time": CUTOFF - TICK, "amount": -5}]},
    ],
)
def test_without_a_paid_order_there_are_columns_and_no_rows(rows: Rows) -> None:
    with opened(rows) as tables:
        SPEC.require_tables(tables)
        for cutoffs in ([CUTOFF], [CUTOFF, CUTOFF - TICK], []):
            snapshot = build_snapshot(tables, cutoffs, SPEC)
            assert list(snapshot.frame.columns) == ["customer_id", "cutoff", *SPEC.names]
            assert dtypes(snapshot.frame) == WANTED_DTYPES
            assert snapshot.matrix().shape == (0, len(SPEC.names))


def test_dtypes_are_the_same_with_and_without_rows(together: pd.DataFrame) -> None:
    assert dtypes(together) == WANTED_DTYPES


def test_unusable_rows_of_an_app_make_an_empty_snapshot() -> None:
    with open_rows({"orders": [{"customer_id": "c", "time": "soon", "amount": "x"}, {}]}, Settings()) as tables:
        spec = learn_spec(tables, CUTOFF)
        assert build_snapshot(tables, [CUTOFF], spec).frame.shape == (0, 2 + len(spec.names))
        assert sum(tables.intake[0].quarantined.values()) == 2


def test_one_order_and_nothing_else() -> None:
    frame = frame_of({"orders": [{"customer_id": "c", "time": CUTOFF - timedelta(days=10), "amount": 1000}]})
    assert frame.loc[
        0, ["recency_days", "orders_count", "spend_sum", "visit_count_90d", "contacts_count_7d"]
    ].tolist() == [10, 1, 10, 0, 0]


def test_a_spec_says_what_the_tables_lack() -> None:
    with open_rows({"orders": []}, Settings(currency="EUR")) as tables:
        with pytest.raises(SpecMismatch, match="trained with events, exposures, which these data do not have"):
            SPEC.require_tables(tables)
        with pytest.raises(SpecMismatch, match="trained in USD, these data are in EUR"):
            replace(SPEC, tables=("orders",)).require_tables(tables)
        with pytest.raises(SpecMismatch, match=r"1 feature that this version does not make \(first: moon_phase\)"):
            build_snapshot(tables, [CUTOFF], replace(SPEC, names=("orders_count", "moon_phase")))


def test_a_spec_survives_json_and_its_fingerprint_sees_every_part() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC
    assert FeatureSpec.from_json(SPEC.to_json()).fingerprint == SPEC.fingerprint
    changed = [
        replace(SPEC, currency="EUR"),
        replace(SPEC, names=SPEC.names[::-1]),
        replace(SPEC, tables=("orders",)),
        replace(SPEC, event_types=()),
    ]
    assert len({spec.fingerprint for spec in [SPEC, *changed]}) == 5


def test_the_matrix_has_the_order_of_the_spec(together: pd.DataFrame) -> None:
    turned = replace(SPEC, names=SPEC.names[::-1])
    matrix = Snapshot(together, turned).matrix()
    assert (matrix[:, -1] == together[SPEC.names[0]]).all()


def test_progress_is_told_after_every_cutoff(tmp_path: Path) -> None:
    told: list[datetime] = []
    with opened({}) as tables:
        build_snapshot(tables, [CUTOFF, CUTOFF - TICK], SPEC, told.append)
    assert told == [CUTOFF - TICK, CUTOFF]


def test_a_table_whose_rows_are_all_later_is_no_part_of_the_spec() -> None:
    order = {"customer_id": "c1", "time": "2024-01-01", "amount": "5"}
    event = {"customer_id": "c1", "time": "2024-03-01", "type": "visit"}
    with open_rows({"orders": [order], "events": [event]}, Settings()) as tables:
        assert learn_spec(tables, datetime(2024, 2, 1)).tables == ("orders",)
        assert learn_spec(tables, datetime(2024, 4, 1)).tables == ("events", "orders")
