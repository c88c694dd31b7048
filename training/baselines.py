"""The simple predictors that stand beside every model: what it must beat to be worth its keep.

A snapshot frame has one row per customer and cutoff, as `build_snapshot` names its columns; a targets frame
has the rows of its snapshot frame in the same order, with repurchased (0 or 1) and value (net currency).
Predictions come back in the order of the evaluation frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightgbm import LGBMClassifier, LGBMRegressor

from features.btyd import BtydNotFitted, fit_bg_nbd, fit_gamma_gamma

Floats = npt.NDArray[np.float64]

QUINTILES = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Baseline:
    """One baseline's predictions per evaluation row: p (0 to 1) and value (currency), None where it has none.

    `left_out` is empty, or the reason why this baseline could not be made for this shop; then both are None.
    """

    name: str
    p: Floats | None
    value: Floats | None
    left_out: str = ""


def all_baselines(
    train: pd.DataFrame,
    train_targets: pd.DataFrame,
    evaluation: pd.DataFrame,
    horizon_days: int,
    btyd_input: pd.DataFrame,
    spend_in_last_window: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[Baseline]:
    """The five baselines, always in the same order; one that cannot be fitted carries its reason.

    train, train_targets: past customers and what they did; evaluation: the customers to predict; btyd_input
    and spend_in_last_window: see `bg_nbd` and `last_window`. Without `spend_in_last_window` the evaluation
    column `spend_sum_{horizon_days}d` is read.
    """
    if spend_in_last_window is None:
        spend_in_last_window = evaluation.get(f"spend_sum_{horizon_days}d")
    return [
        mean(train_targets, evaluation),
        last_window(spend_in_last_window, horizon_days),
        rfm(train, train_targets, evaluation),
        bg_nbd(evaluation, horizon_days, btyd_input),
        lightgbm_defaults(train, train_targets, evaluation, seed),
    ]


def mean(train_targets: pd.DataFrame, evaluation: pd.DataFrame) -> Baseline:
    """Everyone is average: the training base rate and the training mean value."""
    name = "mean"
    if train_targets.empty:
        return _without_training(name)
    p, value = (np.full(len(evaluation), train_targets[column].mean()) for column in ("repurchased", "value"))
    return Baseline(name, p, value)


def last_window(spend_in_last_window: npt.ArrayLike | None, horizon_days: int) -> Baseline:
    """The past repeats: value is the net spend of the last `horizon_days`, floored at 0; no probability.

    One spend per evaluation row; None leaves the baseline out.
    """
    name = "last_window"
    if spend_in_last_window is None:
        return Baseline(name, None, None, f"the spend of the last {horizon_days} days is not known")
    return Baseline(name, None, np.maximum(np.asarray(spend_in_last_window, dtype=np.float64), 0.0))


def rfm(train: pd.DataFrame, train_targets: pd.DataFrame, evaluation: pd.DataFrame) -> Baseline:
    """Quintile points 1 to 5 for recency, frequency and monetary value, added to a score of 3 to 15.

    recency_days, orders_count, order_value_mean -> the training rate and mean value of customers with that
    score. Quintile bounds are learned on the training frame; a score that it does not hold takes the nearest
    that it does, the lower one of two.
    """
    name = "rfm"
    if train.empty:
        return _without_training(name)
    by_score = train_targets[["repurchased", "value"]].groupby(_rfm_score(train, train)).mean()
    known = by_score.index.to_numpy()
    nearest = np.abs(_rfm_score(train, evaluation)[:, None] - known).argmin(axis=1)
    return Baseline(name, _floats(by_score["repurchased"])[nearest], _floats(by_score["value"])[nearest])


def bg_nbd(evaluation: pd.DataFrame, horizon_days: int, btyd_input: pd.DataFrame) -> Baseline:
    """BG/NBD with Gamma-Gamma, fitted on the history before the evaluation cutoff; no target is read.

    btyd_input: customer_id, frequency (days with a paid order after the first such day), recency (age at the
    last such day), age (days since the first), mean_value (mean paid currency of the `frequency` days,
    missing when there is none); any order of rows, at least the customers of the evaluation frame.
    """
    name = "bg_nbd"
    histories = _histories_of(evaluation, btyd_input)
    x, t_x, T = (_floats(histories[column]) for column in ("frequency", "recency", "age"))
    mean_value = _floats(histories["mean_value"])
    try:
        orders = fit_bg_nbd(x, t_x, T)
        money = fit_gamma_gamma(x, mean_value)
    except BtydNotFitted as reason:
        return Baseline(name, None, None, str(reason))
    value = orders.expected_orders(x, t_x, T, horizon_days) * money.expected_order_value(x, mean_value)
    return Baseline(name, orders.p_repurchase(x, t_x, T, horizon_days), value)


def lightgbm_defaults(
    train: pd.DataFrame, train_targets: pd.DataFrame, evaluation: pd.DataFrame, seed: int = 0
) -> Baseline:
    """What a first afternoon gives: LightGBM's defaults on five columns of the latest training cutoff.

    recency_days, tenure_days, orders_count, order_value_mean, purchase_days_count -> recency and tenure
    (whole days), purchase days, mean paid currency a purchase day, paid sum. Both the value learned and the
    value predicted are floored at 0. Where training holds one outcome only, everyone gets that one.
    """
    name = "lightgbm_defaults"
    if train.empty:
        return _without_training(name)
    latest = (train["cutoff"] == train["cutoff"].max()).to_numpy()
    known, asked = _first_afternoon(train[latest]), _first_afternoon(evaluation)
    bought = train_targets["repurchased"].to_numpy()[latest].astype(np.int64)
    value = np.maximum(_floats(train_targets["value"])[latest], 0.0)
    return Baseline(name, _learned_p(known, bought, asked, seed), _learned_value(known, value, asked, seed))


def _defaults(seed: int) -> dict[str, Any]:
    # One thread: on these few columns a second one gains nothing and stalls when the machine is busy.
    return {"deterministic": True, "force_row_wise": True, "random_state": seed, "verbose": -1, "n_jobs": 1}


def _learned_p(known: pd.DataFrame, bought: npt.NDArray[np.int64], asked: pd.DataFrame, seed: int) -> Floats:
    # LightGBM trains on a single class without a word.
    if np.unique(bought).size == 1 or asked.empty:
        return np.full(len(asked), float(bought[0]))
    classifier = LGBMClassifier(**_defaults(seed)).fit(known, bought)
    return np.asarray(classifier.predict_proba(asked), dtype=np.float64)[:, 1]


def _learned_value(known: pd.DataFrame, value: Floats, asked: pd.DataFrame, seed: int) -> Floats:
    if asked.empty:
        return np.zeros(0)
    regressor = LGBMRegressor(**_defaults(seed)).fit(known, value)
    return np.maximum(_floats(regressor.predict(asked)), 0.0)


def _first_afternoon(frame: pd.DataFrame) -> pd.DataFrame:
    days = _floats(frame["purchase_days_count"])
    paid = _floats(frame["orders_count"]) * _floats(frame["order_value_mean"])
    return pd.DataFrame(
        {
            "recency": np.ceil(_floats(frame["recency_days"])),
            "frequency": days,
            "monetary_mean": paid / days,
            "monetary_sum": paid,
            "tenure": np.ceil(_floats(frame["tenure_days"])),
        }
    )


def _rfm_score(train: pd.DataFrame, frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    recency = 5 - _quintile(train, frame, "recency_days")
    frequency, monetary = (1 + _quintile(train, frame, name) for name in ("orders_count", "order_value_mean"))
    return np.asarray(recency + frequency + monetary, dtype=np.int64)


def _quintile(train: pd.DataFrame, frame: pd.DataFrame, column: str) -> npt.NDArray[np.intp]:
    """0 (lowest) to 4; a value on a bound belongs to the lower quintile, so ties stay together."""
    bounds = np.quantile(_floats(train[column]), QUINTILES)
    return np.searchsorted(bounds, _floats(frame[column]), side="left")


def _histories_of(evaluation: pd.DataFrame, btyd_input: pd.DataFrame) -> pd.DataFrame:
    """The histories in the order of the evaluation frame; `ValueError` unless each has exactly one."""
    places = pd.Index(btyd_input["customer_id"])
    if not places.is_unique:
        raise ValueError(f"{places.duplicated().sum()} of {len(places)} histories are of a customer named before")
    found = places.get_indexer(pd.Index(evaluation["customer_id"]))
    if (found < 0).any():
        first = evaluation["customer_id"].iloc[int(np.argmax(found < 0))]
        raise ValueError(f"{(found < 0).sum()} of {found.size} customers have no history (first: {first})")
    histories: pd.DataFrame = btyd_input.iloc[found]
    return histories


def _without_training(name: str) -> Baseline:
    return Baseline(name, None, None, "no training cutoff has a mature target")


def _floats(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)
