"""A shop of forty customers, small releases trained on it, and workspaces that answer from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from features.settings import Settings
from features.snapshot import Snapshot, build_snapshot, learn_spec
from features.sources import open_rows
from segments.tiers import TierPolicy
from serving.batch import publish_scores, score_customers
from training.bundle import Bundle, Head, Release, publish, save_release

AS_OF = datetime(2025, 3, 1)
START = datetime(2024, 1, 1)
Rows = dict[str, list[dict[str, Any]]]


def text_of(moment: datetime) -> str:
    return moment.isoformat() + "Z"


@dataclass(frozen=True)
class Shop:
    """Rows of the contract's tables and the settings that read them."""

    rows: Rows
    settings: Settings

    @property
    def customers(self) -> list[str]:
        return sorted({row["customer_id"] for row in self.rows["orders"]})

    def history(self, customer_id: str) -> dict[str, Any]:
        """What an app would send about one customer."""
        own = {
            table: [
                {k: v for k, v in row.items() if k != "customer_id"}
                for row in rows
                if row["customer_id"] == customer_id
            ]
            for table, rows in self.rows.items()
        }
        return {"customer_id": customer_id, **own}


def _rows_of(customer_id: str, dice: random.Random) -> Rows:
    def moments(count: int) -> list[datetime]:
        return [START + timedelta(seconds=dice.randrange(425 * 86_400)) for _ in range(count)]

    def row(moment: datetime, **columns: Any) -> dict[str, Any]:
        return {"customer_id": customer_id, "time": text_of(moment), **columns}

    orders = [
        row(m, amount=round(dice.uniform(5, 200), 2), discount=dice.choice([None, 1.5]))
        for m in moments(dice.randint(1, 12))
    ]
    orders += [row(m, amount=-10.25) for m in moments(dice.randint(0, 1))]
    events = [row(m, type=dice.choice(["visit", "cart", "email_open"])) for m in moments(dice.randint(0, 60))]
    late = [{**r, "known_time": text_of(AS_OF + timedelta(days=9))} for r in events[:2]]
    exposures = [row(m, channel="email", arm=dice.choice(["treated", "control"])) for m in moments(dice.randint(0, 5))]
    return {"orders": orders, "events": events[2:] + late, "exposures": exposures}


@pytest.fixture(scope="session")
def shop() -> Shop:
    dice = random.Random(7)
    rows: Rows = {"orders": [], "events": [], "exposures": []}
    for number in range(40):
        for table, own in _rows_of(f"customer-{number:03d}", dice).items():
            rows[table] += own
    for table, key in (("orders", "order_id"), ("events", "event_id"), ("exposures", "exposure_id")):
        rows[table] = [{**row, key: f"{table}-{place}"} for place, row in enumerate(rows[table])]
    return Shop(rows, Settings(extract_time=datetime.fromisoformat("2025-06-01T00:00:00Z")))


def _train(snapshot: Snapshot, seed: int) -> Bundle:
    """Boosters that split on many features, so that a wrong feature shows in the scores"""
    dice = np.random.default_rng(seed)
    matrix = snapshot.matrix()
    names = list(snapshot.spec.names)
    signal = np.nan_to_num(matrix) @ dice.normal(size=matrix.shape[1])

    def boosted(objective: str, target: np.ndarray) -> lightgbm.Booster:
        params = {"objective": objective, "verbosity": -1, "min_data_in_leaf": 2, "num_leaves": 8, "num_threads": 1,
                  "feature_fraction": 0.4, "seed": seed}  # fmt: skip
        return lightgbm.train(params, lightgbm.Dataset(matrix, target, feature_name=names), num_boost_round=30)

    bought = (signal + dice.normal(size=len(signal)) * signal.std() > np.median(signal)).astype(float)
    heads = (
        Head("repurchase", 28, boosted("binary", bought * (dice.random(len(bought)) < 0.7))),
        Head("repurchase", 90, boosted("binary", bought)),
        Head("ltv", 90, boosted("regression", np.abs(signal) / np.abs(signal).max()), scale=250.0),
    )
    return Bundle(snapshot.spec, 90, heads, {"timezone": "UTC"}, {"auc": 0.5})


def _release_in(folder: Path, shop: Shop, version: str, seed: int) -> tuple[Path, str, str]:
    with open_rows(shop.rows, shop.settings) as tables:
        cutoffs = [AS_OF - timedelta(days=back) for back in (200, 120, 40)]
        snapshot = build_snapshot(tables, cutoffs, learn_spec(tables, AS_OF))
    tiers = TierPolicy("ltv_90d", ("platinum", "gold", "bronze"), (120.0, 40.0))
    source = folder / f"release-{version}"
    source.mkdir()
    return source, version, save_release(source, _train(snapshot, seed), tiers)


@dataclass(frozen=True)
class Releases:
    """Two releases on disk: `publish` makes one of them the champion of a workspace, with its scores."""

    shop: Shop
    saved: dict[str, tuple[Path, str, str]]

    def publish(self, workspace: Path, version: str, with_scores: bool = True) -> Release:
        release = publish(workspace, *self.saved[version])
        if with_scores:
            self.publish_scores(workspace, release)
        return release

    def publish_scores(self, workspace: Path, release: Release) -> None:
        with open_rows(self.shop.rows, self.shop.settings) as tables:
            publish_scores(score_customers(tables, release, AS_OF), workspace)


@pytest.fixture(scope="session")
def releases(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    folder = tmp_path_factory.mktemp("releases")
    return Releases(shop, {version: _release_in(folder, shop, version, seed) for version, seed in (("1", 1), ("2", 2))})


@pytest.fixture(scope="session")
def workspace(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of version 1 that no test changes."""
    folder = tmp_path_factory.mktemp("workspace")
    releases.publish(folder, "1")
    return folder


MakeShop = Callable[..., Shop]


@pytest.fixture(scope="session")
def with_rows(shop: Shop) -> MakeShop:
    """The shop with other rows."""
    return lambda **rows: replace(shop, rows={**shop.rows, **rows})
