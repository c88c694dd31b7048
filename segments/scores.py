"""The output contract: the columns that batch files and API answers share."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


def repurchase_column(horizon_days: int) -> str:
    """P(at least one paid order in the window), 0 to 1."""
    return f"p_repurchase_{horizon_days}d"


def ltv_column(horizon_days: int) -> str:
    """Expected net revenue in the window, in the shop's currency, at least 0."""
    return f"ltv_{horizon_days}d"


def score_columns(repurchase_horizons_days: Sequence[int], ltv_horizons_days: Sequence[int]) -> list[str]:
    """The columns of a table of scores, in order; `tier` is the TierPolicy's, the rest the Bundle's."""
    return [
        "customer_id",
        "cutoff",
        *map(repurchase_column, repurchase_horizons_days),
        "p_churn",
        *map(ltv_column, ltv_horizons_days),
        "tier",
        "model_version",
        "basis",
    ]


def non_decreasing(scores: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """`scores` with `columns` (shortest horizon first) raised, where needed, to the one before."""
    raised = scores[list(columns)].cummax(axis=1)
    return scores.assign(**{column: raised[column] for column in columns})
