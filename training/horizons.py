"""Which outcomes can be learned at which horizons, and what the others lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from features.errors import TooLittleData
from features.settings import Settings
from features.tables import Tables
from training.bundle import Outcome
from training.cutoffs import Split, cutoff_grid, missing_for, require_split, split_by_time
from training.dataset import Dataset
from training.models import require_judgeable, require_learnable

Asked = tuple[Outcome, int]


@dataclass(frozen=True)
class Horizons:
    """Every outcome and horizon that was asked for: those with a split, and why the others are `missing`.

    `primary` is the split of the primary horizon, which both outcomes always have.
    """

    primary: Split
    splits: Mapping[Asked, Split]
    missing: Mapping[Asked, str]

    @property
    def days(self) -> tuple[int, ...]:
        """The horizons that are left, shortest first."""
        return tuple(sorted({horizon for _, horizon in self.splits}))


def horizons_within(tables: Tables, settings: Settings, as_of: datetime) -> Horizons:
    """What the length of the history allows. Raises TooLittleData where that is not even the primary horizon."""
    primary = require_split(tables, settings, as_of)
    grid = cutoff_grid(tables, settings, as_of)
    found = {asked: split_by_time(grid, asked[1], as_of) for asked in asked_for(settings)}
    return Horizons(
        primary,
        {asked: split for asked, split in found.items() if split is not None},
        {asked: missing_for(tables, settings, as_of, asked[1]) for asked, split in found.items() if split is None},
    )


def learnable(horizons: Horizons, dataset: Dataset) -> Horizons:
    """What the outcomes allow as well: a horizon at which hardly anybody bought is missing, with the reason.

    Raises TooLittleData where the primary horizon is one of them.
    """
    missing = dict(horizons.missing)
    for (outcome, horizon_days), split in horizons.splits.items():
        try:
            require_learnable(dataset.at(split.training).outcomes[horizon_days], outcome, horizon_days)
        except TooLittleData as reason:
            if horizon_days == horizons.primary.horizon_days:
                raise
            missing[outcome, horizon_days] = str(reason)
    require_judgeable(dataset.at([horizons.primary.evaluation]).outcomes[horizons.primary.horizon_days])
    splits = {asked: split for asked, split in horizons.splits.items() if asked not in missing}
    return Horizons(horizons.primary, splits, missing)


def asked_for(settings: Settings) -> list[Asked]:
    """Outcomes and horizons in the order of the columns of the scores."""
    repurchase: list[Asked] = [("repurchase", horizon) for horizon in settings.repurchase_horizons_days]
    return repurchase + [("ltv", horizon) for horizon in settings.ltv_horizons_days]
