"""At which past moments to learn and to judge, given how far the data reach."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from features.errors import TooLittleData
from features.settings import Settings
from features.tables import Tables, days, show_time


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


def cutoff_grid(tables: Tables, settings: Settings, as_of: datetime) -> tuple[datetime, ...]:
    """Cutoffs every `snapshot_every_days`, the latest one primary horizon before `as_of`, oldest first.

    The oldest has `min_history_days` of orders before it. Empty where the history is too short.
    """
    latest = as_of - days(settings.primary_horizon_days)
    steps = range(settings.max_snapshots)
    grid = [latest - days(settings.snapshot_every_days * step) for step in steps]
    return tuple(sorted(c for c in grid if c >= tables.start + days(settings.min_history_days)))


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
    needed = days_needed(horizon, settings)
    had = (as_of - tables.start).days
    longest = longest_supported(had, settings)
    way_out = f"A horizon of up to {longest} days would work: set primary_horizon_days." if longest else "No horizon would work yet."
    raise TooLittleData(
        f"a {horizon}-day horizon needs {needed} days of orders before the cutoff: {settings.min_history_days} of history, "
        f"one window to learn from, one to judge by.\n  Orders start {show_time(tables.start)}, {had} days before "
        f"{show_time(as_of)}. {way_out}"
    )


def days_needed(horizon_days: int, settings: Settings) -> int:
    """Days of orders before the cutoff that a horizon needs, up to the step of the grid."""
    gap = -(-horizon_days // settings.snapshot_every_days) * settings.snapshot_every_days
    return settings.min_history_days + max(horizon_days, settings.primary_horizon_days) + gap


def longest_supported(history_days: int, settings: Settings) -> int:
    """The longest primary horizon that `history_days` of orders allow, 0 where none does."""
    step = settings.snapshot_every_days
    fits = [h for h in range(1, history_days) if settings.min_history_days + h + -(-h // step) * step <= history_days]
    return max(fits, default=0)
