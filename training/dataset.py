"""Snapshots with their outcomes: the rows that models learn from and are judged on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from features.snapshot import KEYS, FeatureSpec, Snapshot, build_snapshot
from features.tables import DAY_US, Tables, days
from training.targets import build_targets


@dataclass(frozen=True)
class Outcomes:
    """What happened within one horizon, aligned to a snapshot's rows; NaN where the window is not over.

    `repurchased` is 0 or 1, `value` net revenue in currency.
    """

    repurchased: np.ndarray
    value: np.ndarray

    def of(self, rows: np.ndarray) -> Outcomes:
        """The rows under a boolean mask."""
        return Outcomes(self.repurchased[rows], self.value[rows])


@dataclass(frozen=True)
class Dataset:
    """A snapshot and, per horizon in days, its outcomes."""

    snapshot: Snapshot
    outcomes: Mapping[int, Outcomes]

    def at(self, cutoffs: Collection[datetime]) -> Dataset:
        """The rows of these cutoffs."""
        rows = self.snapshot.frame["cutoff"].isin(list(cutoffs)).to_numpy()
        frame = self.snapshot.frame[rows].reset_index(drop=True)
        return Dataset(Snapshot(frame, self.snapshot.spec), {h: o.of(rows) for h, o in self.outcomes.items()})


def build_dataset(
    tables: Tables,
    cutoffs: Collection[datetime],
    horizons_days: Collection[int],
    as_of: datetime,
    spec: FeatureSpec,
) -> Dataset:
    """The snapshot at `cutoffs` and the outcome of every window that ends by `as_of`."""
    snapshot = build_snapshot(tables, cutoffs, spec)
    return Dataset(snapshot, {h: outcomes_of(tables, snapshot, h, as_of) for h in horizons_days})


def outcomes_of(tables: Tables, snapshot: Snapshot, horizon_days: int, as_of: datetime) -> Outcomes:
    """Outcomes of the snapshot's rows; a mature window without any order is (0, 0.0)."""
    keys = snapshot.frame[KEYS]
    mature = keys["cutoff"] + days(horizon_days) <= as_of
    cutoffs = [pd.Timestamp(c).to_pydatetime() for c in keys.loc[mature, "cutoff"].unique()]
    if not cutoffs:
        return Outcomes(np.full(len(keys), np.nan), np.full(len(keys), np.nan))
    found = keys.merge(build_targets(tables, cutoffs, horizon_days, as_of), on=KEYS, how="left")
    happened = found[["repurchased", "value"]].fillna(0.0).to_numpy(dtype=np.float64)
    happened[~mature.to_numpy()] = np.nan
    return Outcomes(happened[:, 0], happened[:, 1])


def known_then(tables: Tables, dataset: Dataset, horizons_days: Collection[int], moment: datetime) -> Dataset:
    """The same rows with their outcomes as the shop knew them at `moment`: what could be learned from, back then."""
    return Dataset(dataset.snapshot, {h: outcomes_of(tables, dataset.snapshot, h, moment) for h in horizons_days})


def spend_in_last_window(tables: Tables, snapshot: Snapshot, cutoff: datetime, horizon_days: int) -> np.ndarray:
    """orders -> net spend (currency) in the `horizon_days` before the cutoff, one number per row of the snapshot."""
    history = tables.before(cutoff)
    recent = history.orders.filter(history.orders.age_us <= horizon_days * DAY_US)
    spent = recent.group_by("customer_id").aggregate(spent=history.money(recent.amount.sum())).to_pyarrow().to_pandas()
    found = snapshot.frame[["customer_id"]].merge(spent, on="customer_id", how="left")
    return found["spent"].fillna(0.0).to_numpy(dtype=np.float64)


def purchase_days(tables: Tables, cutoff: datetime) -> pd.DataFrame:
    """orders -> customer_id, frequency, recency, age, mean_value: what BG/NBD and Gamma-Gamma know of a customer.

    The unit is the day (UTC) with a paid order: frequency counts such days after the first, recency is the age at
    the last, age the days from the first to the cutoff, mean_value the currency per repeat day (missing without one).
    """
    history = tables.before(cutoff)
    orders = history.paid_orders
    by_day = orders.group_by("customer_id", day=orders.time.date()).aggregate(spent=orders.amount.sum())
    frame = by_day.order_by("customer_id", "day").to_pyarrow().to_pandas()
    frame["day"] = pd.to_datetime(frame["day"])
    frame["spent"] = frame["spent"].astype("float64") / 10**tables.currency_digits
    groups = frame.groupby("customer_id", sort=True)
    first, last, spent = groups["day"].min(), groups["day"].max(), groups["spent"]
    repeats = groups.size() - 1
    summary = pd.DataFrame(
        {
            "frequency": repeats,
            "recency": (last - first).dt.days,
            "age": (pd.Timestamp(cutoff) - first).dt.days,
            "mean_value": (spent.sum() - spent.first()) / repeats.where(repeats > 0),
        }
    )
    return summary.reset_index()
