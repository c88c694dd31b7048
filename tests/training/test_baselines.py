"""The baselines: aligned with the customers they are asked about, honest about what they cannot do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from training import baselines, metrics
from training.baselines import Baseline, all_baselines

NAMES = ["mean", "last_window", "rfm", "bg_nbd", "lightgbm_defaults"]
HORIZON_DAYS = 90
Shop = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def shop(customers: int, seed: int, cutoff: str) -> Shop:
    """A snapshot frame, its targets and its purchase histories, of customers with steady rates."""
    random = np.random.default_rng(seed)
    tenure = random.uniform(40, 400, customers)
    rate, price = random.gamma(0.6, 1 / 60, customers), random.gamma(5, 6, customers)
    repeats = random.poisson(rate * tenure)
    last = np.where(repeats > 0, tenure * random.beta(np.maximum(repeats, 1), 1), 0.0)
    bought = random.poisson(rate * HORIZON_DAYS)
    snapshot = pd.DataFrame(
        {
            "customer_id": [f"c{number}" for number in range(customers)],
            "cutoff": pd.Timestamp(cutoff),
            "recency_days": tenure - last,
            "orders_count": repeats + 1,
            "purchase_days_count": repeats + 1,
            "order_value_mean": price,
            "spend_sum": price * (repeats + 1),
            "tenure_days": tenure,
            "spend_sum_90d": random.normal(20, 30, customers),
        }
    )
    targets = pd.DataFrame({"repurchased": (bought > 0).astype(int), "value": bought * price})
    histories = pd.DataFrame(
        {
            "customer_id": snapshot["customer_id"],
            "frequency": repeats,
            "recency": last,
            "age": tenure,
            "mean_value": np.where(repeats > 0, price, np.nan),
        }
    )
    return snapshot, targets, histories


@pytest.fixture(scope="module")
def past() -> Shop:
    return shop(1500, 1, "2024-01-01")


@pytest.fixture(scope="module")
def present() -> Shop:
    return shop(1000, 2, "2024-06-01")


@pytest.fixture(scope="module")
def made(past: Shop, present: Shop) -> dict[str, Baseline]:
    return {b.name: b for b in all_baselines(past[0], past[1], present[0], HORIZON_DAYS, present[2])}


def values(baseline: Baseline) -> npt.NDArray[np.float64]:
    assert baseline.value is not None, baseline.left_out
    return baseline.value


def probabilities(baseline: Baseline) -> npt.NDArray[np.float64]:
    assert baseline.p is not None, baseline.left_out
    return baseline.p


def test_every_baseline_answers_for_every_customer(made: dict[str, Baseline]) -> None:
    assert list(made) == NAMES
    for name, baseline in made.items():
        assert not baseline.left_out and values(baseline).shape == (1000,) and np.isfinite(values(baseline)).all()
        assert (values(baseline) >= 0).all(), name
        if name == "last_window":
            assert baseline.p is None
        else:
            assert ((probabilities(baseline) >= 0) & (probabilities(baseline) <= 1)).all(), name


def test_those_that_look_at_the_customer_rank_better_than_chance(made: dict[str, Baseline], present: Shop) -> None:
    targets = present[1]
    for name in ("rfm", "bg_nbd", "lightgbm_defaults"):
        assert metrics.roc_auc(targets["repurchased"], probabilities(made[name])) > 0.7, name
        assert metrics.normalized_gini(targets["value"], values(made[name])) > 0.4, name
    assert metrics.normalized_gini(targets["value"], values(made["mean"])) == 0


def test_the_mean_is_that_of_training(past: Shop, present: Shop, made: dict[str, Baseline]) -> None:
    assert set(probabilities(made["mean"])) == {past[1]["repurchased"].mean()}
    assert set(values(made["mean"])) == {past[1]["value"].mean()}


def test_the_last_window_is_read_from_the_snapshot_unless_given(
    past: Shop, present: Shop, made: dict[str, Baseline]
) -> None:
    spend = present[0]["spend_sum_90d"].to_numpy()
    assert (spend < 0).any() and (values(made["last_window"]) == np.maximum(spend, 0)).all()
    spend = np.arange(1000.0)
    given = all_baselines(past[0], past[1], present[0], HORIZON_DAYS, present[2], spend_in_last_window=spend)
    assert values(given[1]).tolist() == list(range(1000))


def test_a_window_that_nobody_measured_leaves_its_baseline_out(past: Shop, present: Shop) -> None:
    evaluation = present[0].drop(columns="spend_sum_90d")
    unknown = all_baselines(past[0], past[1], evaluation, HORIZON_DAYS, present[2])[1]
    assert unknown.value is None and unknown.left_out == "the spend of the last 90 days is not known"


def test_rfm_gives_each_score_its_training_rate_and_an_unseen_score_the_nearest() -> None:
    train = pd.DataFrame(
        {
            "recency_days": [100.0, 80, 60, 40, 20],
            "orders_count": [1, 2, 3, 4, 5],
            "order_value_mean": [10.0, 20, 30, 40, 50],
        }
    )
    targets = pd.DataFrame({"repurchased": [0, 0, 1, 0, 1], "value": [0.0, 0, 30, 0, 90]})
    # Scores 3, 6, 9, 12, 15 are known; the last customer scores 5 + 5 + 3 = 13.
    asked = pd.DataFrame(
        {
            "recency_days": [20.0, 500, 60, 1],
            "orders_count": [9, 1, 3, 9],
            "order_value_mean": [99.0, 1, 30, 30],
        }
    )
    made = baselines.rfm(train, targets, asked)
    assert probabilities(made).tolist() == [1, 0, 1, 0]
    assert values(made).tolist() == [90, 0, 30, 0]


def test_rfm_survives_a_shop_in_which_everybody_is_alike() -> None:
    train = pd.DataFrame({"recency_days": [9.0] * 6, "orders_count": [1] * 6, "order_value_mean": [5.0] * 6})
    targets = pd.DataFrame({"repurchased": [1, 0, 0, 0, 0, 0], "value": [6.0, 0, 0, 0, 0, 0]})
    assert probabilities(baselines.rfm(train, targets, train)) == pytest.approx(1 / 6)
    assert values(baselines.rfm(train, targets, train)) == pytest.approx(1)


def test_histories_find_their_customers_whatever_their_order(present: Shop, made: dict[str, Baseline]) -> None:
    evaluation, _, histories = present
    shuffled = baselines.bg_nbd(evaluation, HORIZON_DAYS, histories.sample(frac=1, random_state=3))
    assert probabilities(shuffled) == pytest.approx(probabilities(made["bg_nbd"]), rel=1e-6)
    with pytest.raises(ValueError, match=r"1 of 1000 customers have no history \(first: c0\)"):
        baselines.bg_nbd(evaluation, HORIZON_DAYS, histories.iloc[1:])
    with pytest.raises(ValueError, match="2 of 1002 histories are of a customer named before"):
        baselines.bg_nbd(evaluation, HORIZON_DAYS, pd.concat([histories, histories.iloc[:2]]))


def test_a_baseline_that_cannot_be_fitted_carries_the_reason(past: Shop, present: Shop) -> None:
    once = present[2].assign(frequency=0, recency=0.0, mean_value=np.nan)
    made = all_baselines(past[0], past[1], present[0], HORIZON_DAYS, once)
    assert [b.name for b in made] == NAMES and [b.name for b in made if b.left_out] == ["bg_nbd"]
    assert made[3].p is None and made[3].value is None and "none of 1000 customers bought again" in made[3].left_out


def test_without_a_mature_past_only_the_untrained_baselines_answer(past: Shop, present: Shop) -> None:
    made = all_baselines(past[0].iloc[:0], past[1].iloc[:0], present[0], HORIZON_DAYS, present[2])
    assert [b.name for b in made if not b.left_out] == ["last_window", "bg_nbd"]
    assert {b.left_out for b in made if b.left_out} == {"no training cutoff has a mature target"}


def test_lightgbm_learns_from_the_latest_training_cutoff_only(
    past: Shop, present: Shop, made: dict[str, Baseline]
) -> None:
    older, older_targets, _ = shop(700, 4, "2023-06-01")
    both = pd.concat([older, past[0]], ignore_index=True)
    both_targets = pd.concat([older_targets.assign(repurchased=1, value=1e6), past[1]], ignore_index=True)
    again = baselines.lightgbm_defaults(both, both_targets, present[0])
    assert (probabilities(again) == probabilities(made["lightgbm_defaults"])).all()
    assert (values(again) == values(made["lightgbm_defaults"])).all()
    assert (values(baselines.mean(both_targets, present[0])) != values(made["mean"])).all()


def test_lightgbm_sees_purchase_days_however_many_orders_they_are_split_into(past: Shop, present: Shop) -> None:
    first = pd.DataFrame(
        {
            "recency_days": [4.2],
            "tenure_days": [30.0],
            "orders_count": [6],
            "order_value_mean": [10.0],
            "purchase_days_count": [3],
        }
    )
    assert baselines._first_afternoon(first).iloc[0].to_dict() == {
        "recency": 5,
        "frequency": 3,
        "monetary_mean": 20,
        "monetary_sum": 60,
        "tenure": 30,
    }
    halved = {
        "orders_count": past[0]["orders_count"] * 2,
        "order_value_mean": past[0]["order_value_mean"] / 2,
    }
    split = baselines.lightgbm_defaults(past[0].assign(**halved), past[1], present[0])
    assert (values(split) == values(baselines.lightgbm_defaults(past[0], past[1], present[0]))).all()


def test_lightgbm_gives_the_only_outcome_it_was_shown(past: Shop, present: Shop) -> None:
    never = past[1].assign(repurchased=0, value=-3.0)
    made = baselines.lightgbm_defaults(past[0], never, present[0])
    assert (probabilities(made) == 0).all() and (values(made) == 0).all()
