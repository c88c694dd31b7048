"""Training: nothing sees the future, equal seeds give equal bytes, and what cannot be learned is said."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features.errors import CutoffOutsideData, TooLittleData, UsageRefused
from features.settings import Settings
from features.sources import open_folder
from training.models import Parameters
from training.train import Request, Trained, describe_data, steps, train

PROJECT = Path(__file__).resolve().parents[2]
TABLES = ("customers", "orders", "order_lines", "events", "feedback", "exposures")
ROW_ID = {"orders": "order_id", "events": "event_id", "feedback": "feedback_id", "exposures": "exposure_id"}
MOMENT = pd.Timedelta(microseconds=1)


def changed_shop(shop, folder: Path, change: Callable[[str, pd.DataFrame], pd.DataFrame]) -> Path:
    """A copy of the shop on disk with every table changed."""
    shutil.copytree(shop.folder, folder)
    for table in TABLES:
        path = folder / f"{table}.parquet"
        change(table, pd.read_parquet(path)).to_parquet(path, index=False)
    return folder


def train_folder(shop, folder: Path) -> Trained:
    with open_folder(folder, shop.settings) as tables:
        return train(tables, shop.settings, shop.request)


def is_future(rows: pd.DataFrame, as_of: datetime) -> pd.Series:
    known = rows.get("known_time", rows["time"])
    return (rows["time"] >= as_of) | (known > as_of)


class AnotherFuture:
    """Every third row that was not known at `as_of` goes, another third changes, and others are invented."""

    def __init__(self, as_of: datetime) -> None:
        self.as_of, self.random, self.touched = as_of, np.random.default_rng(0), 0

    def __call__(self, table: str, rows: pd.DataFrame) -> pd.DataFrame:
        future = is_future(rows, self.as_of)
        kept, lot = rows[~future], self.random.integers(0, 3, len(rows))
        altered = self._altered(rows[future & (lot == 1)])
        invented = self._invented(table, kept)
        self.touched += (future & (lot == 0)).sum() + len(altered) + len(invented)
        whole = pd.concat([kept, rows[future & (lot == 2)], altered, invented])
        return whole.sample(frac=1, random_state=1)

    def _altered(self, rows: pd.DataFrame) -> pd.DataFrame:
        if "amount" in rows:
            return rows.assign(amount=rows["amount"] * 7 + 1)
        return rows.assign(time=rows["time"] + pd.Timedelta(days=1)) if "known_time" not in rows else rows

    def _invented(self, table: str, past: pd.DataFrame) -> pd.DataFrame:
        """Rows of old and new customers: some happen from `as_of` on, some happened before and are learned of later."""
        later = past.sample(200, random_state=2).assign(time=self.as_of)
        late = past.sample(200, random_state=3)
        late = late.assign(time=late["time"] - pd.Timedelta(days=90), known_time=self.as_of + MOMENT)
        later["known_time"] = later["time"]
        made = pd.concat([later, late])
        if table in ROW_ID:
            made[ROW_ID[table]] = [f"invented-{number}" for number in range(len(made))]
        if table == "order_lines":
            made["line_id"] = [f"invented-{number}" for number in range(len(made))]
        made.loc[made.index[::4], "customer_id"] = "a-customer-of-tomorrow"
        if table == "events":
            made["type"] = "an_event_of_tomorrow"
        return made


@pytest.fixture(scope="module")
def bytes_of(trained, tmp_path_factory):
    """The files of the session's release."""
    from training.bundle import save_release

    folder = tmp_path_factory.mktemp("trained")
    save_release(folder, trained.bundle, trained.tiers)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_another_future_changes_no_byte(shop, bytes_of, files_of, tmp_path):
    future = AnotherFuture(shop.request.as_of)
    found = train_folder(shop, changed_shop(shop, tmp_path / "future", future))
    print(f"{future.touched} future rows removed, changed or added; {len(bytes_of)} files compared")
    assert future.touched > 3000 and len(bytes_of) == 7
    assert files_of(found) == bytes_of


def test_a_past_after_the_evaluation_cutoff_changes_the_release_and_not_the_rehearsal(
    shop, trained, bytes_of, files_of, tmp_path
):
    """The control of the test above, and the proof that what is judged has not seen the judged window."""
    changed = []

    def change(table: str, rows: pd.DataFrame) -> pd.DataFrame:
        if table != "orders":
            return rows
        inside = (rows["time"] >= trained.evaluation.cutoff) & ~is_future(rows, shop.request.as_of)
        changed.append(inside.sum())
        return rows.assign(amount=np.where(inside, rows["amount"] * 3, rows["amount"]))

    found = train_folder(shop, changed_shop(shop, tmp_path / "past", change))
    different = [name for name, content in files_of(found).items() if content != bytes_of[name]]
    print(f"{changed[0]} orders tripled; files that differ: {', '.join(different)}")
    assert changed[0] > 100 and {"ltv_90d.lightgbm.txt", "bundle.json", "tiers.json", "manifest.json"} <= set(different)
    rehearsed = [(h.column, h.scale, h.booster.model_to_string()) for h in found.rehearsal.heads]
    assert rehearsed == [(h.column, h.scale, h.booster.model_to_string()) for h in trained.rehearsal.heads]
    assert found.found == trained.found
    assert found.evaluation.outcomes.value.sum() > 2 * trained.evaluation.outcomes.value.sum()


def test_what_became_known_after_the_evaluation_cutoff_changes_no_rehearsal_and_no_baseline(
    shop, trained, bytes_of, files_of, tmp_path
):
    """Orders of training windows that the shop learned of too late: the release may use them, the judgement may not."""
    cutoff, added = trained.evaluation.cutoff, []

    def change(table: str, rows: pd.DataFrame) -> pd.DataFrame:
        if table != "orders":
            return rows
        paid = rows[(rows["amount"] > 0) & (rows["time"] < cutoff - timedelta(days=40))]
        late = paid.sample(400, random_state=5).assign(
            time=cutoff - timedelta(days=5), known_time=cutoff + timedelta(days=1), amount=500.0
        )
        late["order_id"] = [f"late-{number}" for number in range(len(late))]
        added.append(len(late))
        return pd.concat([rows, late])

    found = train_folder(shop, changed_shop(shop, tmp_path / "late", change))
    print(f"{added[0]} late orders added")
    assert added[0] == 400
    rehearsed = [(h.column, h.scale, h.booster.model_to_string()) for h in found.rehearsal.heads]
    assert rehearsed == [(h.column, h.scale, h.booster.model_to_string()) for h in trained.rehearsal.heads]
    assert found.found == trained.found
    for name, baseline in trained.evaluation.predictions.items():
        again = found.evaluation.predictions[name]
        np.testing.assert_array_equal(again.value, baseline.value)
        if baseline.p is not None:
            np.testing.assert_array_equal(again.p, baseline.p)
    assert files_of(found)["ltv_90d.lightgbm.txt"] != bytes_of["ltv_90d.lightgbm.txt"]  # the control


def test_a_stray_order_long_after_the_others_is_no_window_to_judge_by(shop_of):
    orders = [
        (f"c{i}", f"2024-{month:02d}-{1 + i % 28:02d}", 5) for i in range(150) for month in range(1, 9, 1 + i % 3)
    ]
    stray = ("c1", "2025-06-30", 5)
    with shop_of([*orders, stray]) as tables, pytest.raises(TooLittleData, match="1 of 150 customers bought again"):
        train(tables, Settings(), Request(tables.end, trials=0, seed=0))


AGAIN = """
import pickle, sys
from pathlib import Path
from features.sources import open_folder
from training.bundle import save_release
from training.train import train
shop = pickle.loads(sys.stdin.buffer.read())
with open_folder(shop["folder"], shop["settings"]) as tables:
    found = train(tables, shop["settings"], shop["request"])
save_release(Path(sys.argv[1]), found.bundle, found.tiers)
"""


@pytest.mark.heavy
def test_another_process_with_one_thread_writes_equal_bytes(shop, bytes_of, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "12345", "PYTHONPATH": str(PROJECT)}
    asked = pickle.dumps(vars(shop))
    subprocess.run([sys.executable, "-c", AGAIN, tmp_path], input=asked, env=environment, check=True, timeout=300)
    assert {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())} == bytes_of


def test_another_seed_writes_other_bytes(shop, tables, bytes_of, files_of):
    found = train(tables, shop.settings, replace(shop.request, seed=4, trials=0))
    assert files_of(found).keys() == bytes_of.keys()
    assert files_of(found)["ltv_90d.lightgbm.txt"] != bytes_of["ltv_90d.lightgbm.txt"]
    notes = ("search of repurchase: no trials were asked for", "search of ltv: no trials were asked for")
    assert found.notes == notes
    assert all(entry.parameters == Parameters() for entry in found.found.values())


def test_everything_asked_for_is_learned_from_every_mature_window(trained, shop):
    heads = [(head.outcome, head.horizon_days) for head in trained.bundle.heads]
    assert heads == [("repurchase", 28), ("repurchase", 90), ("ltv", 28), ("ltv", 90)]
    assert trained.notes == () and [entry.trials for entry in trained.found.values()] == [2, 2]
    last = trained.bundle.provenance["cutoffs"][-1]
    assert datetime.fromisoformat(last) == shop.request.as_of - timedelta(days=90)
    assert trained.bundle.metrics == trained.evaluation.metrics() and trained.rehearsal.metrics == {}


# A small shop, in memory


AS_OF = datetime(2024, 12, 31)
SMALL = Settings(
    repurchase_horizons_days=(1, 30),
    ltv_horizons_days=(30, 120),
    primary_horizon_days=30,
    max_snapshots=4,
)


def regulars(customers: int = 120, seed: int = 0) -> list[tuple[str, str, float]]:
    """Orders of a year, each customer with a rate of their own."""
    random = np.random.default_rng(seed)
    orders = []
    for number in range(customers):
        for day in np.flatnonzero(random.random(365) < random.gamma(1.0, 0.02)):
            moment = datetime(2024, 1, 1) + timedelta(days=int(day), hours=int(random.integers(0, 23)))
            orders.append((f"c{number}", moment.isoformat() + "Z", round(float(random.gamma(4, 10)), 2)))
    return [*orders, ("c0", "2024-01-01T00:00:00Z", 10.0), ("c0", "2024-12-30T23:00:00Z", 10.0)]


def test_horizons_that_cannot_be_learned_are_left_out_with_the_reason(shop_of):
    with shop_of(regulars(), SMALL) as tables:
        found = train(tables, SMALL, Request(AS_OF, 0, 0))
    assert [(head.outcome, head.horizon_days) for head in found.bundle.heads] == [("repurchase", 30), ("ltv", 30)]
    missing = [note for note in found.notes if note.startswith("no ")]
    assert missing[0] == "no ltv at 120 days: needs max_snapshots = 8"
    assert "no repurchase at 1 days: " in missing[1] and "customer moments bought again within 1 days" in missing[1]


def test_steps_are_told_as_often_as_announced(shop_of):
    told: list[str] = []
    request = Request(AS_OF, 1, 0)
    with shop_of(regulars(), SMALL) as tables:
        train(tables, SMALL, request, told.append)
    assert len(told) == steps(request) == 8
    assert told[0] == "features" and told[-1] == "tiers"


def test_a_shop_whose_money_all_went_back_is_refused(shop_of):
    """LightGBM would stop on it with an error of its own."""
    orders = regulars()
    refunds = [(customer, time, -amount) for customer, time, amount in orders]
    with shop_of([*orders, *refunds], SMALL) as tables, pytest.raises(TooLittleData, match="brought money in"):
        train(tables, SMALL, Request(AS_OF, 0, 0))


@pytest.mark.parametrize("seed", [-1, 2**31, 10**12])
def test_a_seed_that_no_library_takes_is_refused(shop_of, seed):
    with shop_of(regulars(3), SMALL) as tables, pytest.raises(UsageRefused, match=f"the seed is {seed}; give"):
        train(tables, SMALL, Request(AS_OF, 0, seed))


def test_a_moment_outside_the_data_is_refused(shop_of):
    with shop_of(regulars(3), SMALL) as tables, pytest.raises(CutoffOutsideData, match="2031-01-01 is outside"):
        train(tables, SMALL, Request(datetime(2031, 1, 1), 0, 0))


def test_the_description_of_the_data_names_no_customer(shop_of):
    with shop_of(regulars(), SMALL) as tables:
        found = describe_data(tables, Request(AS_OF, 0, 0))
    assert found["data_start"] == "2024-01-01" and found["as_of"] == "2024-12-31" and found["currency"] == "USD"
    assert int(found["rows_orders"]) == len(regulars())
    assert set(found) == {"data_start", "as_of", "currency", "rows_orders"}
