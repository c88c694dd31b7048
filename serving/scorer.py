"""Answers without a framework: stored scores by customer, and scores from the histories that a request brings."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.errors import Refused
from features.settings import Settings
from features.snapshot import build_snapshot
from features.sources import open_rows
from features.tables import Tables
from serving.histories import rows_of
from serving.score_store import SCORES_FILE, ScoresUnusable, StoredScores, empty_row, read_scores, show_moment
from training.bundle import CHAMPION_FILE, Release, load_champion

logger = logging.getLogger("bentoml.tiercast")  # the one name that BentoML's logging shows at INFO

Quarantined = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Scored:
    """Answer rows in the order of the request, and how many of its rows could not be used: table -> reason -> rows."""

    rows: list[dict[str, Any]]
    quarantined: Quarantined


@dataclass(frozen=True)
class Scorer:
    """One state of a workspace: the release that answers and the scores on file, None where there are none.

    A request works on one Scorer from beginning to end, so that no answer mixes two releases.
    """

    release: Release
    stored: StoredScores | None

    @property
    def settings(self) -> Settings:
        """How rows are read: in the release's currency and time zone."""
        provenance = self.release.bundle.provenance
        return Settings(
            currency=self.release.bundle.spec.currency,
            timezone=provenance.get("timezone", "UTC"),
        )

    @property
    def stored_version(self) -> str | None:
        """The version that made the stored scores."""
        return self.stored.model_version if self.stored else None

    def predict(self, customer_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Stored scores, one row per id in the order asked; raises ScoresUnusable where none are stored."""
        if self.stored is None:
            raise ScoresUnusable(f"no {SCORES_FILE} in the workspace; make it with `tiercast score`")
        return self.stored.look_up(customer_ids)

    def score(self, customers: Sequence[Mapping[str, Any]], as_of: datetime | None = None) -> Scored:
        """Scores from histories: one row per customer, in their order, by the code that training and batch run.

        A customer is `{"customer_id": ..., "orders": [...], ...}`; `as_of` is UTC without tzinfo, by default now.
        Whoever has no paid order before it gets status `no_paid_order` and no scores.
        """
        cutoff = as_of or datetime.now(UTC).replace(tzinfo=None)
        spec = self.release.bundle.spec
        with open_rows(rows_of(customers, spec.tables), self.settings) as tables:
            spec.require_tables(tables)
            scores = self.release.score(build_snapshot(tables, [cutoff], spec))
            quarantined = _quarantined(tables)
        by_place = {row["customer_id"]: row for row in scores.to_dict("records")}
        rows = [self._answer(c["customer_id"], by_place.get(str(place)), cutoff) for place, c in enumerate(customers)]
        return Scored(rows, quarantined)

    def _answer(self, customer_id: str, scores: Mapping[Any, Any] | None, cutoff: datetime) -> dict[str, Any]:
        if scores is None:
            return empty_row(
                self.release.columns, customer_id, "no_paid_order", show_moment(cutoff), self.release.version
            )
        return {"customer_id": customer_id, "status": "ok", **scores} | {
            "customer_id": customer_id,
            "cutoff": show_moment(cutoff),
        }

    def describe(self) -> dict[str, Any]:
        """Which release answers, what it predicts, and how old the stored scores are."""
        bundle, tiers, stored = self.release.bundle, self.release.tiers, self.stored
        bounds = (*tiers.lower_bounds, None)
        return {
            "model_version": self.release.version,
            "currency": bundle.spec.currency,
            "primary_horizon_days": bundle.primary_horizon_days,
            "repurchase_horizons_days": bundle.horizons_days("repurchase"),
            "ltv_horizons_days": bundle.horizons_days("ltv"),
            "tier_score": tiers.score,
            "tiers": [{"name": n, "lower_bound": b} for n, b in zip(tiers.names, bounds, strict=False)],
            "stored_scores": stored.describe() if stored else None,
        }


def _quarantined(tables: Tables) -> Quarantined:
    return {intake.table: dict(intake.quarantined) for intake in tables.intake if intake.quarantined}


def open_scorer(workspace: Path) -> Scorer:
    """The workspace's champion and stored scores, as they are now. Raises ReleaseNotFound, BundleError."""
    return Scorer(load_champion(workspace), _stored_or_none(workspace))


def _stored_or_none(workspace: Path) -> StoredScores | None:
    path = workspace / SCORES_FILE
    return read_scores(path) if path.exists() else None


Stamp = tuple[int, int, int] | None


class LiveScorer:
    """The Scorer of a workspace, followed: `current()` adopts a new champion and new scores as they appear.

    Looking costs two calls of stat. What cannot be used is reported once and the last good state goes on answering.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._adopting = threading.Lock()
        self._seen = self._stamps()
        self._scorer = open_scorer(workspace)

    def current(self) -> Scorer:
        """The newest usable state; one caller adopts it while the others go on with the one before."""
        if self._stamps() != self._seen and self._adopting.acquire(blocking=False):
            try:
                self._adopt()
            finally:
                self._adopting.release()
        return self._scorer

    def _adopt(self) -> None:
        # Stamps are taken before the files are read: what changes in between is seen again at the next call.
        stamps, adopted = self._stamps(), self._scorer
        try:
            if stamps[0] != self._seen[0]:
                adopted = replace(adopted, release=load_champion(self._workspace))
            if stamps[1] != self._seen[1]:
                adopted = replace(adopted, stored=_stored_or_none(self._workspace))
        except Refused as error:
            logger.error("not adopted, the state before goes on answering: %s", error)
        else:
            logger.info("adopted: %s answers, scores of %s", adopted.release.version, adopted.stored_version)
        self._scorer, self._seen = adopted, stamps

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return _stamp(self._workspace / CHAMPION_FILE), _stamp(self._workspace / SCORES_FILE)


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
