"""How a bundle does on a window that it has not seen, beside every baseline and slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from segments.scores import ltv_column, repurchase_column
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
    p, value = (scores[column(horizon)].to_numpy() for column in (repurchase_column, ltv_column))
    model = Baseline(MODEL, p, value)
    predictions = {entry.name: entry for entry in (model, *baselines)}
    return Evaluation(
        cutoff=cutoff,
        horizon_days=horizon,
        outcomes=outcomes,
        predictions=predictions,
        comparison=pd.DataFrame({name: _metrics(outcomes, entry) for name, entry in predictions.items()}).T,
        slices=_by_slice(judged, outcomes, model),
        horizons=_by_head(bundle, judged, scores),
    )


def _by_head(bundle: Bundle, judged: Dataset, scores: pd.DataFrame) -> pd.DataFrame:
    """Every head whose window is over at this cutoff, by the name of its column."""
    rows = {}
    for head in bundle.heads:
        outcomes, predicted = judged.outcomes[head.horizon_days], scores[head.column].to_numpy()
        if np.isnan(outcomes.value).any():
            continue
        if head.outcome == "repurchase":
            rows[head.column] = probability_metrics(outcomes.repurchased, predicted)
        else:
            rows[head.column] = value_metrics(outcomes.value, predicted)
    return pd.DataFrame(rows).T


def _metrics(outcomes: Outcomes, predicted: Baseline) -> dict[str, float]:
    return probability_metrics(outcomes.repurchased, predicted.p) | value_metrics(outcomes.value, predicted.value)


def _by_slice(judged: Dataset, outcomes: Outcomes, model: Baseline) -> pd.DataFrame:
    rows = {}
    for name, inside in slices(judged.snapshot.frame).items():
        if model.p is None or model.value is None or not inside.any():
            continue
        part = Baseline(name, model.p[inside], model.value[inside])
        count = {"customers": float(inside.sum()), "base_rate": float(outcomes.repurchased[inside].mean())}
        rows[f"slice_{name}"] = count | _metrics(outcomes.of(inside), part)
    return pd.DataFrame(rows).T
