"""The judgement: of a model that saw nothing of the window, beside every baseline, slice by slice."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from training.baselines import Baseline
from training.bundle import Bundle
from training.dataset import Outcomes, build_dataset
from training.evaluate import MODEL, evaluate
from training.metrics import normalized_gini, roc_auc
from training.models import Parameters, fit_head

BASELINES = ["mean", "last_window", "rfm", "bg_nbd", "lightgbm_defaults"]
# MLflow takes letters, digits, underscores, dashes, periods, spaces, colons and slashes.
MLFLOW_NAME = re.compile(r"[\w\-. :/]{1,250}")


@pytest.fixture(scope="module")
def evaluation(trained):
    return trained.evaluation


@pytest.fixture(scope="module")
def judged(shop, tables, trained):
    """The rows of the evaluation cutoff."""
    cutoffs, spec = [trained.evaluation.cutoff], trained.bundle.spec
    return build_dataset(tables, cutoffs, [28, 90], shop.request.as_of, spec)


def test_the_model_stands_beside_every_baseline(evaluation):
    assert evaluation.comparison.index.tolist() == [MODEL, *BASELINES]
    assert evaluation.comparison.loc[MODEL].notna().all()
    assert not [entry.left_out for entry in evaluation.predictions.values() if entry.left_out]


def test_the_numbers_are_those_of_the_metrics(evaluation):
    model, outcomes = evaluation.predictions[MODEL], evaluation.outcomes
    row = evaluation.comparison.loc[MODEL]
    assert row["roc_auc"] == roc_auc(outcomes.repurchased, model.p)
    assert row["normalized_gini"] == normalized_gini(outcomes.value, model.value)
    assert 0.6 < row["roc_auc"] < 0.95
    assert evaluation.horizons.loc["p_repurchase_90d", "roc_auc"] == row["roc_auc"]


def test_the_slices_divide_the_customers(evaluation):
    slices = evaluation.slices
    assert set(slices.index) <= {"slice_new", "slice_one_time", "slice_repeat", "slice_lapsed"} and len(slices) >= 3
    assert slices["customers"].sum() == evaluation.customers
    buyers = (slices["customers"] * slices["base_rate"]).sum()
    assert buyers == pytest.approx(evaluation.outcomes.repurchased.sum())


def test_the_flat_metrics_are_finite_and_named_as_mlflow_takes_them(evaluation):
    flat = evaluation.metrics()
    assert all(MLFLOW_NAME.fullmatch(name) for name in flat)
    assert all(type(value) is float and np.isfinite(value) for value in flat.values())
    assert flat["customers"] == evaluation.customers and 0 < flat["base_rate"] < 1
    for name in (MODEL, "slice_new", "p_repurchase_28d"):
        assert f"{name}/roc_auc" in flat
    assert "last_window/roc_auc" not in flat  # it has no probability
    assert "ltv_28d/normalized_gini" in flat and "ltv_28d/roc_auc" not in flat
    print(f"{len(flat)} metrics")


def test_the_judged_window_ends_where_the_data_may_be_read_up_to(evaluation, shop, trained):
    assert evaluation.cutoff + timedelta(days=evaluation.horizon_days) <= shop.request.as_of
    for (_, horizon_days), split in trained.horizons.splits.items():
        assert max(split.training) + timedelta(days=horizon_days) <= split.evaluation == evaluation.cutoff


def test_a_leak_would_show(evaluation, judged, trained):
    """Models that have seen the judged window itself score far above the rehearsal."""
    leaky = Parameters(rounds=200, num_leaves=63, min_data_in_leaf=5, learning_rate=0.1, lambda_l2=0.1)
    heads = tuple(fit_head(judged, outcome, 90, leaky, 0) for outcome in ("repurchase", "ltv"))
    cheat = evaluate(Bundle(trained.bundle.spec, 90, heads), judged, [], evaluation.cutoff)
    honest = evaluation.comparison.loc[MODEL, "roc_auc"]
    print(f"honest AUC {honest:.3f}, with a leak {cheat.comparison.loc[MODEL, 'roc_auc']:.3f}")
    assert cheat.comparison.loc[MODEL, "roc_auc"] > honest + 0.1


def test_the_evaluation_is_of_the_rehearsal(evaluation, judged, trained):
    again = evaluate(trained.rehearsal, judged, [], evaluation.cutoff)
    np.testing.assert_array_equal(again.predictions[MODEL].p, evaluation.predictions[MODEL].p)
    released = evaluate(trained.bundle, judged, [], evaluation.cutoff)
    assert (released.predictions[MODEL].p != evaluation.predictions[MODEL].p).any()


def test_a_horizon_whose_window_is_not_over_is_left_out(evaluation, judged, trained):
    unknown = np.full(len(judged.snapshot.frame), np.nan)
    early = replace(judged, outcomes={**judged.outcomes, 28: Outcomes(unknown, unknown)})
    found = evaluate(trained.rehearsal, early, [], evaluation.cutoff)
    assert set(found.horizons.index) == {"p_repurchase_90d", "ltv_90d"}


def test_a_baseline_that_could_not_be_made_has_no_numbers(evaluation, judged, trained):
    found = evaluate(trained.rehearsal, judged, [Baseline("absent", None, None, "why")], evaluation.cutoff)
    assert found.comparison.loc["absent"].isna().all()
    assert not [name for name in found.metrics() if name.startswith("absent")]
