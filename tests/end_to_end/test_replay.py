"""The replay: training rows, answered again by the service's own path from the raw rows of their customers."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.snapshot import Snapshot, build_snapshot
from features.sources import load_settings, open_folder, open_rows
from features.tables import CONTRACT
from serving.histories import rows_of
from serving.scorer import open_scorer
from serving.service import answer_score
from training.bundle import Release, load_champion

DRAWN = 400
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def drawn(shop: Any) -> tuple[Release, Snapshot]:
    """The champion, and training rows drawn at random: a snapshot at the cutoffs it was trained on."""
    release = load_champion(shop.workspace)
    cutoffs = [datetime.fromisoformat(text) for text in release.bundle.provenance["cutoffs"]]
    settings = load_settings(shop.folder)
    with open_folder(shop.folder, settings) as tables:
        snapshot = build_snapshot(tables, cutoffs, release.bundle.spec)
    chosen = np.sort(np.random.default_rng(11).choice(len(snapshot.frame), DRAWN, replace=False))
    return release, Snapshot(snapshot.frame.iloc[chosen].reset_index(drop=True), snapshot.spec)


@pytest.fixture(scope="module")
def raw_rows(shop: Any, drawn: tuple[Release, Snapshot]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """drawn customer -> table -> rows as the shop's files hold them, in what JSON has: texts and numbers."""
    held: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table, columns in CONTRACT.items():
        frame = pd.read_parquet(Path(shop.folder) / f"{table}.parquet")
        frame = frame[frame["customer_id"].isin(drawn[1].frame["customer_id"])]
        for name in ("time", "known_time", "birth_date"):
            if name in frame:
                frame[name] = frame[name].map(lambda moment: moment.isoformat(), na_action="ignore")
        wanted = [c.name for c in columns if c.name in frame and c.name != "customer_id"]
        for customer, rows in frame.groupby("customer_id", observed=True):
            dicts = rows[wanted].astype(object).where(rows[wanted].notna(), None).to_dict("records")
            held.setdefault(customer, {})[table] = dicts
    return held


def customers_of(rows: pd.DataFrame, raw_rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"customer_id": customer, **raw_rows[customer]} for customer in rows["customer_id"]]


def largest_gap(first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference, relative above 1; NaN only where both are."""
    assert first.shape == second.shape
    assert np.array_equal(np.isnan(first), np.isnan(second))
    gaps = np.abs(first - second) / np.maximum(1.0, np.abs(first))
    return float(np.nanmax(gaps, initial=0.0))


def test_features_from_the_request_equal_the_training_rows(
    shop: Any, drawn: tuple[Release, Snapshot], raw_rows: dict[str, Any]
) -> None:
    release, snapshot = drawn
    scorer, compared = open_scorer(shop.workspace), 0
    for cutoff, rows in snapshot.frame.groupby("cutoff"):
        histories = rows_of(customers_of(rows, raw_rows), release.bundle.spec.tables)
        with open_rows(histories, scorer.settings) as tables:
            again = build_snapshot(tables, [cutoff.to_pydatetime()], release.bundle.spec)
        in_order = again.frame.set_index("customer_id").loc[[str(place) for place in range(len(rows))]]
        names = list(release.bundle.spec.names)
        assert largest_gap(rows[names].to_numpy(), in_order[names].to_numpy()) <= TOLERANCE
        compared += len(rows) * len(names)
    print(f"{compared:,} feature values of {DRAWN} training rows compared")
    assert compared == DRAWN * len(release.bundle.spec.names)


def test_scores_from_the_request_equal_those_of_the_training_rows(
    shop: Any, drawn: tuple[Release, Snapshot], raw_rows: dict[str, Any]
) -> None:
    release, snapshot = drawn
    gap, compared = replay(shop.workspace, release, snapshot, raw_rows)
    print(f"{compared:,} scores of {DRAWN} training rows compared, largest difference {gap:.1e}")
    assert compared >= DRAWN * 6
    assert gap <= TOLERANCE


def test_a_history_without_its_last_order_is_noticed(
    shop: Any, drawn: tuple[Release, Snapshot], raw_rows: dict[str, Any]
) -> None:
    """The positive control: the comparison above can fail."""
    release, snapshot = drawn
    spoiled = {
        customer: {**tables, "orders": sorted(tables["orders"], key=lambda row: row["time"])[:1]}
        for customer, tables in raw_rows.items()
        if "orders" in tables
    }
    gap, _ = replay(shop.workspace, release, snapshot, spoiled)
    assert gap > 0.01


def replay(workspace: Path, release: Release, snapshot: Snapshot, raw_rows: dict[str, Any]) -> tuple[float, int]:
    """(largest difference, values compared) between the release's scores and the bodies that the service answers."""
    scorer, gap, compared = open_scorer(workspace), 0.0, 0
    expected = release.score(snapshot)
    numbers = [column for column in release.columns if expected[column].dtype == np.float64]
    for cutoff, rows in expected.groupby("cutoff"):
        body = {"customers": customers_of(rows, raw_rows), "as_of": cutoff.isoformat()}
        answered = pd.DataFrame(answer_score(scorer, json.dumps(body).encode())["scores"])
        assert answered["customer_id"].tolist() == rows["customer_id"].tolist()
        gap = max(gap, largest_gap(rows[numbers].to_numpy(), answered[numbers].to_numpy(dtype=np.float64)))
        compared += rows[numbers].size
    return gap, compared
