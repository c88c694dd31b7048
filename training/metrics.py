"""How good predictions are: pure functions, a sample of customers in, one float out.

Three promises hold for every function here:

- The order of the rows changes nothing, to the last bit: rows are sorted by prediction and outcome first.
- Customers with equal predictions share the mean of their outcomes, so a tie is never broken by luck.
- What is not defined is `nan` (an empty sample, one class only, no money at all); each docstring says when.

A sample that is malformed (lengths that differ, a value that is not finite, an outcome other than 0 and 1 or
a probability outside 0 to 1 where a probability is judged) is a `ValueError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from sklearn import metrics as sklearn_metrics

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

GROUPS = 10
NEW_TENURE_DAYS = 30.0
LAPSED_RECENCY_DAYS = 90.0
LAPSED_GAPS = 3.0


class _Groups(NamedTuple):
    """Equal-count groups of customers, highest prediction first, as three arrays of one length."""

    customers: Floats
    outcome: Floats
    predicted: Floats


# ---------------------------------------------------------------------------------------- probabilities


def roc_auc(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Chance that a random buyer scores above a random non-buyer, ties counting half; up is better.

    `nan` unless both outcomes occur. Constant predictions give 0.5.
    """
    y, p = _binary_sample(y, p)
    return float(sklearn_metrics.roc_auc_score(y, p)) if 0 < y.sum() < y.size else np.nan


def average_precision(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Area under the precision-recall steps, tied predictions entering together; up is better.

    `nan` without a buyer. Constant predictions give the base rate.
    """
    y, p = _binary_sample(y, p)
    return float(sklearn_metrics.average_precision_score(y, p)) if y.any() else np.nan


def brier(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Mean squared distance of probability and outcome; down is better. `nan` when empty."""
    y, p = _binary_sample(y, p)
    return float(np.mean((p - y) ** 2)) if y.size else np.nan


def log_loss(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Mean negative log-likelihood in nats; down is better. `nan` when empty.

    A certain and wrong prediction costs about 36 nats, not infinity.
    """
    y, p = _binary_sample(y, p)
    return float(sklearn_metrics.log_loss(y, p, labels=[0.0, 1.0])) if y.size else np.nan


def expected_calibration_error(y: npt.ArrayLike, p: npt.ArrayLike) -> float:
    """Mean absolute gap of predicted and observed rate over 10 equal-count bins; down is better.

    Each bin counts by its customers, so a sample that does not divide by ten is not distorted. `nan` when
    empty.
    """
    y, p = _binary_sample(y, p)
    groups = _groups(y, p, GROUPS)
    gaps = np.abs(groups.predicted - groups.outcome)
    return float(np.average(gaps, weights=groups.customers)) if y.size else np.nan


# ------------------------------------------------------------------------------------------------ money


def normalized_gini(value: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Area under the gain curve over that of the perfect order, -1 to 1; up is better.

    Values are floored at 0. Both areas are written as sums of value x centred average rank, which is why
    constant predictions give exactly 0. `nan` when all floored values are equal: there is nothing to rank.
    """
    value, predicted = _money_sample(value, predicted)
    if _constant(value):
        return np.nan
    above = (value - value.min()) / (value.max() - value.min())
    middle = (value.size + 1) / 2
    reached = above @ (stats.rankdata(predicted) - middle)
    return float(reached / (above @ (stats.rankdata(value) - middle)))


def spearman(value: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Rank correlation of floored value and prediction, -1 to 1; up is better. `nan` if one is constant."""
    value, predicted = _money_sample(value, predicted)
    if _constant(value) or _constant(predicted):
        return np.nan
    return float(stats.spearmanr(value, predicted).statistic)


def decile_mape(value: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Mean of abs(mean value - mean prediction) / mean value over 10 equal-count groups; down is better.

    Net value, not floored. Groups whose mean value is not above 0 are left out; `nan` when none remains.
    Fewer than ten customers make fewer groups.
    """
    groups = _groups(*_sample(value, predicted), GROUPS)
    earning = groups.outcome > 0
    actual = groups.outcome[earning]
    return float(np.mean(np.abs(actual - groups.predicted[earning]) / actual)) if actual.size else np.nan


def bias(value: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Total predicted / total actual - 1, net; near 0 is better. `nan` unless the actual total is above 0."""
    value, predicted = _sample(value, predicted)
    total = value.sum()
    return float(predicted.sum() / total - 1) if total > 0 else np.nan


def top_decile_capture(value: npt.ArrayLike, predicted: npt.ArrayLike) -> float:
    """Share of the floored value held by the tenth of customers predicted highest, 0 to 1; up is better.

    A tenth that is not a whole number of customers takes its part of the last one. `nan` without any value.
    """
    value, predicted = _money_sample(value, predicted)
    return float(_captured(value, predicted, np.array([1 / GROUPS]))[0])


def decile_lift(outcome: npt.ArrayLike, predicted: npt.ArrayLike, decile: int = 1) -> float:
    """Mean outcome of one score decile (1 is the highest) over the overall mean; up is better for decile 1.

    The outcome may be 0 and 1 or money. `nan` unless the overall mean is above 0 and the decile has
    customers; fewer than ten customers make fewer deciles.
    """
    outcome, predicted = _sample(outcome, predicted)
    groups = _groups(outcome, predicted, GROUPS)
    if not 1 <= decile <= groups.outcome.size or outcome.mean() <= 0:
        return np.nan
    return float(groups.outcome[decile - 1] / outcome.mean())


def interval_coverage(value: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike) -> float:
    """Share of values inside their interval, ends included; near the promise is better. `nan` when empty."""
    value, lower = _aligned(value, lower)
    value, upper = _aligned(value, upper)
    return float(np.mean((lower <= value) & (value <= upper))) if value.size else np.nan


# ------------------------------------------------------------------------------------------- the reports

_PROBABILITY: tuple[Callable[[npt.ArrayLike, npt.ArrayLike], float], ...] = (
    roc_auc,
    average_precision,
    brier,
    log_loss,
    expected_calibration_error,
)
_VALUE: tuple[Callable[[npt.ArrayLike, npt.ArrayLike], float], ...] = (
    normalized_gini,
    spearman,
    decile_mape,
    bias,
    top_decile_capture,
)


def probability_metrics(y: npt.ArrayLike, p: npt.ArrayLike | None) -> dict[str, float]:
    """Every probability metric by the name of its function; all `nan` without a probability (`p=None`)."""
    return {metric.__name__: np.nan if p is None else metric(y, p) for metric in _PROBABILITY}


def value_metrics(value: npt.ArrayLike, predicted: npt.ArrayLike | None) -> dict[str, float]:
    """Every value metric by the name of its function; all `nan` without a prediction (`predicted=None`)."""
    return {metric.__name__: np.nan if predicted is None else metric(value, predicted) for metric in _VALUE}


def calibration_table(y: npt.ArrayLike, p: npt.ArrayLike, bins: int = GROUPS) -> pd.DataFrame:
    """Equal-count bins, lowest first: predicted (mean p), observed (share of buyers), customers."""
    groups = _groups(*_binary_sample(y, p), bins)
    return pd.DataFrame(
        {
            "predicted": groups.predicted[::-1],
            "observed": groups.outcome[::-1],
            "customers": groups.customers[::-1].astype(np.int64),
        }
    )


def gain_table(value: npt.ArrayLike, predicted: npt.ArrayLike, points: int = 100) -> pd.DataFrame:
    """The gain curve in `points` steps from (0, 0): customers_share (best first), value_share (floored).

    `points + 1` rows; value_share is `nan` without any value.
    """
    value, predicted = _money_sample(value, predicted)
    shares = np.linspace(0, 1, points + 1)
    return pd.DataFrame({"customers_share": shares, "value_share": _captured(value, predicted, shares)})


def decile_table(value: npt.ArrayLike, predicted: npt.ArrayLike) -> pd.DataFrame:
    """Equal-count deciles, 1 the highest: decile, customers, predicted and actual (mean net currency)."""
    groups = _groups(*_sample(value, predicted), GROUPS)
    return pd.DataFrame(
        {
            "decile": np.arange(1, groups.customers.size + 1),
            "customers": groups.customers.astype(np.int64),
            "predicted": groups.predicted,
            "actual": groups.outcome,
        }
    )


def slices(frame: pd.DataFrame) -> dict[str, Mask]:
    """The four groups that are always judged apart; every customer is in exactly one.

    tenure_days, recency_days, orders_count, interpurchase_days_mean -> name -> mask over the rows

    - new: first order at most 30 days ago, however many followed;
    - one_time: not new, one paid order;
    - lapsed: not new, 2+ paid orders, silent for longer than 90 days and than three of their own usual gaps
      (a customer without a known gap is held to the 90 days alone);
    - repeat: not new, 2+ paid orders, not lapsed.
    """
    new = _column(frame, "tenure_days") <= NEW_TENURE_DAYS
    several = _column(frame, "orders_count") >= 2
    usual_gaps = LAPSED_GAPS * np.nan_to_num(_column(frame, "interpurchase_days_mean"))
    silent = _column(frame, "recency_days") > np.maximum(LAPSED_RECENCY_DAYS, usual_gaps)
    return {
        "new": new,
        "one_time": ~new & ~several,
        "repeat": ~new & several & ~silent,
        "lapsed": ~new & several & silent,
    }


# -------------------------------------------------------------------------------------------- the sample


def _aligned(outcome: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Two finite float arrays of one length, or `ValueError`."""
    first, second = np.asarray(outcome, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        found = f"got {first.shape} and {second.shape}"
        raise ValueError(f"outcome and prediction must be two lists of one length, {found}")
    for name, array in (("outcomes", first), ("predictions", second)):
        wrong = int(np.count_nonzero(~np.isfinite(array)))
        if wrong:
            raise ValueError(f"{wrong} of {array.size} {name} are missing or infinite")
    return first, second


def _sample(outcome: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both arrays by falling prediction, then rising outcome: the one order in which sums are taken."""
    first, second = _aligned(outcome, predicted)
    order = np.lexsort((first, -second))
    return first[order], second[order]


def _money_sample(value: npt.ArrayLike, predicted: npt.ArrayLike) -> tuple[Floats, Floats]:
    first, second = _aligned(value, predicted)
    return _sample(np.maximum(first, 0.0), second)


def _binary_sample(y: npt.ArrayLike, p: npt.ArrayLike) -> tuple[Floats, Floats]:
    first, second = _sample(y, p)
    if not np.isin(first, (0.0, 1.0)).all():
        raise ValueError("outcomes of a probability must be 0 or 1")
    if ((second < 0) | (second > 1)).any():
        raise ValueError(f"probabilities must be in 0 to 1, got {second.min():g} to {second.max():g}")
    return first, second


def _constant(array: Floats) -> bool:
    return array.size == 0 or bool(array.min() == array.max())


def _averaged_over_ties(outcome: Floats, predicted: Floats) -> Floats:
    """The outcome of each row of a sorted sample, replaced by the mean over the rows of equal prediction."""
    if outcome.size == 0:
        return outcome
    starts = np.flatnonzero(np.r_[True, np.diff(predicted) != 0])
    counts = np.diff(np.r_[starts, outcome.size])
    return np.repeat(np.add.reduceat(outcome, starts) / counts, counts)


def _groups(outcome: Floats, predicted: Floats, count: int) -> _Groups:
    """Up to `count` groups of a sorted sample whose sizes differ by one at most."""
    averaged = _averaged_over_ties(outcome, predicted)
    pairs = zip(np.array_split(averaged, count), np.array_split(predicted, count), strict=True)
    rows = [(part.size, part.mean(), score.mean()) for part, score in pairs if part.size]
    return _Groups(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


def _captured(value: Floats, predicted: Floats, shares: Floats) -> Floats:
    """Share of a sorted sample's value held by the leading `shares` of its customers."""
    total = value.sum()
    if total <= 0:
        return np.full(shares.shape, np.nan)
    cumulated = np.r_[0.0, np.cumsum(_averaged_over_ties(value, predicted))]
    held = np.interp(shares * value.size, np.arange(value.size + 1), cumulated / cumulated[-1])
    return np.asarray(held, dtype=np.float64)


def _column(frame: pd.DataFrame, name: str) -> Floats:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
