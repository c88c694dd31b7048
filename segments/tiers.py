"""Tiers: value classes with bounds that are fitted once per release and then frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from segments.scores import ltv_column, repurchase_column


@dataclass(frozen=True)
class TierPolicy:
    """Ordered tier names, best first, over one score column.

    `lower_bounds[i]` is the lowest score of `names[i]`; None where no score was high enough when the policy was
    fitted. The last tier has no bound. A customer's tier depends on their own score alone.
    """

    score: str
    names: tuple[str, ...]
    lower_bounds: tuple[float | None, ...]

    def assign(self, scores: np.ndarray) -> np.ndarray:
        """scores, shape (customers,) -> tier names, shape (customers,)."""
        tiers = np.full(len(scores), self.names[-1], dtype=object)
        for name, bound in reversed(list(zip(self.names, self.lower_bounds, strict=False))):
            if bound is not None:
                tiers[np.asarray(scores) >= bound] = name
        return tiers

    def to_json(self) -> dict[str, Any]:
        return {"score": self.score, "names": list(self.names), "lower_bounds": list(self.lower_bounds)}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> TierPolicy:
        return cls(found["score"], tuple(found["names"]), tuple(found["lower_bounds"]))


def fit_tier_policy(score: str, scores: np.ndarray, names: Sequence[str], shares: Sequence[float]) -> TierPolicy:
    """A policy under which no tier and those above it hold more than their shares of these customers.

    `shares` are population shares, best tier first, adding up to 1. Equal scores are never split: where they
    straddle a bound, all of them fall to the lower tier.
    """
    distinct, counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)
    share_at_or_above = counts[::-1].cumsum()[::-1] / max(1, counts.sum())
    bounds: list[float | None] = []
    for wanted in np.cumsum(shares)[:-1]:
        fitting = distinct[share_at_or_above <= wanted + 1e-12]
        bounds.append(float(fitting[0]) if len(fitting) else None)
    return TierPolicy(score, tuple(names), tuple(bounds))


def tier_table(scores: pd.DataFrame, policy: TierPolicy, horizon_days: int) -> pd.DataFrame:
    """scores -> one row per tier, best first, of how many customers it has and what they are worth.

    Columns: tier, customers, share, p_repurchase_mean, ltv_mean, ltv_sum, value_share. Money is in currency, over
    `horizon_days`; a tier without customers has a row with none, its means missing.
    """
    p, ltv = scores[repurchase_column(horizon_days)], scores[ltv_column(horizon_days)]
    tiers = pd.DataFrame({"tier": scores["tier"], "p": p, "ltv": ltv}).groupby("tier")
    totals = tiers.agg(customers=("p", "size"), ltv_sum=("ltv", "sum")).reindex(list(policy.names), fill_value=0)
    return pd.DataFrame(
        {
            "tier": policy.names,
            "customers": totals["customers"].to_numpy(),
            "share": (totals["customers"] / max(1, len(scores))).to_numpy(),
            "p_repurchase_mean": tiers["p"].mean().reindex(list(policy.names)).to_numpy(),
            "ltv_mean": tiers["ltv"].mean().reindex(list(policy.names)).to_numpy(),
            "ltv_sum": totals["ltv_sum"].to_numpy(dtype=np.float64),
            "value_share": (totals["ltv_sum"] / (totals["ltv_sum"].sum() or 1.0)).to_numpy(),
        }
    )
