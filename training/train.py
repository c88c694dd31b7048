"""From a shop's tables to a release that a reviewer can judge."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import lightgbm
import numpy as np
import pandas as pd

from features.errors import UsageRefused
from features.settings import Settings
from features.snapshot import FeatureSpec, build_snapshot, learn_spec
from features.tables import Tables, show_time
from segments.scores import ltv_column
from segments.tiers import TierPolicy, fit_tier_policy
from training.baselines import Baseline, all_baselines
from training.bundle import Bundle, Head, Outcome
from training.cutoffs import Split, cutoff_grid, first_order
from training.dataset import Dataset, build_dataset, known_then, purchase_days, spend_in_last_window
from training.evaluate import Evaluation, evaluate
from training.horizons import Asked, Horizons, horizons_within, learnable
from training.models import fit_head
from training.search import Found, search

Step = Callable[[str], None]
SEEDS = 2**31  # what every library takes


@dataclass(frozen=True)
class Request:
    """What was asked for: the moment up to which data may be read (UTC), search trials per outcome, the seed."""

    as_of: datetime
    trials: int
    seed: int


@dataclass(frozen=True)
class Trained:
    """A release before it is registered: the bundle, its tiers, and how the same recipe did on the last window.

    `rehearsal` is the bundle that was judged: made as `bundle` was, without the windows that reach past the
    evaluation cutoff.
    """

    bundle: Bundle
    tiers: TierPolicy
    rehearsal: Bundle
    evaluation: Evaluation
    found: dict[Outcome, Found]
    horizons: Horizons

    @property
    def notes(self) -> tuple[str, ...]:
        """What a data scientist should know: what was left out, and why."""
        missing = [f"no {outcome} at {days} days: {why}" for (outcome, days), why in self.horizons.missing.items()]
        searches = [f"search of {outcome}: {entry.note}" for outcome, entry in self.found.items() if entry.note]
        left_out = [f"baseline {e.name}: {e.left_out}" for e in self.evaluation.predictions.values() if e.left_out]
        return (*missing, *self._not_judged(), *searches, *left_out)

    def _not_judged(self) -> list[str]:
        """Horizons whose last window that is over begins before the evaluation's: nothing says how good they are."""
        later = self.horizons.primary.evaluation
        splits = self.horizons.splits.items()
        return [
            f"{outcome} at {days} days is not judged" for (outcome, days), split in splits if split.evaluation < later
        ]


def steps(request: Request) -> int:
    """How often `train` reports a step, at most."""
    return 6 + 2 * request.trials


def _silent(step: str) -> None:
    """Nobody wants to hear of a step."""


def train(tables: Tables, settings: Settings, request: Request, step: Step = _silent) -> Trained:
    """Learns, judges, and learns again from everything: the recipe, one sentence a line.

    The evaluation is of models that saw no window reaching into the evaluation window; the bundle is fitted by the
    same recipe on every mature window. Raises TooLittleData, CutoffOutsideData.
    """
    _require_seed(request.seed)
    tables.require_inside(request.as_of)
    horizons = horizons_within(tables, settings, request.as_of)
    step("features")
    spec = learn_spec(tables, horizons.primary.evaluation)
    dataset = build_dataset(tables, cutoff_grid(tables, settings, request.as_of), horizons.days, request.as_of, spec)
    horizons = learnable(horizons, dataset)
    primary = horizons.primary
    past, judged = _past(tables, dataset, primary), dataset.at([primary.evaluation])
    found = _search(past, primary, request, step)
    recipe = _Recipe(settings, request, spec, horizons, found)
    step("evaluation")
    rehearsal = _rehearse(recipe, tables, dataset)
    baselines = _baselines(tables, past, judged, primary, request.seed)
    evaluation = evaluate(rehearsal, judged, baselines, primary.evaluation)
    step("models")
    bundle = replace(_fit(recipe, dataset), metrics=evaluation.metrics())
    step("tiers")
    tiers = _fit_tiers(bundle, tables, settings, request.as_of)
    return Trained(bundle, tiers, rehearsal, evaluation, found, horizons)


@dataclass(frozen=True)
class _Recipe:
    """Everything that the rehearsal and the released bundle share."""

    settings: Settings
    request: Request
    spec: FeatureSpec
    horizons: Horizons
    found: dict[Outcome, Found]


def _require_seed(seed: int) -> None:
    if not 0 <= seed < SEEDS:
        raise UsageRefused(f"the seed is {seed}; give a whole number from 0 to {SEEDS - 1}")


def _past(tables: Tables, dataset: Dataset, split: Split) -> Dataset:
    """The training windows of a split, their outcomes as they were known at its evaluation cutoff."""
    return known_then(tables, dataset.at(split.training), [split.horizon_days], split.evaluation)


def _search(past: Dataset, primary: Split, request: Request, step: Step) -> dict[Outcome, Found]:
    """Parameters per outcome, found on windows that end before the evaluation window begins."""
    found: dict[Outcome, Found] = {}
    outcomes: tuple[Outcome, ...] = ("repurchase", "ltv")
    for outcome in outcomes:
        step(f"search {outcome}")
        trial = functools.partial(step, "trial")
        found[outcome] = search(past, outcome, primary.horizon_days, request.trials, request.seed, trial)
    return found


def _rehearse(recipe: _Recipe, tables: Tables, dataset: Dataset) -> Bundle:
    """The recipe as it would have run at the evaluation cutoff, with what was known then."""
    splits = recipe.horizons.splits.items()
    return _bundle(recipe, [_head(recipe, asked, _past(tables, dataset, split)) for asked, split in splits])


def _fit(recipe: _Recipe, dataset: Dataset) -> Bundle:
    """One model per outcome and horizon, learned from every mature window."""
    splits = recipe.horizons.splits.items()
    return _bundle(recipe, [_head(recipe, asked, dataset.at(split.mature)) for asked, split in splits])


def _head(recipe: _Recipe, asked: Asked, rows: Dataset) -> Head:
    outcome, horizon_days = asked
    return fit_head(rows, outcome, horizon_days, recipe.found[outcome].parameters, recipe.request.seed)


def _bundle(recipe: _Recipe, heads: list[Head]) -> Bundle:
    return Bundle(recipe.spec, recipe.settings.primary_horizon_days, tuple(heads), _provenance(recipe))


def _provenance(recipe: _Recipe) -> dict[str, object]:
    """What the bundle was made from; nothing that differs between two equal trainings."""
    cutoffs = {cutoff.isoformat() for split in recipe.horizons.splits.values() for cutoff in split.mature}
    return {
        "as_of": recipe.request.as_of.isoformat(),
        "seed": recipe.request.seed,
        "timezone": recipe.settings.timezone,
        "cutoffs": sorted(cutoffs),
        "parameters": {outcome: entry.parameters.to_json() for outcome, entry in recipe.found.items()},
        "versions": {"lightgbm": lightgbm.__version__, "numpy": np.__version__, "pandas": pd.__version__},
    }


def _baselines(tables: Tables, past: Dataset, judged: Dataset, primary: Split, seed: int) -> list[Baseline]:
    outcomes = past.outcomes[primary.horizon_days]
    targets = pd.DataFrame({"repurchased": outcomes.repurchased, "value": outcomes.value})
    histories = purchase_days(tables, primary.evaluation)
    spent = spend_in_last_window(tables, judged.snapshot, primary.evaluation, primary.horizon_days)
    return all_baselines(
        past.snapshot.frame, targets, judged.snapshot.frame, primary.horizon_days, histories, spent, seed
    )


def _fit_tiers(bundle: Bundle, tables: Tables, settings: Settings, as_of: datetime) -> TierPolicy:
    """Bounds on the primary lifetime value, from the customers of today."""
    score = ltv_column(settings.primary_horizon_days)
    scores = bundle.score(build_snapshot(tables, [as_of], bundle.spec), model_version="")
    return fit_tier_policy(score, scores[score].to_numpy(), settings.tiers.names, settings.tiers.shares)


def describe_data(tables: Tables, request: Request) -> dict[str, str]:
    """Where the data came from and how far they reach, without a word about any customer."""
    rows = {f"rows_{intake.table}": str(intake.accepted) for intake in tables.intake}
    start = first_order(tables, request.as_of) or tables.start
    return {"data_start": show_time(start), "as_of": show_time(request.as_of), "currency": tables.currency} | rows
