"""What happened after a cutoff: the future lives here, where neither features nor serving can import it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import ibis
import pandas as pd

from features.errors import HorizonNotMature
from features.tables import History, Tables, days, show_time


def build_targets(tables: Tables, cutoffs: Iterable[datetime], horizon_days: int, as_of: datetime) -> pd.DataFrame:
    """orders -> customer_id, cutoff, repurchased (0 or 1), value (currency, net of refunds, may be negative).

    The window is `[cutoff, cutoff + horizon)`, read from what was known at `as_of`. A customer without an order or
    refund in the window has no row. Raises HorizonNotMature for a window that ends after `as_of`.
    """
    known = tables.before(as_of)
    frames = []
    for cutoff in sorted(set(cutoffs)):
        _require_mature(cutoff, horizon_days, as_of)
        frames.append(_of_window(known, cutoff, cutoff + days(horizon_days)))
    return pd.concat(frames, ignore_index=True)


def _of_window(known: History, start: datetime, end: datetime) -> pd.DataFrame:
    orders = known.orders
    inside = orders.filter((orders.time >= ibis.timestamp(start)) & (orders.time < ibis.timestamp(end)))
    outcome = inside.group_by("customer_id").aggregate(
        repurchased=(inside.amount > 0).max().cast("int64"), value=known.money(inside.amount.sum())
    )
    frame: pd.DataFrame = outcome.order_by("customer_id").to_pyarrow().to_pandas()
    frame.insert(1, "cutoff", pd.Series([start] * len(frame), dtype="datetime64[us]"))
    return frame


def _require_mature(cutoff: datetime, horizon_days: int, as_of: datetime) -> None:
    end = cutoff + days(horizon_days)
    if end <= as_of:
        return
    short = -(-(end - as_of) // days(1))
    raise HorizonNotMature(
        f"the target at cutoff {show_time(cutoff)} needs orders up to {show_time(end)}; "
        f"orders may be read up to {show_time(as_of)} ({short} days short).\n"
        f"  Latest usable cutoff for a {horizon_days}-day horizon: {show_time(as_of - days(horizon_days))}."
    )
