"""Snapshots beside their outcomes: aligned, and unknown where the window is not over."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from features.snapshot import learn_spec
from training.dataset import build_dataset, outcomes_of, purchase_days

EARLY, LATE, AS_OF = datetime(2024, 2, 1), datetime(2024, 5, 1), datetime(2024, 6, 1)
ORDERS = [
    ("a", "2024-01-05", 10),
    ("a", "2024-02-10", 20),
    ("b", "2024-01-07", 30),
    ("c", "2024-03-03", 40),
    ("a", "2024-05-20", 50),
]


@pytest.fixture
def dataset(shop_of):
    with shop_of(ORDERS) as tables:
        yield build_dataset(tables, [EARLY, LATE], [30, 60], AS_OF, learn_spec(tables, EARLY))


def test_each_row_has_its_own_outcome(dataset):
    keys = [tuple(row) for row in dataset.snapshot.frame[["customer_id", "cutoff"]].itertuples(index=False)]
    assert keys == [("a", EARLY), ("b", EARLY), ("a", LATE), ("b", LATE), ("c", LATE)]
    np.testing.assert_array_equal(dataset.outcomes[30].repurchased, [1, 0, 1, 0, 0])
    np.testing.assert_array_equal(dataset.outcomes[30].value, [20, 0, 50, 0, 0])


def test_windows_that_are_not_over_are_unknown(dataset):
    nan = np.nan
    np.testing.assert_array_equal(dataset.outcomes[60].repurchased, [1, 0, nan, nan, nan])
    np.testing.assert_array_equal(dataset.outcomes[60].value, [20, 0, nan, nan, nan])


def test_a_dataset_without_a_mature_window_knows_nothing(shop_of, dataset):
    with shop_of(ORDERS) as tables:
        found = outcomes_of(tables, dataset.snapshot, 30, datetime(2024, 2, 2))
    assert np.isnan(found.repurchased).all() and np.isnan(found.value).all()


def test_choosing_cutoffs_keeps_rows_and_outcomes_together(dataset):
    late = dataset.at([LATE])
    assert late.snapshot.frame["customer_id"].tolist() == ["a", "b", "c"]
    assert late.snapshot.frame.index.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(late.outcomes[30].value, [50, 0, 0])
    assert len(dataset.at([]).snapshot.frame) == 0
    pd.testing.assert_frame_equal(dataset.at([EARLY, LATE]).snapshot.frame, dataset.snapshot.frame)


def test_purchase_days_count_days_not_orders(shop_of):
    orders = [
        ("a", "2024-01-05T08:00:00Z", 10),
        ("a", "2024-01-05T09:00:00Z", 5),  # the first day once more
        ("a", "2024-01-15T23:59:59Z", 20),
        ("a", "2024-01-25", 30),
        ("a", "2024-01-26", -30),  # a refund is no purchase
        ("a", "2024-03-01", 99),  # at the cutoff
        ("b", "2024-02-29T23:00:00Z", 7),
    ]
    with shop_of(orders) as tables:
        found = purchase_days(tables, datetime(2024, 3, 1)).set_index("customer_id")
    assert found.loc["a"].to_dict() == {"frequency": 2.0, "recency": 20.0, "age": 56.0, "mean_value": 25.0}
    assert found.loc["b", ["frequency", "recency", "age"]].tolist() == [0, 0, 1]
    assert np.isnan(found.loc["b", "mean_value"])
