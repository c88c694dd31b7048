"""Every engagement feature against plain Python, and the words that event types become."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from features.engagement import MAX_EVENT_TYPES, WINDOWS_DAYS
from features.settings import Settings
from features.snapshot import build_snapshot, learn_spec
from features.sources import open_rows

DAY_US = 86_400_000_000
CUTOFF = datetime(2025, 3, 1)
TICK = timedelta(microseconds=1)
Row = dict[str, Any]


def snapshot_of(cutoff: datetime = CUTOFF, **rows: list[Row]) -> pd.DataFrame:
    with open_rows(rows, Settings()) as tables:
        return build_snapshot(tables, [cutoff], learn_spec(tables, cutoff)).frame.set_index("customer_id")


def row(age: timedelta, customer: str = "c", **more: Any) -> Row:
    return {"customer_id": customer, "time": (CUTOFF - age).isoformat() + "Z", **more}


BOUGHT = [row(timedelta(days=50), amount=5)]


def ages(rows: list[Row], cutoff: datetime) -> list[int]:
    known = [r["time"] for r in rows if r["time"] < cutoff and (r["known_time"] or r["time"]) <= cutoff]
    return [(cutoff - time) // TICK for time in known]


def oracle(events: list[Row], exposures: list[Row], cutoff: datetime) -> dict[str, float]:
    """What one customer's events and contacts say."""
    found: dict[str, float] = {}
    for word in ("cart", "email_click", "email_open", "visit"):
        found |= _counted(word, word, ages([e for e in events if e["type"] == word], cutoff))
    found |= _counted("contact", "contacts", ages([x for x in exposures if x["arm"] != "control"], cutoff))
    contacts = found["contacts_count_90d"]
    for word in ("email_open", "email_click"):
        found[f"{word}_rate_90d"] = found[f"{word}_count_90d"] / contacts if contacts else math.nan
    return found


def _counted(one: str, many: str, found: list[int]) -> dict[str, float]:
    recency = {f"{one}_recency_days": min(found) / DAY_US if found else math.nan}
    return recency | {f"{many}_count_{days}d": sum(age <= days * DAY_US for age in found) for days in (7, 28, 90)}


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=-150, microseconds=3)])
def test_every_feature_equals_plain_python(random_shop: Any, later: timedelta) -> None:
    cutoff = random_shop.cutoff + later
    frame = snapshot_of(cutoff, **random_shop.sent())
    of = {table: {c: [] for c in frame.index} for table in ("events", "exposures")}
    for table, by_customer in of.items():
        for found in random_shop.rows[table]:
            by_customer.get(found["customer_id"], []).append(found)
    compared = 0
    for customer in frame.index:
        wanted = oracle(of["events"][customer], of["exposures"][customer], cutoff)
        found = frame.loc[customer, list(wanted)].to_dict()
        assert [
            n for n in wanted if not (found[n] == wanted[n] or (math.isnan(found[n]) and math.isnan(wanted[n])))
        ] == []
        compared += len(wanted)
    print(f"{len(frame)} customers, {compared} values equal")
    assert len(frame) > 100
    assert set(wanted) == {name for name in frame.columns if name.startswith(("cart", "email", "visit", "contact"))}


def test_a_window_holds_what_is_exactly_as_old_as_it_and_nothing_older() -> None:
    ages = {f"{days} {off}": timedelta(days=days, microseconds=off) for days in WINDOWS_DAYS for off in (-1, 0, 1)}
    frame = snapshot_of(
        orders=[row(TICK, c, amount=5) for c in ages],
        events=[row(age, c, type="visit") for c, age in ages.items()],
        exposures=[row(age, c) for c, age in ages.items()],
    )
    for customer in frame.index:
        days, off = map(int, customer.split())
        found = frame.loc[customer, [f"visit_count_{days}d", f"contacts_count_{days}d"]]
        assert found.tolist() == [off <= 0] * 2, customer
    assert len(frame) == 9


def test_an_event_at_the_cutoff_is_not_history() -> None:
    frame = snapshot_of(orders=BOUGHT, events=[row(timedelta(0), type="visit"), row(TICK, type="cart")])
    assert "visit_count_7d" not in frame
    assert frame.loc["c", "cart_recency_days"] == 1 / DAY_US


def test_who_did_nothing_has_counts_of_zero_and_no_recency() -> None:
    frame = snapshot_of(orders=BOUGHT, events=[row(TICK, "other", type="email_open")], exposures=[row(TICK, "other")])
    assert [frame.loc["c", f"email_open_count_{d}d"] for d in WINDOWS_DAYS] == [0, 0, 0]
    assert [frame.loc["c", f"contacts_count_{d}d"] for d in WINDOWS_DAYS] == [0, 0, 0]
    assert frame.loc["c", ["email_open_recency_days", "contact_recency_days", "email_open_rate_90d"]].isna().all()


def test_the_control_arm_is_not_contacted() -> None:
    sent = [row(TICK, arm=arm) for arm in ("control", "treated", None)]
    assert snapshot_of(orders=BOUGHT, exposures=sent).loc["c", "contacts_count_7d"] == 2


def test_types_that_differ_in_spelling_only_are_one() -> None:
    events = [row(TICK, type=t) for t in ("Email Open", "email_open", "email-open")]
    frame = snapshot_of(orders=BOUGHT, events=events)
    assert frame.loc["c", "email_open_count_7d"] == 3
    assert [name for name in frame if name.startswith("email")] == [
        "email_open_recency_days",
        *(f"email_open_count_{d}d" for d in WINDOWS_DAYS),
    ]


def test_a_type_named_as_another_family_s_feature_stays_apart() -> None:
    events = [row(TICK, type=t) for t in ("orders", "orders", "contact", "contacts", "contacts")]
    found = snapshot_of(orders=BOUGHT, events=events, exposures=[row(TICK)]).loc["c"]
    assert (found["orders_count_7d"], found["orders_event_count_7d"]) == (0, 2)
    assert (found["contacts_count_7d"], found["contact_event_count_7d"], found["contacts_event_count_7d"]) == (1, 1, 2)
    assert not found.index.duplicated().any()


def test_the_vocabulary_is_the_most_frequent_types_known_at_the_cutoff() -> None:
    events = [row(TICK, type=f"type {i:02d}") for i in range(MAX_EVENT_TYPES + 5) for _ in range(i // 4 + 1)]
    events += [row(timedelta(0), type="future")] * 100
    with open_rows({"orders": BOUGHT, "events": events}, Settings()) as tables:
        found = learn_spec(tables, CUTOFF).event_types
    by_rows = sorted(range(MAX_EVENT_TYPES + 5), key=lambda i: (-(i // 4 + 1), i))[:MAX_EVENT_TYPES]
    assert found == tuple(f"type {i:02d}" for i in sorted(by_rows))


def test_a_frozen_vocabulary_makes_its_columns_from_other_rows_too() -> None:
    with open_rows({"orders": BOUGHT, "events": [row(TICK, type="visit")]}, Settings()) as tables:
        spec = learn_spec(tables, CUTOFF)
    with open_rows({"orders": BOUGHT, "events": [row(TICK, type="new")]}, Settings()) as tables:
        frame = build_snapshot(tables, [CUTOFF], spec).frame
    assert list(frame.columns[2:]) == list(spec.names)
    assert frame.loc[0, "visit_count_7d"] == 0
