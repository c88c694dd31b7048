"""One model: what it refuses to learn from, that money has no unit inside, and equal bytes on any number of threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl

from features.errors import TooLittleData
from training import models
from training.dataset import Outcomes
from training.models import MIN_BUYERS, MIN_ROWS, Parameters, fit_head, require_learnable

QUICK = Parameters(rounds=40)


def outcomes(rows: int, buyers: int, payers: int | None = None) -> Outcomes:
    bought = np.arange(rows) < buyers
    paid = np.arange(rows) < (buyers if payers is None else payers)
    return Outcomes(bought.astype(np.float64), np.where(paid, 12.5, 0.0))


@pytest.mark.parametrize(
    ("found", "outcome", "message"),
    [
        (outcomes(99, 40), "repurchase", "99 customer moments .* to learn from at 90 days; at least 100 are needed"),
        (outcomes(0, 0), "repurchase", "0 customer moments"),
        (outcomes(5000, 0), "repurchase", "0 of 5,000 customer moments bought again within 90 days; at least 20"),
        (outcomes(5000, 19), "ltv", "19 of 5,000 customer moments bought again .* try another horizon"),
        (outcomes(1000, 1000), "repurchase", "0 of 1,000 customer moments did not buy again"),
        (outcomes(1000, 981), "repurchase", "19 of 1,000 customer moments did not buy again"),
        (outcomes(1000, 500, payers=19), "ltv", "19 of 1,000 customer moments brought money in, refunds subtracted"),
        (Outcomes(np.array([1, np.nan, 0]), np.zeros(3)), "repurchase", "1 of 3 outcomes at 90 days are unknown"),
        (Outcomes(np.zeros(3), np.full(3, np.nan)), "ltv", "3 of 3 outcomes at 90 days are unknown"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_the_numbers(found, outcome, message):
    with pytest.raises(TooLittleData, match=message):
        require_learnable(found, outcome, 90)


def test_what_is_just_enough_is_learned_from():
    require_learnable(outcomes(MIN_ROWS, MIN_BUYERS), "ltv", 90)
    require_learnable(outcomes(MIN_ROWS, MIN_ROWS - MIN_BUYERS), "repurchase", 90)
    require_learnable(outcomes(1000, 500, payers=0), "repurchase", 90)


def test_fitting_refuses_by_itself(dataset_of):
    dataset = dataset_of(customers=60, cutoffs=1)
    with pytest.raises(TooLittleData, match="60 customer moments"):
        fit_head(dataset, "repurchase", 30, QUICK, 0)
    unknown = replace(dataset_of(), outcomes={30: Outcomes(np.full(1600, np.nan), np.full(1600, np.nan))})
    with pytest.raises(TooLittleData, match="1,600 of 1,600 outcomes at 30 days are unknown"):
        fit_head(unknown, "ltv", 30, QUICK, 0)


def test_a_smallest_shop_still_makes_a_model(dataset_of):
    dataset = dataset_of(customers=MIN_ROWS, cutoffs=1)
    p = fit_head(dataset, "repurchase", 30, QUICK, 0).predict(dataset.snapshot.matrix())
    assert len(np.unique(p)) > 1


def test_a_model_learns_what_there_is_to_learn(dataset_of):
    past, later = dataset_of(seed=1), dataset_of(seed=2)
    p = fit_head(past, "repurchase", 30, QUICK, 0).predict(later.snapshot.matrix())
    value = fit_head(past, "ltv", 30, QUICK, 0).predict(later.snapshot.matrix())
    bought = later.outcomes[30].repurchased == 1
    assert ((p > 0) & (p < 1)).all() and p[bought].mean() > p[~bought].mean() + 0.1
    assert (value >= 0).all() and value.mean() == pytest.approx(later.outcomes[30].value.mean(), rel=0.15)


def test_value_in_another_currency_is_the_same_value(dataset_of):
    dollars, dong = dataset_of(currency=1.0), dataset_of(currency=25_000.0)
    in_dollars = fit_head(dollars, "ltv", 30, Parameters(), 0).predict(dollars.snapshot.matrix())
    in_dong = fit_head(dong, "ltv", 30, Parameters(), 0).predict(dong.snapshot.matrix())
    np.testing.assert_allclose(in_dong, in_dollars * 25_000, rtol=1e-6)
    assert np.ptp(in_dollars) > 10


def test_refunds_beyond_the_window_do_not_make_value_negative(dataset_of):
    dataset = dataset_of()
    value = dataset.outcomes[30].value.copy()
    value[::3] = -40.0
    refunded = replace(dataset, outcomes={30: Outcomes(dataset.outcomes[30].repurchased, value)})
    assert (fit_head(refunded, "ltv", 30, QUICK, 0).predict(dataset.snapshot.matrix()) >= 0).all()


@pytest.mark.parametrize("outcome", ["repurchase", "ltv"])
def test_threads_change_no_byte_and_the_seed_does(dataset_of, monkeypatch, outcome):
    monkeypatch.setattr(models, "ROWS_FOR_THREADS", 0)
    dataset = dataset_of()

    def text(threads: int, seed: int) -> str:
        with threadpoolctl.threadpool_limits(threads, user_api="openmp"):
            return fit_head(dataset, outcome, 30, Parameters(rounds=10), seed).booster.model_to_string()

    assert text(1, 5) == text(2, 5)
    assert text(1, 5) != text(1, 6)


def test_the_number_of_threads_depends_on_the_rows_alone(dataset_of, monkeypatch):
    dataset = dataset_of()
    assert "[num_threads: 1]" in fit_head(dataset, "repurchase", 30, QUICK, 0).booster.model_to_string()
    monkeypatch.setattr(models, "ROWS_FOR_THREADS", len(dataset.snapshot.frame))
    assert "[num_threads: 0]" in fit_head(dataset, "repurchase", 30, QUICK, 0).booster.model_to_string()
