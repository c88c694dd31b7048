"""One simulated shop and one training of it for the whole session, and makers of small shops and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from features.settings import Settings
from features.snapshot import FeatureSpec, Snapshot
from features.sources import open_folder, open_rows
from features.synthetic.shop import simulate
from features.tables import Tables
from training.bundle import save_release
from training.dataset import Dataset, Outcomes
from training.train import Request, Trained, train

AS_OF = datetime(2024, 5, 15)  # half a month before the data end, so that there is a future to change
Order = tuple[str, str, float]


@dataclass(frozen=True)
class Shop:
    """A simulated shop on disk, the settings and the request it is trained with."""

    folder: Path
    settings: Settings
    request: Request


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """1,500 customers over 17 months, learned at few cutoffs and horizons."""
    folder = tmp_path_factory.mktemp("simulated") / "shop"
    simulate(folder, customers=1500, months=17, seed=11)
    settings = Settings(
        repurchase_horizons_days=(28, 90),
        ltv_horizons_days=(28, 90),
        snapshot_every_days=90,
        max_snapshots=4,
    )
    return Shop(folder, settings, Request(AS_OF, trials=2, seed=3))


@pytest.fixture(scope="session")
def tables(shop: Shop) -> Iterator[Tables]:
    with open_folder(shop.folder, shop.settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def trained(shop: Shop, tables: Tables) -> Trained:
    return train(tables, shop.settings, shop.request)


Saved = Callable[[Trained], dict[str, bytes]]


@pytest.fixture
def files_of(tmp_path: Path) -> Saved:
    """Every file of the release that a training would register, by name."""

    def save(found: Trained) -> dict[str, bytes]:
        folder = tmp_path / f"release-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        save_release(folder, found.bundle, found.tiers)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    return save


Opened = Callable[..., AbstractContextManager[Tables]]


@pytest.fixture(scope="session")
def shop_of() -> Opened:
    """Opens a shop of (customer, time, amount) rows, or of whole rows."""

    def open_shop(orders: Sequence[Order | Mapping[str, Any]], settings: Settings | None = None) -> Any:
        names = ("customer_id", "time", "amount")
        rows = [dict(row) if isinstance(row, Mapping) else dict(zip(names, row, strict=True)) for row in orders]
        return open_rows({"orders": rows}, settings or Settings())

    return open_shop


MakeDataset = Callable[..., Dataset]


@pytest.fixture(scope="session")
def dataset_of() -> MakeDataset:
    """Customers whose chance and value hang on two of five features, over monthly cutoffs, outcomes at 30 days.

    `currency` multiplies whatever is money: one feature and the outcome.
    """

    def make(customers: int = 400, cutoffs: int = 4, seed: int = 0, currency: float = 1.0) -> Dataset:
        random = np.random.default_rng(seed)
        rows = customers * cutoffs
        features = random.gamma(1.0, 1.0, (rows, 5))
        bought = random.random(rows) < 1 / (1 + np.exp(2 - 2 * features[:, 0]))
        value = np.where(bought, np.round(20 * features[:, 1] + random.gamma(2.0, 5.0, rows), 2), 0.0)
        features[:, 1] *= 20
        features[:, 1] *= currency
        spec = FeatureSpec(("orders",), (), "USD", ("often", "spent", "noise_a", "noise_b", "noise_c"))
        moments = [datetime(2024, 1, 1) + timedelta(days=30 * back) for back in range(cutoffs)]
        keys = pd.DataFrame(
            {
                "customer_id": [f"c{number}" for _ in moments for number in range(customers)],
                "cutoff": pd.Series(np.repeat(np.array(moments, dtype="datetime64[us]"), customers)),
            }
        )
        frame = pd.concat([keys, pd.DataFrame(features, columns=list(spec.names))], axis=1)
        return Dataset(Snapshot(frame, spec), {30: Outcomes(bought.astype(np.float64), value * currency)})

    return make
