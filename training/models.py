"""LightGBM for one outcome and one horizon, on rows that were checked first: LightGBM itself trains on anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightgbm
import numpy as np

from features.errors import TooLittleData
from training.bundle import Head, Outcome
from training.dataset import Dataset, Outcomes

MIN_ROWS = 100
MIN_BUYERS = 20
MIN_JUDGED = 10
VARIANCE_POWER = 1.5  # of the Tweedie distribution: between counts (1) and amounts (2), with a mass at zero
# Below this, threads wait for each other longer than they work: five times as long on a busy machine.
ROWS_FOR_THREADS = 50_000


@dataclass(frozen=True)
class Parameters:
    """What the search may change. The defaults are for a few thousand to a few million rows of noisy outcomes."""

    rounds: int = 200
    learning_rate: float = 0.03
    num_leaves: int = 15
    min_data_in_leaf: int = 100
    feature_fraction: float = 0.6
    lambda_l2: float = 5.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Equal bytes for equal input and seed, whatever the number of threads.
_REPRODUCIBLE = {"deterministic": True, "force_row_wise": True, "verbosity": -1}
_OBJECTIVE: Mapping[Outcome, dict[str, Any]] = {
    "repurchase": {"objective": "binary"},
    "ltv": {"objective": "tweedie", "tweedie_variance_power": VARIANCE_POWER},
}


def fit_head(dataset: Dataset, outcome: Outcome, horizon_days: int, parameters: Parameters, seed: int) -> Head:
    """A model of `outcome` within `horizon_days`, learned from every row of the dataset.

    Value is learned floored at 0 and in units of the mean positive value, so that the regularisation means the same
    in any currency. Raises TooLittleData where nothing can be learned; see `require_learnable`.
    """
    outcomes = dataset.outcomes[horizon_days]
    require_learnable(outcomes, outcome, horizon_days)
    label, scale = outcomes.repurchased, 1.0
    if outcome == "ltv":
        value = np.maximum(outcomes.value, 0.0)
        scale = float(value[value > 0].mean())
        label = value / scale
    names = list(dataset.snapshot.spec.names)
    data = lightgbm.Dataset(dataset.snapshot.matrix(), label, feature_name=names, free_raw_data=True)
    options = _options(outcome, parameters, len(label), seed)
    return Head(outcome, horizon_days, lightgbm.train(options, data, num_boost_round=parameters.rounds), scale)


def require_learnable(outcomes: Outcomes, outcome: Outcome, horizon_days: int) -> None:
    """Raises TooLittleData on too few rows, unknown outcomes, or outcomes that are nearly all the same.

    A row is a customer at a past cutoff; see MIN_ROWS and MIN_BUYERS. For "ltv", as many must have brought money in.
    """
    rows = len(outcomes.repurchased)
    unknown = int((np.isnan(outcomes.repurchased) | np.isnan(outcomes.value)).sum())
    if unknown:
        raise TooLittleData(f"{unknown:,} of {rows:,} outcomes at {horizon_days} days are unknown")
    if rows < MIN_ROWS:
        raise TooLittleData(
            f"{rows} customer moments (a customer at a past cutoff) to learn from at {horizon_days} days; "
            f"at least {MIN_ROWS} are needed: more customers, or more months of orders"
        )
    buyers, payers = int(outcomes.repurchased.sum()), int((outcomes.value > 0).sum())
    counted = [(buyers, "bought again"), (rows - buyers, "did not buy again")]
    if outcome == "ltv":
        counted.append((payers, "brought money in, refunds subtracted,"))
    for count, what in counted:
        if count < MIN_BUYERS:
            raise TooLittleData(
                f"{count} of {rows:,} customer moments {what} within {horizon_days} days; at least {MIN_BUYERS} are "
                "needed to learn a difference: try another horizon, or more months of orders"
            )


def _options(outcome: Outcome, parameters: Parameters, rows: int, seed: int) -> dict[str, Any]:
    """LightGBM's parameters; they are part of the model's text, so the number of threads depends on the rows alone."""
    options = {**_REPRODUCIBLE, **_OBJECTIVE[outcome], **parameters.to_json(), "seed": seed}
    del options["rounds"]
    options["num_threads"] = 1 if rows < ROWS_FOR_THREADS else 0
    options["min_data_in_leaf"] = min(parameters.min_data_in_leaf, rows // 20)
    return options


def require_judgeable(outcomes: Outcomes) -> None:
    """Raises TooLittleData where hardly anybody, or nearly everybody, bought in the evaluation window."""
    rows, buyers = len(outcomes.repurchased), int(np.sum(outcomes.repurchased))
    if min(buyers, rows - buyers) >= MIN_JUDGED:
        return
    raise TooLittleData(
        f"{buyers} of {rows} customers bought again in the window to judge the release by; at least {MIN_JUDGED} who "
        "do and as many who do not are needed. Where orders end before the data do, say so with --as-of"
    )
