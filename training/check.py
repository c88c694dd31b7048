"""The data report: what is there, what was quarantined and why, what the history can support."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from features.errors import Refused
from features.settings import Settings
from features.snapshot import FeatureSpec, build_snapshot
from features.tables import Tables, show_time
from training.cutoffs import cutoff_grid, days_needed, require_split, split_by_time
from training.dataset import outcomes_of
from training.models import require_learnable


@dataclass(frozen=True)
class HorizonReport:
    """Whether one outcome can be learned at one horizon: `windows` past ones to learn from, or what is missing."""

    outcome: str
    horizon_days: int
    windows: int
    reason: str


@dataclass(frozen=True)
class DataReport:
    """What `tiercast check` says; `refusals` is what `tiercast train` would refuse, empty when it would train."""

    tables: tuple[dict[str, Any], ...]
    as_of: datetime
    buyers: int
    repeat_buyers: int
    horizons: tuple[HorizonReport, ...]
    refusals: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(tables: Tables, settings: Settings, as_of: datetime) -> DataReport:
    """tables -> the report as of a cutoff. Raises CutoffOutsideData."""
    tables.require_inside(as_of)
    orders = tables.before(as_of).paid_orders
    per_customer = orders.group_by("customer_id").aggregate(orders=orders.count())
    counts = per_customer.aggregate(buyers=per_customer.count(), repeat=(per_customer.orders > 1).sum()).to_pyarrow().to_pylist()[0]
    refusals = _refusals(tables, settings, as_of)
    return DataReport(
        tables=tuple(asdict(intake) for intake in tables.intake),
        as_of=as_of,
        buyers=counts["buyers"],
        repeat_buyers=counts["repeat"] or 0,
        horizons=tuple(_horizons(tables, settings, as_of)),
        refusals=refusals,
    )


def _horizons(tables: Tables, settings: Settings, as_of: datetime) -> list[HorizonReport]:
    grid = cutoff_grid(tables, settings, as_of)
    reports = []
    for outcome, horizons in (("repurchase", settings.repurchase_horizons_days), ("ltv", settings.ltv_horizons_days)):
        for horizon in horizons:
            split = split_by_time(grid, horizon, as_of)
            short = days_needed(horizon, settings) - (as_of - tables.start).days
            reason = "" if split else f"{short} more days of orders are needed"
            reports.append(HorizonReport(outcome, horizon, len(split.mature) if split else 0, reason))
    return reports


def _refusals(tables: Tables, settings: Settings, as_of: datetime) -> tuple[str, ...]:
    try:
        split = require_split(tables, settings, as_of)
        buyers = build_snapshot(tables, split.training, FeatureSpec((), (), tables.currency, ()))
        require_learnable(outcomes_of(tables, buyers, split.horizon_days, as_of).repurchased, split.horizon_days)
    except Refused as refused:
        return (f"{type(refused).__name__}: {refused}",)
    return ()


def as_text(report: DataReport) -> str:
    """The report for people."""
    lines = [f"{'table':<12} {'rows in':>12} {'accepted':>12} {'quarantined':>12}  from        to"]
    for table in report.tables:
        quarantined = table["rows_in"] - table["accepted"]
        span = "  ".join(f"{show_time(table[key])[:10]}" for key in ("first_time", "last_time") if table[key])
        lines.append(f"{table['table']:<12} {table['rows_in']:>12,} {table['accepted']:>12,} {quarantined:>12,}  {span}")
        for reason, count in table["quarantined"].items():
            lines.append(f"{'':<12}   {count:,} quarantined: {reason} (first: row {table['first_rows'][reason]:,})")
        if table["unused_columns"]:
            lines.append(f"{'':<12}   columns not used: {', '.join(table['unused_columns'])}")
    lines += ["", f"as of {show_time(report.as_of)}: {report.buyers:,} customers with a paid order, {report.repeat_buyers:,} with more than one"]
    for horizon in report.horizons:
        what = f"{horizon.outcome} at {horizon.horizon_days} days"
        answer = f"{horizon.windows} past windows to learn from" if horizon.windows else f"not yet: {horizon.reason}"
        lines.append(f"  {what:<24} {answer}")
    lines += ["", *(f"would be refused: {text}" for text in report.refusals)] if report.refusals else []
    return "\n".join(lines)
