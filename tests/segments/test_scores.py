"""The columns of the scores, and scores that never fall with the horizon."""

from __future__ import annotations

import numpy as np
import pandas as pd

from segments.scores import ltv_column, non_decreasing, repurchase_column, score_columns


def test_columns_are_named_by_the_horizon_and_come_in_one_order():
    assert (repurchase_column(7), ltv_column(365)) == ("p_repurchase_7d", "ltv_365d")
    assert score_columns([7, 90], [90]) == [
        "customer_id",
        "cutoff",
        "p_repurchase_7d",
        "p_repurchase_90d",
        "p_churn",
        "ltv_90d",
        "tier",
        "model_version",
        "basis",
    ]


def test_a_longer_horizon_is_raised_to_the_shorter_and_nothing_else_changes():
    random = np.random.default_rng(0)
    scores = pd.DataFrame(random.random((500, 4)), columns=["a", "b", "c", "other"])
    raised = non_decreasing(scores, ["a", "b", "c"])
    assert (raised["a"] <= raised["b"]).all() and (raised["b"] <= raised["c"]).all()
    pd.testing.assert_frame_equal(raised[["a", "other"]], scores[["a", "other"]])
    np.testing.assert_array_equal(raised["b"], np.maximum(scores["a"], scores["b"]))
    in_order = (scores["a"] <= scores["b"]) & (scores["b"] <= scores["c"])
    assert 0 < in_order.sum() < 500
    pd.testing.assert_frame_equal(raised[in_order], scores[in_order])


def test_scores_of_nobody_and_of_no_column_stay_as_they_are():
    scores = pd.DataFrame({"a": [2.0], "b": [1.0]})
    pd.testing.assert_frame_equal(non_decreasing(scores, []), scores)
    assert non_decreasing(scores.iloc[:0], ["a", "b"]).shape == (0, 2)
