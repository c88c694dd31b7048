"""Every RFM feature against plain Python, and the edges of every window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from features import rfm
from features.settings import Settings
from features.snapshot import build_snapshot, learn_spec
from features.sources import open_rows

DAY_US = 86_400_000_000
CUTOFF = datetime(2025, 3, 1)
NAN = math.nan
Row = dict[str, Any]


def features_of(orders: list[Row], cutoff: datetime = CUTOFF, currency: str = "USD") -> dict[str, dict[str, float]]:
    """customer_id -> feature -> value."""
    with open_rows({"orders": orders}, Settings(currency=currency)) as tables:
        frame = build_snapshot(tables, [cutoff], learn_spec(tables, cutoff)).frame.drop(columns="cutoff")
    return {str(row.pop("customer_id")): row for row in frame.to_dict("records")}


def order(age: timedelta, amount: Any = 10, customer: str = "c", **more: Any) -> Row:
    return {"customer_id": customer, "time": (CUTOFF - age).isoformat() + "Z", "amount": amount, **more}


def same(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    """Equal to the last bit, missing where the other is missing."""
    return list(left) == list(right) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(left.values(), right.values(), strict=True)
    )


def ratio(above: float, below: float) -> float:
    return above / below if below else NAN


def oracle(orders: list[Row], cutoff: datetime) -> dict[str, float] | None:
    """What one customer's orders say (amounts in cents); None without a paid one."""
    known = [o for o in orders if o["time"] < cutoff and (o["known_time"] or o["time"]) <= cutoff]
    ages = [(cutoff - o["time"]) // timedelta(microseconds=1) for o in known]
    paid = sorted((age, o["amount"], o["discount"] or 0) for age, o in zip(ages, known, strict=True) if o["amount"] > 0)
    if not paid:
        return None
    last, first, count = paid[0][0], paid[-1][0], len(paid)
    refunds = [o["amount"] for o in known if o["amount"] < 0]
    rhythm = ratio(first - last, count - 1)
    found = {
        "recency_days": last / DAY_US,
        "tenure_days": first / DAY_US,
        "orders_count": count,
        "repeat_count": count - 1,
        "purchase_days_count": len({age // DAY_US for age, *_ in paid}),
        "order_value_mean": sum(amount for _, amount, _ in paid) / 100 / count,
        "order_value_max": max(amount for _, amount, _ in paid) / 100,
        "spend_sum": sum(o["amount"] for o in known) / 100,
        "refunds_count": len(refunds),
        "refunds_sum": sum(refunds) / 100,
        "discount_share": sum(discount for *_, discount in paid) / sum(amount for _, amount, _ in paid),
        "interpurchase_days_mean": rhythm / DAY_US,
        "recency_rhythms": ratio(last, 0 if math.isnan(rhythm) else rhythm),
    }
    inside = {days: sum(age <= days * DAY_US for age, *_ in paid) for days in (7, 14, 28, 90, 180, 365)}
    for days, orders_count in inside.items():
        net = sum(o["amount"] for age, o in zip(ages, known, strict=True) if age <= days * DAY_US)
        found |= {f"orders_count_{days}d": orders_count, f"spend_sum_{days}d": net / 100}
    for shorter, longer in ((28, 90), (90, 180), (180, 365)):
        found[f"orders_share_of_{longer}d_{shorter}d"] = ratio(inside[shorter], inside[longer])
    return found


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=-200, microseconds=7), timedelta(days=20)])
def test_every_feature_equals_plain_python(random_shop: Any, later: timedelta) -> None:
    cutoff = random_shop.cutoff + later
    found = features_of(random_shop.sent()["orders"], cutoff)
    by_customer: dict[str, list[Row]] = {}
    for row in random_shop.rows["orders"]:
        by_customer.setdefault(row["customer_id"], []).append(row)
    wanted = {
        customer: values for customer, rows in by_customer.items() if (values := oracle(rows, cutoff)) is not None
    }
    assert sorted(found) == sorted(wanted)
    assert len(wanted) > 100
    assert [customer for customer in wanted if not same(found[customer], wanted[customer])] == []
    print(f"{len(wanted)} customers, {len(wanted) * len(found[min(found)])} values equal")


def test_the_oracle_sees_one_cent_and_one_microsecond(random_shop: Any) -> None:
    rows = [dict(row, known_time=None) for row in random_shop.rows["orders"] if row["customer_id"] == "customer-001"]
    rows = [dict(rows[0], amount=500, time=CUTOFF - timedelta(days=3))]
    base = oracle(rows, CUTOFF)
    dearer = oracle([dict(rows[0], amount=501)], CUTOFF)
    older = oracle([dict(rows[0], time=rows[0]["time"] - timedelta(microseconds=1))], CUTOFF)
    assert base and dearer and older
    assert not same(base, dearer)
    assert not same(base, older)


def test_a_window_holds_what_is_exactly_as_old_as_it_and_nothing_older() -> None:
    ages = {f"{days} {off}": timedelta(days=days, microseconds=off) for days in rfm.WINDOWS_DAYS for off in (-1, 0, 1)}
    found = features_of([order(age, customer=customer) for customer, age in ages.items()])
    for customer, values in found.items():
        days, off = map(int, customer.split())
        inside = int(off <= 0)
        assert (values[f"orders_count_{days}d"], values[f"spend_sum_{days}d"]) == (inside, 10 * inside), customer
    assert len(found) == 18


def test_the_last_microsecond_of_a_day_is_history_and_the_cutoff_is_not() -> None:
    assert features_of([order(timedelta(microseconds=1))])["c"]["recency_days"] == 1 / DAY_US
    assert features_of([order(timedelta(0))]) == {}
    assert features_of([order(timedelta(0)), order(timedelta(days=1))])["c"]["orders_count"] == 1


def test_one_order_has_no_rhythm() -> None:
    found = features_of([order(timedelta(days=100), "20.50", discount="1.25")])["c"]
    missing = {"interpurchase_days_mean", "recency_rhythms", "orders_share_of_90d_28d"}
    assert {name for name, value in found.items() if math.isnan(value)} == missing
    assert (found["recency_days"], found["tenure_days"], found["repeat_count"]) == (100, 100, 0)
    assert (found["order_value_mean"], found["discount_share"]) == (20.5, 1.25 / 20.5)


def test_two_orders_at_one_moment_have_a_rhythm_of_zero() -> None:
    found = features_of([order(timedelta(days=5)), order(timedelta(days=5))])["c"]
    assert (found["interpurchase_days_mean"], found["repeat_count"], found["purchase_days_count"]) == (0, 1, 1)
    assert math.isnan(found["recency_rhythms"])


def test_refunds_lower_the_spend_and_are_no_orders() -> None:
    found = features_of([order(timedelta(days=40), 30), order(timedelta(days=3), -12.5), order(timedelta(days=2), 0)])[
        "c"
    ]
    assert (found["orders_count"], found["recency_days"], found["spend_sum"], found["spend_sum_7d"]) == (
        1,
        40,
        17.5,
        -12.5,
    )
    assert (found["refunds_count"], found["refunds_sum"], found["order_value_max"]) == (1, -12.5, 30)


def test_customers_with_only_refunds_or_free_orders_are_not_there() -> None:
    rows = [
        order(timedelta(days=4), -5, "refund"),
        order(timedelta(days=4), 0, "free"),
        order(timedelta(days=4), 1, "paid"),
    ]
    assert list(features_of(rows)) == ["paid"]


def test_the_largest_amounts_add_up_exactly() -> None:
    rows = [order(timedelta(days=i + 1), "99999999999.99") for i in range(60)]
    assert features_of(rows)["c"]["spend_sum"] == 60 * 9999999999999 / 100


@pytest.mark.parametrize(("currency", "spend"), [("VND", 1235), ("KWD", 1234.568), ("USD", 1234.57)])
def test_features_are_in_currency_not_in_minor_units(currency: str, spend: float) -> None:
    assert features_of([order(timedelta(days=1), "1234.5678")], currency=currency)["c"]["spend_sum"] == spend
