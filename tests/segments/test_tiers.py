"""Tiers: frozen bounds, so that nobody's tier depends on anybody else."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from features.settings import TierSettings
from segments.tiers import TierPolicy, fit_tier_policy, tier_table

NAMES, SHARES = TierSettings().names, TierSettings().shares


def scores_at_random(random: np.random.Generator) -> np.ndarray:
    """Money as it comes: many ties, many zeros, some large."""
    scores = random.lognormal(3, 1.5, random.integers(1, 400))
    scores[random.random(len(scores)) < random.random()] = 0.0
    return np.round(scores, int(random.integers(0, 3)))


def shares_at_random(random: np.random.Generator) -> tuple[tuple[str, ...], np.ndarray]:
    shares = random.dirichlet(np.ones(random.integers(1, 7)))
    return tuple(f"tier {place}" for place in range(len(shares))), shares


def test_any_subset_gives_every_customer_the_tier_of_the_whole():
    random, compared, relabelled = np.random.default_rng(1), 0, 0
    for _ in range(300):
        scores = scores_at_random(random)
        policy = fit_tier_policy("ltv_90d", scores, NAMES, SHARES)
        whole = policy.assign(scores)
        chosen = random.permutation(len(scores))[: random.integers(1, len(scores) + 1)]
        np.testing.assert_array_equal(policy.assign(scores[chosen]), whole[chosen])
        compared += len(chosen)
        # The control: bounds taken from the subset itself relabel customers.
        relabelled += (fit_tier_policy("ltv_90d", scores[chosen], NAMES, SHARES).assign(scores) != whole).sum()
    print(f"{compared} customers compared; quantiles of the subset would relabel {relabelled}")
    assert compared > 10_000 and relabelled > 1000


def test_no_tier_with_those_above_exceeds_its_shares_and_ties_are_never_split():
    random, ties = np.random.default_rng(2), 0
    for _ in range(500):
        scores, (names, shares) = scores_at_random(random), shares_at_random(random)
        tiers = fit_tier_policy("ltv_90d", scores, names, shares).assign(scores)
        for count in range(1, len(names)):
            held = np.isin(tiers, names[:count]).mean()
            assert held <= shares[:count].sum() + 1e-9
        rank = np.array([names.index(tier) for tier in tiers])
        order = np.argsort(-scores, kind="stable")
        assert (np.diff(rank[order]) >= 0).all()
        same = np.diff(scores[order]) == 0
        ties += same.sum()
        assert (np.diff(rank[order])[same] == 0).all()
    print(f"500 shops, {ties} ties")
    assert ties > 10_000


def test_without_ties_the_shares_are_met_exactly():
    policy = fit_tier_policy("ltv_90d", np.arange(1000.0), NAMES, SHARES)
    tiers, counts = np.unique(policy.assign(np.arange(1000.0)), return_counts=True)
    assert dict(zip(tiers, counts, strict=True)) == {"platinum": 50, "gold": 150, "silver": 300, "bronze": 500}
    assert policy.lower_bounds == (950.0, 800.0, 500.0)


def test_equal_scores_all_fall_to_the_last_tier():
    policy = fit_tier_policy("ltv_90d", np.full(100, 7.0), NAMES, SHARES)
    assert policy.lower_bounds == (None, None, None)
    assert set(policy.assign(np.array([7.0, 0.0, 1e9]))) == {"bronze"}


def test_nobody_makes_a_policy_and_has_no_tiers():
    policy = fit_tier_policy("ltv_90d", np.zeros(0), NAMES, SHARES)
    assert policy.assign(np.zeros(0)).shape == (0,)
    assert policy.assign(np.array([5.0])).tolist() == ["bronze"]


def test_an_unknown_score_is_in_the_last_tier():
    policy = TierPolicy("ltv_90d", ("best", "rest"), (10.0,))
    assert policy.assign(np.array([np.nan, 10.0, np.nextafter(10.0, 0)])).tolist() == ["rest", "best", "rest"]


def test_one_tier_takes_everybody():
    assert set(fit_tier_policy("ltv_90d", np.arange(5.0), ["all"], [1.0]).assign(np.arange(5.0))) == {"all"}


@pytest.mark.parametrize("scores", [np.arange(1000.0) / 7, np.full(9, 1.0)])
def test_a_policy_survives_json_to_the_last_bit(scores):
    policy = fit_tier_policy("ltv_90d", scores, NAMES, SHARES)
    assert TierPolicy.from_json(json.loads(json.dumps(policy.to_json(), allow_nan=False))) == policy


def test_the_tier_table_adds_up_and_shows_empty_tiers():
    random = np.random.default_rng(3)
    policy = TierPolicy("ltv_90d", ("none here", "high", "low"), (None, 50.0))
    ltv = random.gamma(1, 60, 500)
    scores = pd.DataFrame({"tier": policy.assign(ltv), "p_repurchase_90d": random.random(500), "ltv_90d": ltv})
    table = tier_table(scores, policy, 90)
    assert table["tier"].tolist() == ["none here", "high", "low"]
    assert table.columns.tolist() == [
        *("tier", "customers", "share", "p_repurchase_mean", "ltv_mean", "ltv_sum", "value_share")
    ]
    assert table["customers"].sum() == 500 and table["customers"].tolist()[0] == 0
    assert table["ltv_sum"].sum() == pytest.approx(ltv.sum())
    assert table["share"].sum() == pytest.approx(1) and table["value_share"].sum() == pytest.approx(1)
    high = scores[scores["tier"] == "high"]
    assert table.loc[1, "p_repurchase_mean"] == pytest.approx(high["p_repurchase_90d"].mean())
    assert table.loc[1, "ltv_mean"] == pytest.approx(high["ltv_90d"].mean())
    assert np.isnan(table.loc[0, "ltv_mean"])


def test_the_tier_table_of_nobody_has_every_tier():
    empty = pd.DataFrame({"tier": [], "p_repurchase_90d": [], "ltv_90d": []})
    table = tier_table(empty, TierPolicy("ltv_90d", ("a", "b"), (1.0,)), 90)
    assert table["customers"].tolist() == [0, 0] and table["value_share"].tolist() == [0.0, 0.0]
