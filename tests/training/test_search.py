"""The search: it starts from the defaults, never ends below them, and judges on what was not learned from."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from training import search as module
from training.models import Parameters, fit_head
from training.search import learn_and_judge, prediction_loss, search


@pytest.fixture
def fitted(monkeypatch):
    """The parameters and rows of every model that a search fits."""
    seen = []

    def spy(dataset, outcome, horizon_days, parameters, seed):
        seen.append((dataset, parameters))
        return fit_head(dataset, outcome, horizon_days, replace(parameters, rounds=20), seed)

    monkeypatch.setattr(module, "fit_head", spy)
    return seen


@pytest.mark.parametrize("outcome", ["repurchase", "ltv"])
def test_the_best_is_never_worse_than_the_defaults_on_the_judged_window(dataset_of, outcome):
    dataset = dataset_of(customers=150, cutoffs=3)
    learn, judge = learn_and_judge(dataset, outcome, 30)

    def loss(parameters: Parameters) -> float:
        predicted = fit_head(learn, outcome, 30, parameters, 4).predict(judge.snapshot.matrix())
        return prediction_loss(outcome, judge, 30, predicted)

    found = search(dataset, outcome, 30, 6, 4)
    assert loss(found.parameters) <= loss(Parameters())
    assert loss(Parameters(rounds=1, num_leaves=2)) > loss(found.parameters)


def test_as_many_trials_as_asked_for_the_first_being_the_defaults(dataset_of, fitted):
    told = []
    found = search(dataset_of(), "repurchase", 30, 5, 0, lambda: told.append(1))
    assert (found.trials, found.note, len(fitted), len(told)) == (5, "", 5, 5)
    assert fitted[0][1] == Parameters()
    assert len({str(parameters) for _, parameters in fitted}) == 5
    assert found.parameters in [parameters for _, parameters in fitted]


def test_no_learned_window_reaches_into_the_judged_one(dataset_of, fitted):
    dataset = dataset_of(cutoffs=5)
    search(dataset, "ltv", 30, 2, 0)
    cutoffs = sorted(dataset.snapshot.frame["cutoff"].unique())
    for rows, _ in fitted:
        learned = set(rows.snapshot.frame["cutoff"])
        assert learned == set(cutoffs[:-1])
        assert max(learned) + timedelta(days=30) <= cutoffs[-1]


def test_outcomes_of_windows_that_reach_into_the_judged_one_change_nothing(dataset_of, fitted):
    """Cutoffs every 10 days and windows of 30: the two before the judged one overlap it."""
    dataset = dataset_of(cutoffs=6)
    frame = dataset.snapshot.frame
    start = frame["cutoff"].min()
    frame = frame.assign(cutoff=start + (frame["cutoff"] - start) / 3)
    every_ten = replace(dataset, snapshot=replace(dataset.snapshot, frame=frame))
    overlapping = frame["cutoff"].isin(sorted(frame["cutoff"].unique())[3:5]).to_numpy()
    outcomes = dataset.outcomes[30]
    poisoned = replace(outcomes, repurchased=np.where(overlapping, 1 - outcomes.repurchased, outcomes.repurchased))
    clean = search(every_ten, "repurchase", 30, 4, 0)
    assert clean == search(replace(every_ten, outcomes={30: poisoned}), "repurchase", 30, 4, 0)
    control = replace(outcomes, repurchased=np.roll(outcomes.repurchased, 1))
    assert clean != search(replace(every_ten, outcomes={30: control}), "repurchase", 30, 4, 0)


def test_equal_seeds_find_equal_parameters(dataset_of, fitted):
    first, again, other = (search(dataset_of(), "repurchase", 30, 4, seed) for seed in (7, 7, 8))
    assert first == again
    assert [p for _, p in fitted[:4]] == [p for _, p in fitted[4:8]] != [p for _, p in fitted[8:]]
    assert other.trials == 4


def test_a_history_too_short_for_a_search_keeps_the_defaults_and_says_so(dataset_of, fitted):
    note = "too little history for a search: defaults"
    one_window = search(dataset_of(cutoffs=1), "repurchase", 30, 5, 0)
    few_rows = search(dataset_of(customers=50, cutoffs=2), "ltv", 30, 5, 0)
    for found in (one_window, few_rows):
        assert (found.parameters, found.trials, found.note) == (Parameters(), 0, note)
    none_asked = search(dataset_of(), "repurchase", 30, 0, 0)
    assert (none_asked.parameters, none_asked.trials) == (Parameters(), 0) and "no trials" in none_asked.note
    assert not fitted
