"""The metrics survive ties, empties and constants, and do not read the order of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import metrics

Metric = Callable[..., float]
Pairs = list[tuple[float, float]]

PROBABILITY: list[Metric] = [
    metrics.roc_auc,
    metrics.average_precision,
    metrics.brier,
    metrics.log_loss,
    metrics.expected_calibration_error,
]
VALUE: list[Metric] = [
    metrics.normalized_gini,
    metrics.spearman,
    metrics.decile_mape,
    metrics.bias,
    metrics.top_decile_capture,
    metrics.decile_lift,
]

# Few distinct scores, so that ties are the rule.
scores = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
probability_samples = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), scores), max_size=60)
money = st.one_of(st.just(0.0), st.integers(-50_000, 500_000).map(lambda cents: cents / 100))
value_samples = st.lists(st.tuples(money, st.one_of(scores, money.map(abs))), max_size=60)


def columns(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(pairs, dtype=float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


@settings(max_examples=60, deadline=None)
@given(probability_samples, st.randoms(use_true_random=False))
def test_row_order_changes_no_probability_metric(pairs: Pairs, random: Random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    for metric in PROBABILITY:
        assert same(metric(*columns(pairs)), metric(*columns(shuffled))), metric.__name__


@settings(max_examples=60, deadline=None)
@given(value_samples, st.randoms(use_true_random=False))
def test_row_order_changes_no_value_metric_or_table(pairs: Pairs, random: Random) -> None:
    shuffled = random.sample(pairs, len(pairs))
    for metric in VALUE:
        assert same(metric(*columns(pairs)), metric(*columns(shuffled))), metric.__name__
    pd.testing.assert_frame_equal(metrics.decile_table(*columns(pairs)), metrics.decile_table(*columns(shuffled)))
    pd.testing.assert_frame_equal(metrics.gain_table(*columns(pairs)), metrics.gain_table(*columns(shuffled)))


def test_a_metric_that_breaks_ties_by_row_would_be_caught() -> None:
    """The positive control of the two tests above: a decile error without averaging depends on the order."""

    def by_row(value: np.ndarray, predicted: np.ndarray) -> float:
        order = np.argsort(-predicted, kind="stable")
        parts = [part.mean() for part in np.array_split(value[order], 10)]
        return float(np.mean([abs(part - predicted.mean()) / part for part in parts if part > 0]))

    value, predicted = np.r_[np.zeros(10), np.arange(1.0, 11.0)], np.full(20, 2.75)
    odd = np.r_[value[::2], value[1::2]]
    assert by_row(value, predicted) != by_row(odd, predicted)
    assert metrics.decile_mape(value, predicted) == metrics.decile_mape(odd, predicted)


@settings(max_examples=60, deadline=None)
@given(probability_samples)
def test_probability_metrics_stay_in_their_range_or_are_nan_where_documented(pairs: Pairs) -> None:
    y, p = columns(pairs)
    found = metrics.probability_metrics(y, p)
    for name in ("roc_auc", "average_precision", "brier", "expected_calibration_error"):
        assert math.isnan(found[name]) or 0 <= found[name] <= 1, name
    assert found["log_loss"] >= 0 or not pairs
    assert math.isnan(found["roc_auc"]) == (len(set(y)) < 2)
    assert math.isnan(found["average_precision"]) == (1.0 not in y)
    assert math.isnan(found["brier"]) == (not pairs)


@settings(max_examples=100, deadline=None)
@given(value_samples)
def test_value_metrics_stay_in_their_range_or_are_nan_where_documented(pairs: Pairs) -> None:
    value, predicted = columns(pairs)
    found = metrics.value_metrics(value, predicted)
    floored = np.maximum(value, 0)
    assert math.isnan(found["normalized_gini"]) == (len(set(floored)) < 2)
    assert not found["normalized_gini"] > 1 + 1e-9 and not found["normalized_gini"] < -1 - 1e-9
    assert not found["top_decile_capture"] > 1 + 1e-9 and not found["top_decile_capture"] < 0
    assert math.isnan(found["top_decile_capture"]) == (floored.sum() == 0)
    assert not found["decile_mape"] < 0
    assert not abs(found["spearman"]) > 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=40).filter(lambda values: len(set(values)) > 1))
def test_the_perfect_order_has_gini_one_and_its_reverse_minus_one(value: list[float]) -> None:
    assert metrics.normalized_gini(value, value) == pytest.approx(1)
    assert metrics.normalized_gini(value, [-v for v in value]) == pytest.approx(-1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-10, 1e6), min_size=2, max_size=40), st.floats(-5, 5))
def test_constant_predictions_have_gini_exactly_zero_in_any_row_order(value: list[float], constant: float) -> None:
    found = metrics.normalized_gini(value, [constant] * len(value))
    assert found == 0 or (math.isnan(found) and len({max(v, 0) for v in value}) == 1)


def test_gini_is_the_area_between_gain_curves_on_a_case_by_hand() -> None:
    # Gains of the model 0, .1, .5, 1 and of the perfect order 0, .5, .9, 1 over thirds, less the diagonal.
    assert metrics.normalized_gini([1, 4, 5], [3, 2, 1]) == pytest.approx(-1)
    assert metrics.normalized_gini([1, 4, 5, 0], [3, 5, 4, 0]) == pytest.approx(8 / 9)


def test_tied_predictions_count_as_the_average_of_every_order_that_they_allow() -> None:
    value = [0.0, 10.0, 3.0, 1.0]
    tied = metrics.normalized_gini(value, [1, 1, 2, 0])
    orders = [metrics.normalized_gini(value, [1.1, 1, 2, 0]), metrics.normalized_gini(value, [1, 1.1, 2, 0])]
    assert orders[0] != orders[1] and tied == pytest.approx(np.mean(orders))


def test_auc_of_constants_is_a_half_and_a_perfect_ranking_is_one() -> None:
    assert metrics.roc_auc([0, 1, 1], [0.3, 0.3, 0.3]) == 0.5
    assert metrics.roc_auc([0, 1, 1], [0.1, 0.3, 0.2]) == 1
    assert metrics.average_precision([0, 1, 0, 1], [0.3] * 4) == 0.5


def test_brier_and_log_loss_by_hand() -> None:
    assert metrics.brier([0, 1], [0.2, 0.6]) == pytest.approx((0.04 + 0.16) / 2)
    assert metrics.log_loss([0, 1], [0.2, 0.6]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert 30 < metrics.log_loss([1], [0.0]) < 40


def test_calibration_error_is_the_gap_of_a_constant_and_zero_for_the_base_rate() -> None:
    y = np.r_[np.ones(30), np.zeros(70)]
    assert metrics.expected_calibration_error(y, np.full(100, 0.3)) == pytest.approx(0, abs=1e-12)
    assert metrics.expected_calibration_error(y, np.full(100, 0.5)) == pytest.approx(0.2)
    # Two levels, each off by a tenth in opposite directions: the gaps may not cancel.
    y = np.r_[np.ones(40), np.zeros(10), np.ones(10), np.zeros(40)]
    assert metrics.expected_calibration_error(y, np.repeat([0.9, 0.1], 50)) == pytest.approx(0.1)


def test_decile_mape_by_hand_and_with_most_predictions_equal() -> None:
    value = np.repeat(np.arange(1.0, 11.0), 3)
    assert metrics.decile_mape(value, value * 1.2) == pytest.approx(0.2)
    assert metrics.decile_mape(np.r_[np.zeros(90), np.full(10, 5.0)], np.r_[np.zeros(90), np.full(10, 4.0)]) == (
        pytest.approx(0.2)
    )
    mostly_equal = np.r_[np.zeros(60), np.arange(1.0, 41.0)]
    assert metrics.decile_mape(mostly_equal + 1, mostly_equal + 1) == pytest.approx(0)


def test_bias_compares_totals_and_refunds_subtract() -> None:
    assert metrics.bias([10, -2, 0], [4, 4, 4]) == pytest.approx(0.5)
    assert math.isnan(metrics.bias([5, -5], [1, 1]))


def test_capture_and_lift_agree_and_share_ties() -> None:
    value, predicted = np.r_[50.0, 30.0, np.zeros(8), np.full(10, 2.0)], np.r_[9.0, 8.0, np.zeros(18)]
    assert metrics.top_decile_capture(value, predicted) == pytest.approx(0.8)
    assert metrics.decile_lift(value, predicted) == pytest.approx(10 * 0.8)
    assert metrics.top_decile_capture(value, np.zeros(20)) == pytest.approx(0.1)
    assert metrics.decile_lift(value, np.zeros(20)) == pytest.approx(1)
    assert metrics.decile_lift(value, predicted, decile=2) == pytest.approx(2 * (20 / 18) / 100 * 10)
    assert math.isnan(metrics.decile_lift(value, predicted, decile=11))


def test_coverage_counts_both_ends_as_inside() -> None:
    assert metrics.interval_coverage([1, 2, 3, 4], [1, 0, 4, 0], [5, 2, 5, 3]) == 0.5
    assert math.isnan(metrics.interval_coverage([], [], []))


@pytest.mark.parametrize("metric", PROBABILITY + VALUE, ids=lambda metric: metric.__name__)
def test_an_empty_sample_has_no_metric(metric: Metric) -> None:
    assert math.isnan(metric([], []))


def test_a_baseline_without_predictions_has_all_metrics_undefined() -> None:
    found = metrics.probability_metrics([0, 1], None) | metrics.value_metrics([0, 1], None)
    assert len(found) == 10 and all(math.isnan(number) for number in found.values())


@pytest.mark.parametrize(
    ("metric", "first", "second", "message"),
    [
        (metrics.roc_auc, [0, 1], [0.5], "one length"),
        (metrics.bias, [1, 2], [np.nan, 3], "1 of 2 predictions are missing or infinite"),
        (metrics.normalized_gini, [np.inf, 2], [1, 3], "1 of 2 outcomes are missing or infinite"),
        (metrics.brier, [0, 2], [0.1, 0.2], "must be 0 or 1"),
        (metrics.expected_calibration_error, [0, 1], [0.1, 1.2], "0.1 to 1.2"),
    ],
)
def test_a_malformed_sample_is_an_error_that_says_why(
    metric: Metric, first: list[float], second: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(first, second)


def test_calibration_table_rises_and_counts_everyone() -> None:
    y, p = np.tile([0.0, 1.0], 52), np.linspace(0, 1, 104)
    table = metrics.calibration_table(y, p)
    assert list(table.columns) == ["predicted", "observed", "customers"]
    assert table.customers.sum() == 104 and set(table.customers) == {10, 11}
    assert table.predicted.is_monotonic_increasing and len(metrics.calibration_table(y, p, bins=4)) == 4
    gaps = np.average(np.abs(table.predicted - table.observed), weights=table.customers)
    assert gaps == pytest.approx(metrics.expected_calibration_error(y, p))


def test_gain_table_runs_from_nothing_to_everything() -> None:
    table = metrics.gain_table([0, 0, 6, 2], [1, 0, 3, 2], points=4)
    assert table.customers_share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert table.value_share.tolist() == pytest.approx([0, 0.75, 1, 1, 1])
    assert metrics.gain_table([0.0, 0.0], [1, 2], points=2).value_share.isna().all()


def test_decile_table_has_the_best_decile_first() -> None:
    predicted = np.arange(23.0)
    table = metrics.decile_table(predicted * 2, predicted)
    assert list(table.columns) == ["decile", "customers", "predicted", "actual"]
    assert table.decile.tolist() == list(range(1, 11)) and table.customers.tolist() == [3, 3, 3] + [2] * 7
    assert table.predicted.iloc[0] == 21 and table.actual.tolist() == (table.predicted * 2).tolist()
    assert len(metrics.decile_table([1.0, 2.0], [1.0, 2.0])) == 2


customer_rows = st.tuples(
    st.floats(0, 2000),
    st.floats(0, 2000),
    st.integers(1, 50),
    st.one_of(st.just(math.nan), st.floats(0, 700)),
)
SLICE_COLUMNS = ["tenure_days", "recency_days", "orders_count", "interpurchase_days_mean"]


@settings(max_examples=60, deadline=None)
@given(st.lists(customer_rows, max_size=40))
def test_every_customer_is_in_exactly_one_slice(rows: list[tuple[float, float, int, float]]) -> None:
    masks = metrics.slices(pd.DataFrame(rows, columns=SLICE_COLUMNS))
    assert list(masks) == ["new", "one_time", "repeat", "lapsed"]
    assert all(mask.dtype == bool for mask in masks.values())
    assert (np.sum(list(masks.values()), axis=0) == np.ones(len(rows))).all()


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ((30, 30, 1, math.nan), "new"),
        ((12, 1, 4, 3.0), "new"),
        ((31, 31, 1, math.nan), "one_time"),
        ((400, 90, 2, 10.0), "repeat"),
        ((400, 91, 2, 10.0), "lapsed"),
        ((900, 299, 3, 100.0), "repeat"),
        ((900, 301, 3, 100.0), "lapsed"),
        ((400, 91, 2, math.nan), "lapsed"),
    ],
)
def test_slices_follow_their_bounds(row: tuple[float, float, int, float], name: str) -> None:
    masks = metrics.slices(pd.DataFrame([row], columns=SLICE_COLUMNS))
    assert [found for found, mask in masks.items() if mask[0]] == [name]
