from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.errors import CutoffOutsideData, SpecMismatch, UsageRefused
from features.sources import open_rows
from serving.batch import publish_scores, score_customers, write_scores
from serving.score_store import ScoresUnusable, read_scores
from training.bundle import load_champion


def published(scores, workspace: Path) -> Path:
    assert publish_scores(scores, workspace)
    return workspace / "scores.parquet"


@pytest.fixture(scope="module")
def release(workspace):
    return load_champion(workspace)


@pytest.fixture(scope="module")
def scores(shop, release):
    with open_rows(shop.rows, shop.settings) as tables:
        return score_customers(tables, release, datetime(2025, 3, 1))


def test_every_customer_with_a_paid_order_gets_one_row(shop, release, scores):
    assert list(scores.columns) == release.columns
    assert list(scores["customer_id"]) == shop.customers
    assert scores["ltv_90d"].nunique() > 30


def test_progress_hears_every_step(shop, release):
    steps = []
    with open_rows(shop.rows, shop.settings) as tables:
        score_customers(tables, release, datetime(2024, 12, 1), steps.append)
    assert steps == ["features", "scores"]


def test_a_shop_in_another_currency_or_without_a_table_is_refused(shop, release):
    in_euro, lone = replace(shop.settings, currency="EUR"), {"orders": shop.rows["orders"]}
    with open_rows(shop.rows, in_euro) as tables, pytest.raises(SpecMismatch, match="in USD, these data are in EUR"):
        score_customers(tables, release, datetime(2024, 12, 1))
    with open_rows(lone, shop.settings) as tables, pytest.raises(SpecMismatch, match="with events, exposures"):
        score_customers(tables, release, datetime(2024, 12, 1))


def test_a_cutoff_beyond_the_data_is_refused(shop, release):
    with open_rows(shop.rows, shop.settings) as tables, pytest.raises(CutoffOutsideData, match="outside the data"):
        score_customers(tables, release, datetime(2025, 5, 1))


def test_parquet_holds_utc_timestamps_and_plain_strings(scores, tmp_path):
    write_scores(scores, tmp_path / "out" / "scores.parquet")
    schema = pq.read_schema(tmp_path / "out" / "scores.parquet")
    assert {name: str(schema.field(name).type) for name in ("customer_id", "cutoff", "tier", "p_churn")} == {
        "customer_id": "string",
        "cutoff": "timestamp[us, tz=UTC]",
        "tier": "string",
        "p_churn": "double",
    }


def test_both_formats_read_back_equal(scores, tmp_path):
    for name, read in (("scores.parquet", pd.read_parquet), ("scores.csv", pd.read_csv)):
        write_scores(scores, tmp_path / name)
        found = read(tmp_path / name)
        assert list(pd.to_datetime(found["cutoff"])) == [datetime(2025, 3, 1, tzinfo=UTC)] * len(scores)
        for column in scores.columns.drop("cutoff"):
            assert list(found[column].astype(scores[column].dtype)) == list(scores[column]), (name, column)
    assert "2025-03-01T00:00:00Z" in (tmp_path / "scores.csv").read_text()


def test_another_ending_is_refused_and_leaves_nothing(scores, tmp_path):
    with pytest.raises(UsageRefused, match=r"\.parquet or \.csv, not as 'scores.xlsx'"):
        write_scores(scores, tmp_path / "scores.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(scores, tmp_path, monkeypatch):
    path = published(scores, tmp_path)
    before = path.read_bytes()

    def break_off(table: object, where: Path) -> None:
        where.write_bytes(before[:100])
        raise OSError("disk full")

    monkeypatch.setattr("serving.batch.pq.write_table", break_off)
    with pytest.raises(OSError, match="disk full"):
        publish_scores(scores.head(3), tmp_path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["scores.parquet"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda scores: pd.concat([scores, scores.head(1)]),
        lambda scores: scores.assign(model_version=["1"] * 39 + ["2"]),
        lambda scores: scores.assign(p_churn=[None] * 40),
        lambda scores: scores.assign(tier=["gold"] * 39 + [None]),
        lambda scores: scores.drop(columns="tier"),
    ],
    ids=["a customer twice", "two versions", "no number", "no tier", "no column"],
)
def test_scores_that_could_mislead_are_not_served(scores, tmp_path, spoil):
    publish_scores(spoil(scores), tmp_path)
    with pytest.raises(ScoresUnusable, match=r"scores.parquet .*"):
        read_scores(tmp_path / "scores.parquet")


def test_a_broken_or_missing_file_of_scores_says_so(scores, tmp_path):
    with pytest.raises(ScoresUnusable, match=r"no scores\.parquet"):
        read_scores(tmp_path / "scores.parquet")
    path = published(scores, tmp_path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ScoresUnusable, match="not a whole Parquet file"):
        read_scores(path)


def test_a_look_back_by_the_same_release_leaves_the_stored_scores(scores, tmp_path):
    before = published(scores, tmp_path).read_bytes()
    earlier = scores.assign(cutoff=scores["cutoff"] - pd.Timedelta(days=30))
    assert not publish_scores(earlier, tmp_path)
    assert (tmp_path / "scores.parquet").read_bytes() == before
    assert publish_scores(earlier.assign(model_version="2"), tmp_path)
    assert publish_scores(earlier.assign(model_version="2"), tmp_path)
    assert (tmp_path / "scores.parquet").read_bytes() != before
