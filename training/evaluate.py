"""How a bundle does on a window that it has not seen, beside every baseline and slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from training.baselines import Baseline
from training.bundle import Bundle
from training.dataset import Dataset, Outcomes
from training.metrics import probability_metrics, slices, value_metrics

MODEL = "tiercast"


@dataclass(frozen=True)
class Evaluation:
    """The judgement of one evaluation cutoff at the primary horizon.

    `predictions` holds model and baselines by name, over the same customers as `outcomes`; `comparison` has one row
    per name and one column per metric; `slices` one row per slice, for the model; `horizons` one row per head.
    """

    cutoff: datetime
    horizon_days: int
    outcomes: Outcomes
    predictions: Mapping[str, Baseline]
    comparison: pd.DataFrame
    slices: pd.DataFrame
    horizons: pd.DataFrame

    @property
    def customers(self) -> int:
        return len(self.outcomes.value)

    @property
    def base_rate(self) -> float:
        """Share of the customers who bought again."""
        return float(self.outcomes.repurchased.mean())

    def metrics(self) -> dict[str, float]:
        """Everything as one flat mapping, `<row>/<metric>`, without what is undefined."""
        flat = {"customers": float(self.customers), "base_rate": self.base_rate}
        for table in (self.comparison, self.slices, self.horizons):
            for name, row in table.iterrows():
                flat |= {f"{name}/{metric}": float(value) for metric, value in row.items() if np.isfinite(value)}
        return flat


def evaluate(bundle: Bundle, judged: Dataset, baselines: Sequence[Baseline], cutoff: datetime) -> Evaluation:
    """`bundle` and `baselines` on the rows of one cutoff, whose outcomes none of them has seen."""
    horizon = bundle.primary_horizon_days
    scores = bundle.score(judged.snapshot, model_version="")
    outcomes = judged.outcomes[horizon]
    by_column = {head.column: head for head in bundle.heads}
    model = Baseline(MODEL, scores[f"p_repurchase_{horizon}d"].to_numpy(), scores[f"ltv_{horizon}d"].to_numpy())
    predictions = {entry.name: entry for entry in (model, *baselines)}
    horizons = {
        column: _metrics_of_head(head.outcome == "repurchase", judged.outcomes[head.horizon_days], scores[column].to_numpy())
        for column, head in by_column.items()
        if not np.isnan(judged.outcomes[head.horizon_days].value).any()
    }
    return Evaluation(
        cutoff=cutoff,
        horizon_days=horizon,
        outcomes=outcomes,
        predictions=predictions,
        comparison=pd.DataFrame({name: _metrics(outcomes, entry) for name, entry in predictions.items()}).T,
        slices=_by_slice(judged, outcomes, model),
        horizons=pd.DataFrame(horizons).T,
    )


def _metrics(outcomes: Outcomes, predicted: Baseline) -> dict[str, float]:
    return probability_metrics(outcomes.repurchased, predicted.p) | value_metrics(outcomes.value, predicted.value)


def _metrics_of_head(is_probability: bool, outcomes: Outcomes, predicted: np.ndarray) -> dict[str, float]:
    if is_probability:
        return probability_metrics(outcomes.repurchased, predicted)
    return value_metrics(outcomes.value, predicted)


def _by_slice(judged: Dataset, outcomes: Outcomes, model: Baseline) -> pd.DataFrame:
    rows = {}
    for name, inside in slices(judged.snapshot.frame).items():
        if model.p is None or model.value is None or not inside.any():
            continue
        part = Baseline(name, model.p[inside], model.value[inside])
        count = {"customers": float(inside.sum()), "base_rate": float(outcomes.repurchased[inside].mean())}
        rows[f"slice_{name}"] = count | _metrics(outcomes.of(inside), part)
    return pd.DataFrame(rows).T
