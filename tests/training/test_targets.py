"""What happened in a window: its edges, its money, and nothing from after the moment one may read up to."""

from __future__ import annotations

from datetime import datetime

import pytest

from features.errors import HorizonNotMature
from training.targets import build_targets

CUTOFF, AS_OF = datetime(2024, 3, 1), datetime(2024, 12, 1)


def outcomes(shop_of, orders, horizon_days=30, as_of=AS_OF, cutoff=CUTOFF):
    """customer -> (repurchased, value)"""
    with shop_of(orders) as tables:
        found = build_targets(tables, [cutoff], horizon_days, as_of)
    return {row.customer_id: (row.repurchased, row.value) for row in found.itertuples()}


def test_the_window_is_half_open_to_the_microsecond(shop_of):
    orders = [
        ("before", "2024-02-29T23:59:59.999999Z", 1),
        ("at the cutoff", "2024-03-01T00:00:00Z", 2),
        ("last moment", "2024-03-30T23:59:59.999999Z", 3),
        ("at the end", "2024-03-31T00:00:00Z", 4),
    ]
    assert outcomes(shop_of, orders) == {"at the cutoff": (1, 2.0), "last moment": (1, 3.0)}


def test_neighbouring_windows_share_no_order_and_lose_none(shop_of):
    orders = [(f"c{day}", f"2024-03-{day:02d}T00:00:00Z", 1) for day in range(1, 31)]
    first = outcomes(shop_of, orders, 10, cutoff=datetime(2024, 3, 1))
    second = outcomes(shop_of, orders, 20, cutoff=datetime(2024, 3, 11))
    assert len(first) == 10 and len(second) == 20 and not set(first) & set(second)


def test_refunds_subtract_and_alone_are_no_repurchase(shop_of):
    orders = [
        ("both", "2024-03-05", 50.25),
        ("both", "2024-03-06", -20.75),
        ("refund only", "2024-03-05", -9.99),
        ("free only", "2024-03-05", 0),
        ("more back than paid", "2024-03-05", 5),
        ("more back than paid", "2024-03-06", -7),
    ]
    assert outcomes(shop_of, orders) == {
        "both": (1, 29.5),
        "refund only": (0, -9.99),
        "free only": (0, 0.0),
        "more back than paid": (1, -2.0),
    }


def test_rows_known_after_the_moment_one_may_read_up_to_are_not_counted(shop_of):
    def row(customer, known_time):
        return {"customer_id": customer, "time": "2024-03-05", "known_time": known_time, "amount": 5}

    orders = [row("in time", "2024-12-01T00:00:00Z"), row("late", "2024-12-01T00:00:00.000001Z")]
    assert set(outcomes(shop_of, orders)) == {"in time"}
    assert set(outcomes(shop_of, orders, as_of=datetime(2024, 12, 2))) == {"in time", "late"}


def test_a_window_may_end_with_the_data_and_not_a_moment_later(shop_of):
    orders = [("a", "2024-03-05", 5)]
    assert outcomes(shop_of, orders, 30, as_of=datetime(2024, 3, 31)) == {"a": (1, 5.0)}
    with pytest.raises(HorizonNotMature):
        outcomes(shop_of, orders, 30, as_of=datetime(2024, 3, 30, 23, 59, 59, 999999))


def test_an_immature_cutoff_is_refused_with_the_latest_usable_one(shop_of):
    with pytest.raises(HorizonNotMature) as refused:
        outcomes(shop_of, [("a", "2024-03-05", 5)], 90, datetime(2025, 1, 12), datetime(2024, 11, 1))
    assert str(refused.value) == (
        "the target at cutoff 2024-11-01 needs orders up to 2025-01-30; "
        "orders may be read up to 2025-01-12 (18 days short).\n"
        "  Latest usable cutoff for a 90-day horizon: 2024-10-14."
    )
    latest = datetime(2024, 10, 14)
    assert outcomes(shop_of, [("a", "2024-10-20", 5)], 90, datetime(2025, 1, 12), latest) == {"a": (1, 5.0)}


def test_one_immature_cutoff_among_many_is_enough_to_refuse(shop_of):
    with shop_of([("a", "2024-03-05", 5)]) as tables, pytest.raises(HorizonNotMature, match="cutoff 2024-11-20"):
        build_targets(tables, [CUTOFF, datetime(2024, 11, 20)], 30, AS_OF)


def test_several_cutoffs_come_sorted_with_their_own_windows(shop_of):
    orders = [("b", "2024-03-05", 1), ("a", "2024-03-05", 2), ("a", "2024-04-05", 4)]
    with shop_of(orders) as tables:
        found = build_targets(tables, [datetime(2024, 4, 1), CUTOFF, CUTOFF], 60, AS_OF)
    assert found.to_dict("list") == {
        "customer_id": ["a", "b", "a"],
        "cutoff": [CUTOFF, CUTOFF, datetime(2024, 4, 1)],
        "repurchased": [1, 1, 1],
        "value": [6.0, 1.0, 4.0],
    }
