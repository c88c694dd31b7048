"""At which past moments to learn and to judge, given how far the data reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from features.errors import TooLittleData
from features.settings import Settings
from features.tables import Tables, days, show_time

LONGEST_HORIZON_DAYS = 3650  # that the settings allow


@dataclass(frozen=True)
class Split:
    """The cutoffs of one horizon, oldest first.

    Every `training` window ends at or before `evaluation`; every `mature` window (the evaluation's is the last)
    ends at or before the moment up to which the data may be read. The released model learns from all mature ones.
    """

    horizon_days: int
    training: tuple[datetime, ...]
    evaluation: datetime
    mature: tuple[datetime, ...]


def first_order(tables: Tables, as_of: datetime) -> datetime | None:
    """When the first paid order was made, of those known at `as_of`; None without one.

    `tables.start` will not do: a row that became known later would move the cutoffs of a release made before.
    """
    found: datetime | None = tables.before(as_of).paid_orders.time.min().to_pyarrow().as_py()
    return found


def cutoff_grid(tables: Tables, settings: Settings, as_of: datetime) -> tuple[datetime, ...]:
    """Cutoffs every `snapshot_every_days`, the latest one primary horizon before `as_of`, oldest first.

    The oldest has `min_history_days` of orders before it. Empty where the history is too short.
    """
    start = first_order(tables, as_of)
    latest = as_of - days(settings.primary_horizon_days)
    if start is None or latest < start + days(settings.min_history_days):
        return ()
    step = days(settings.snapshot_every_days)
    room = (latest - start - days(settings.min_history_days)) // step
    return tuple(latest - step * back for back in reversed(range(min(settings.max_snapshots, room + 1))))


def split_by_time(grid: tuple[datetime, ...], horizon_days: int, as_of: datetime) -> Split | None:
    """The split of `horizon_days`, None where the history is too short for one training and one evaluation window."""
    mature = tuple(c for c in grid if c + days(horizon_days) <= as_of)
    if not mature:
        return None
    evaluation = max(mature)
    training = tuple(c for c in mature if c + days(horizon_days) <= evaluation)
    return Split(horizon_days, training, evaluation, mature) if training else None


def require_split(tables: Tables, settings: Settings, as_of: datetime) -> Split:
    """The split of the primary horizon; raises TooLittleData with what would be enough."""
    horizon = settings.primary_horizon_days
    split = split_by_time(cutoff_grid(tables, settings, as_of), horizon, as_of)
    if split is not None:
        return split
    start = first_order(tables, as_of)
    if start is None:
        raise TooLittleData(f"no paid order was known at {show_time(as_of)}")
    raise TooLittleData(
        f"a {horizon}-day horizon needs {days_needed(horizon, settings)} days of orders before the cutoff "
        f"({settings.min_history_days} of history, one window to learn from, one to judge by) "
        f"and max_snapshots = {snapshots_needed(horizon, settings)}.\n"
        f"  Orders start {show_time(start)}, {(as_of - start).days} days before {show_time(as_of)}, "
        f"and max_snapshots is {settings.max_snapshots}. {_way_out((as_of - start).days, settings)}"
    )


def missing_for(tables: Tables, settings: Settings, as_of: datetime, horizon_days: int) -> str:
    """What a horizon without a split lacks, in words."""
    start = first_order(tables, as_of)
    had = (as_of - start).days if start else 0
    short, snapshots = days_needed(horizon_days, settings) - had, snapshots_needed(horizon_days, settings)
    lacking = [f"{short} more days of orders"] if short > 0 else []
    lacking += [f"max_snapshots = {snapshots}"] if snapshots > settings.max_snapshots else []
    return f"needs {' and '.join(lacking)}"


def days_needed(horizon_days: int, settings: Settings) -> int:
    """Days of orders before the cutoff that a split of `horizon_days` needs, the steps of the grid included."""
    steps = snapshots_needed(horizon_days, settings) - 1
    return settings.min_history_days + settings.primary_horizon_days + steps * settings.snapshot_every_days


def snapshots_needed(horizon_days: int, settings: Settings) -> int:
    """Cutoffs of the grid that a split of `horizon_days` reaches back over.

    The evaluation window must be over by the end of the data, a training window by the evaluation cutoff.
    """
    beyond_primary = max(0, horizon_days - settings.primary_horizon_days)
    step = settings.snapshot_every_days
    return 1 + -(-beyond_primary // step) + -(-horizon_days // step)


def longest_supported(history_days: int, settings: Settings) -> int:
    """The longest primary horizon that `history_days` of orders allow, every shorter one too; 0 where none does."""
    longest = 0
    for horizon in range(1, min(history_days, LONGEST_HORIZON_DAYS) + 1):
        asked = replace(settings, primary_horizon_days=horizon)
        if days_needed(horizon, asked) > history_days or snapshots_needed(horizon, asked) > settings.max_snapshots:
            break
        longest = horizon
    return longest


def _way_out(history_days: int, settings: Settings) -> str:
    longest = longest_supported(history_days, settings)
    if not longest:
        return "No horizon would work yet."
    return (
        f"A horizon of up to {longest} days would work: set primary_horizon_days, "
        "and list it in repurchase_horizons_days and ltv_horizons_days."
    )
