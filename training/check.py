"""The data report: what is there, what was quarantined and why, what the history can support."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from features.errors import Refused
from features.settings import Settings
from features.snapshot import FeatureSpec
from features.tables import Tables, show_local
from training.cutoffs import cutoff_grid
from training.dataset import build_dataset
from training.horizons import asked_for, horizons_within, learnable


@dataclass(frozen=True)
class HorizonReport:
    """Whether one outcome can be learned at one horizon: `windows` past ones to learn from, or what is missing.

    Without windows and without a reason where the whole training would be refused.
    """

    outcome: str
    horizon_days: int
    windows: int
    reason: str


@dataclass(frozen=True)
class DataReport:
    """What `tiercast check` says; `refusals` is what `tiercast train` would refuse, empty when it would train."""

    tables: tuple[dict[str, Any], ...]
    as_of: datetime
    timezone: str
    buyers: int
    repeat_buyers: int
    horizons: tuple[HorizonReport, ...]
    refusals: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check(tables: Tables, settings: Settings, as_of: datetime) -> DataReport:
    """tables -> the report as of a cutoff. Raises CutoffOutsideData."""
    tables.require_inside(as_of)
    buyers, repeat_buyers = _count_buyers(tables, as_of)
    horizons, refusals = _horizons(tables, settings, as_of)
    intake = tuple(asdict(entry) for entry in tables.intake)
    return DataReport(intake, as_of, tables.timezone, buyers, repeat_buyers, horizons, refusals)


def _count_buyers(tables: Tables, as_of: datetime) -> tuple[int, int]:
    """Customers with a paid order, and with more than one."""
    paid = tables.before(as_of).paid_orders
    counted = paid.group_by("customer_id").aggregate(paid=paid.count()).to_pyarrow()["paid"].to_numpy()
    return len(counted), int((counted > 1).sum())


def _horizons(tables: Tables, settings: Settings, as_of: datetime) -> tuple[tuple[HorizonReport, ...], tuple[str, ...]]:
    """What `train` would learn at each horizon, and why it would refuse, by the functions that `train` itself asks."""
    try:
        found = horizons_within(tables, settings, as_of)
        bare = FeatureSpec((), (), tables.currency, ())
        dataset = build_dataset(tables, cutoff_grid(tables, settings, as_of), found.days, as_of, bare)
        found = learnable(found, dataset)
    except Refused as refused:
        reason = f"{type(refused).__name__}: {refused}"
        return tuple(HorizonReport(*asked, 0, "") for asked in asked_for(settings)), (reason,)
    reports = []
    for outcome, horizon_days in asked_for(settings):
        split = found.splits.get((outcome, horizon_days))
        missing = found.missing.get((outcome, horizon_days), "")
        reports.append(HorizonReport(outcome, horizon_days, len(split.mature) if split else 0, missing))
    return tuple(reports), ()


def as_text(report: DataReport) -> str:
    """The report for people."""
    lines = [f"{'table':<12} {'rows in':>12} {'accepted':>12} {'quarantined':>12}  from        to"]
    for table in report.tables:
        lines += _table_lines(table)
    with_orders = f"{report.buyers:,} customers with a paid order, {report.repeat_buyers:,} with more than one"
    lines += ["", f"as of {show_local(report.as_of, report.timezone)}: {with_orders}"]
    for refusal in report.refusals:
        lines.append(f"would be refused: {refusal}")
    for horizon in () if report.refusals else report.horizons:
        what = f"{horizon.outcome} at {horizon.horizon_days} days"
        answer = f"{horizon.windows} past windows to learn from" if horizon.windows else f"not yet: {horizon.reason}"
        lines.append(f"  {what:<24} {answer}")
    return "\n".join(lines)


def _table_lines(table: dict[str, Any]) -> list[str]:
    """One table: how many rows came in and what became of them."""
    rows_in, accepted = table["rows_in"], table["accepted"]
    span = "  ".join(f"{table[key]:%Y-%m-%d}" for key in ("first_time", "last_time") if table[key])
    lines = [f"{table['table']:<12} {rows_in:>12,} {accepted:>12,} {rows_in - accepted:>12,}  {span}".rstrip()]
    for reason, count in table["quarantined"].items():
        lines.append(f"{'':<12}   {count:,} quarantined: {reason} (first: row {table['first_rows'][reason]:,})")
    if table["unused_columns"]:
        lines.append(f"{'':<12}   columns not used: {', '.join(table['unused_columns'])}")
    return lines
