"""From a shop's tables to a release that a reviewer can judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import lightgbm
import numpy as np
import pandas as pd

from features.settings import Settings
from features.snapshot import FeatureSpec, Snapshot, build_snapshot, learn_spec
from features.tables import Tables, show_time
from segments.tiers import TierPolicy, fit_tier_policy
from training.baselines import Baseline, all_baselines
from training.bundle import Bundle, Head, Outcome
from training.cutoffs import Split, cutoff_grid, require_split, split_by_time
from training.dataset import Dataset, build_dataset, purchase_days
from training.evaluate import Evaluation, evaluate
from training.models import fit_head, require_learnable
from training.search import Found, search

Step = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What was asked for: the moment up to which data may be read (UTC), search trials per outcome, the seed."""

    as_of: datetime
    trials: int
    seed: int


@dataclass(frozen=True)
class Trained:
    """A release before it is registered: the bundle, its tiers, and how the same recipe did on the last window."""

    bundle: Bundle
    tiers: TierPolicy
    evaluation: Evaluation
    found: dict[Outcome, Found]
    skipped_horizons: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a data scientist should know: what was left out, and why."""
        left_out = [f"baseline {e.name}: {e.left_out}" for e in self.evaluation.predictions.values() if e.left_out]
        searches = [f"search of {outcome}: {entry.note}" for outcome, entry in self.found.items() if entry.note]
        return tuple(f"no {horizon}: too little history" for horizon in self.skipped_horizons) + tuple(searches + left_out)


def steps(request: Request) -> int:
    """How often `train` reports a step."""
    return 6 + 2 * request.trials


def train(tables: Tables, settings: Settings, request: Request, step: Step = lambda text: None) -> Trained:
    """Learns, judges, and learns again from everything: the recipe, one sentence a line.

    The evaluation is of models that saw no window reaching into the evaluation window; the bundle is fitted by the
    same recipe on every mature window. Raises TooLittleData, CutoffOutsideData.
    """
    tables.require_inside(request.as_of)
    primary = require_split(tables, settings, request.as_of)
    splits, skipped = _splits(tables, settings, request.as_of)
    step("features")
    spec = learn_spec(tables, primary.evaluation)
    horizons = sorted({horizon for _, horizon in splits})
    dataset = build_dataset(tables, cutoff_grid(tables, settings, request.as_of), horizons, request.as_of, spec)
    require_learnable(dataset.at(primary.training).outcomes[primary.horizon_days].repurchased, primary.horizon_days)
    found = _search(dataset, primary, request, step)
    step("evaluation")
    rehearsal = _bundle(dataset, splits, spec, found, request, settings, last=False)
    evaluation = _evaluate(tables, rehearsal, dataset, primary, request.seed)
    step("models")
    bundle = _bundle(dataset, splits, spec, found, request, settings, last=True, metrics=evaluation.metrics())
    step("tiers")
    tiers = _fit_tiers(bundle, build_snapshot(tables, [request.as_of], spec), settings)
    return Trained(bundle, tiers, evaluation, found, skipped)


Splits = dict[tuple[Outcome, int], Split]


def _splits(tables: Tables, settings: Settings, as_of: datetime) -> tuple[Splits, tuple[str, ...]]:
    """The split of every outcome and horizon that was asked for, and those the history is too short for."""
    grid = cutoff_grid(tables, settings, as_of)
    asked: list[tuple[Outcome, int]] = [("repurchase", horizon) for horizon in settings.repurchase_horizons_days]
    asked += [("ltv", horizon) for horizon in settings.ltv_horizons_days]
    splits = {key: split_by_time(grid, key[1], as_of) for key in asked}
    skipped = tuple(f"{outcome} at {horizon} days" for (outcome, horizon), split in splits.items() if split is None)
    return {key: split for key, split in splits.items() if split is not None}, skipped


def _search(dataset: Dataset, primary: Split, request: Request, step: Step) -> dict[Outcome, Found]:
    """Parameters per outcome, found on windows that end before the evaluation window begins."""
    past = dataset.at(primary.training)
    found: dict[Outcome, Found] = {}
    outcomes: tuple[Outcome, ...] = ("repurchase", "ltv")
    for outcome in outcomes:
        step(f"search {outcome}")
        found[outcome] = search(past, outcome, primary.horizon_days, request.trials, request.seed, lambda: step("trial"))
    return found


def _bundle(
    dataset: Dataset,
    splits: Splits,
    spec: FeatureSpec,
    found: dict[Outcome, Found],
    request: Request,
    settings: Settings,
    last: bool,
    metrics: dict[str, float] | None = None,
) -> Bundle:
    """One model per outcome and horizon; `last` says whether the evaluation window is learned from too."""
    heads: list[Head] = []
    for (outcome, horizon), split in splits.items():
        rows = dataset.at(split.mature if last else split.training)
        heads.append(fit_head(rows, outcome, horizon, found[outcome].parameters, request.seed))
    return Bundle(spec, settings.primary_horizon_days, tuple(heads), _provenance(request, settings, splits, found), metrics or {})


def _provenance(request: Request, settings: Settings, splits: Splits, found: dict[Outcome, Found]) -> dict[str, object]:
    """What the bundle was made from; nothing that differs between two equal trainings."""
    return {
        "as_of": request.as_of.isoformat(),
        "seed": request.seed,
        "timezone": settings.timezone,
        "cutoffs": sorted({cutoff.isoformat() for split in splits.values() for cutoff in split.mature}),
        "parameters": {outcome: entry.parameters.to_json() for outcome, entry in found.items()},
        "versions": {"lightgbm": lightgbm.__version__, "numpy": np.__version__, "pandas": pd.__version__},
    }


def _evaluate(tables: Tables, rehearsal: Bundle, dataset: Dataset, primary: Split, seed: int) -> Evaluation:
    judged = dataset.at([primary.evaluation])
    baselines = _baselines(tables, dataset.at(primary.training), judged, primary, seed)
    return evaluate(rehearsal, judged, baselines, primary.evaluation)


def _baselines(tables: Tables, past: Dataset, judged: Dataset, primary: Split, seed: int) -> list[Baseline]:
    outcomes = past.outcomes[primary.horizon_days]
    targets = pd.DataFrame({"repurchased": outcomes.repurchased, "value": outcomes.value})
    histories = purchase_days(tables, primary.evaluation)
    return all_baselines(
        past.snapshot.frame, targets, judged.snapshot.frame, primary.horizon_days, histories, seed=seed
    )


def _fit_tiers(bundle: Bundle, latest: Snapshot, settings: Settings) -> TierPolicy:
    """Bounds on the primary lifetime value, from today's customers."""
    score = f"ltv_{settings.primary_horizon_days}d"
    scores = bundle.score(latest, model_version="")
    return fit_tier_policy(score, scores[score].to_numpy(), settings.tiers.names, settings.tiers.shares)


def describe_data(tables: Tables, request: Request) -> dict[str, str]:
    """Where the data came from and how far they reach, without a word about any customer."""
    rows = {f"rows_{intake.table}": str(intake.accepted) for intake in tables.intake}
    return {"data_start": show_time(tables.start), "as_of": show_time(request.as_of), "currency": tables.currency} | rows
