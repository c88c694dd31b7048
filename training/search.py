"""Optuna's search for LightGBM parameters, judged on a later window than those learned from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import optuna
from sklearn.metrics import log_loss, mean_tweedie_deviance

from features.errors import TooLittleData
from features.tables import days
from training.bundle import Outcome
from training.cutoffs import split_by_time
from training.dataset import Dataset
from training.models import VARIANCE_POWER, Parameters, fit_head, require_learnable


@dataclass(frozen=True)
class Found:
    """The parameters of one outcome, how many trials were run, and why none were where none were."""

    parameters: Parameters
    trials: int
    note: str = ""


def _silent() -> None:
    """Nobody wants to hear of a trial."""


def search(
    dataset: Dataset,
    outcome: Outcome,
    horizon_days: int,
    trials: int,
    seed: int,
    progress: Callable[[], None] = _silent,
) -> Found:
    """The best of `trials` parameter sets for `outcome`, the defaults being the first tried.

    Each is fitted on the older cutoffs of `dataset` and judged on its latest, which no window learned from reaches
    into. Where the dataset is too short for that, the defaults are kept and the note says so.
    """
    if trials == 0:
        return Found(Parameters(), 0, "no trials were asked for")
    parts = learn_and_judge(dataset, outcome, horizon_days)
    if parts is None:
        return Found(Parameters(), 0, "too little history for a search: defaults")
    learn, judge = parts

    def loss(trial: optuna.Trial) -> float:
        head = fit_head(learn, outcome, horizon_days, _suggest(trial), seed)
        progress()
        return prediction_loss(outcome, judge, horizon_days, head.predict(judge.snapshot.matrix()))

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(Parameters().to_json())
    study.optimize(loss, n_trials=trials)
    return Found(Parameters(**study.best_params), trials)


def learn_and_judge(dataset: Dataset, outcome: Outcome, horizon_days: int) -> tuple[Dataset, Dataset] | None:
    """The rows of the older cutoffs and of the latest, None where the older ones are too few to learn from."""
    cutoffs = tuple(stamp.to_pydatetime() for stamp in sorted(dataset.snapshot.frame["cutoff"].unique()))
    split = split_by_time(cutoffs, horizon_days, cutoffs[-1] + days(horizon_days))
    if split is None:
        return None
    learn = dataset.at(split.training)
    try:
        require_learnable(learn.outcomes[horizon_days], outcome, horizon_days)
    except TooLittleData:
        return None
    return learn, dataset.at([split.evaluation])


def _suggest(trial: optuna.Trial) -> Parameters:
    return Parameters(
        rounds=trial.suggest_int("rounds", 50, 600, step=50),
        learning_rate=trial.suggest_float("learning_rate", 0.01, 0.1, log=True),
        num_leaves=trial.suggest_int("num_leaves", 4, 63, log=True),
        min_data_in_leaf=trial.suggest_int("min_data_in_leaf", 20, 1000, log=True),
        feature_fraction=trial.suggest_float("feature_fraction", 0.3, 1.0),
        lambda_l2=trial.suggest_float("lambda_l2", 0.1, 100.0, log=True),
    )


def prediction_loss(outcome: Outcome, judge: Dataset, horizon_days: int, predicted: np.ndarray) -> float:
    """The loss that the model itself minimises, on rows it has not seen."""
    happened = judge.outcomes[horizon_days]
    if outcome == "repurchase":
        return float(log_loss(happened.repurchased, predicted, labels=[0, 1]))
    floor = np.finfo(np.float64).tiny
    value = np.maximum(happened.value, 0.0)
    return float(mean_tweedie_deviance(value, np.maximum(predicted, floor), power=VARIANCE_POWER))
