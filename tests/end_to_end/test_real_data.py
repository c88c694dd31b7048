"""Two public data sets, as they came, through every command: check, train, promote, score, serve."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiercast
from features.sources import load_settings, open_folder
from features.tables import days
from serving.launch import free_port, running, serve, wait_until_ready
from training.metrics import normalized_gini, roc_auc
from training.targets import build_targets

PROJECT = Path(__file__).resolve().parents[2]
HORIZON_DAYS = 90


@dataclass(frozen=True)
class Case:
    """A data set, its cutoff, and what LightGBM with library defaults reached there."""

    name: str
    as_of: str
    customers: int
    rows_in: dict[str, int]
    quarantined: dict[str, dict[str, int]]
    refunds: int
    baseline_auc: float


# AUC of LightGBM with library defaults on five columns of one snapshot, measured once by the evaluation protocol:
# https://archive.ics.uci.edu/dataset/352 as of 2011-09-09, and CDNOW as of 1998-04-01, 90 days each.
CASES = (
    Case(
        "online_retail",
        "2011-09-09",
        3362,
        rows_in={"orders": 25_897, "order_lines": 541_906},
        quarantined={"orders": {"no customer_id": 3_707}, "order_lines": {"no customer_id": 135_077}},
        refunds=3_654,
        baseline_auc=0.7075,
    ),
    Case(
        "cdnow",
        "1998-04-01",
        23_502,
        rows_in={"orders": 69_659},
        quarantined={"orders": {}},
        refunds=0,
        baseline_auc=0.8256,
    ),
)


@pytest.mark.heavy
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_real_data_go_from_check_to_a_served_answer(
    case: Case, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = data_folder / case.name, PROJECT / "examples" / case.name / "tiercast.toml"
    workspace, out = tmp_path / "workspace", tmp_path / "scores.parquet"
    data = [str(folder), "--settings", str(settings), "--as-of", case.as_of]

    def run(*arguments: str) -> Any:
        assert tiercast.main([*arguments, "--workspace", str(workspace), "--json"]) == tiercast.DONE
        return json.loads(capsys.readouterr().out)

    report = run("check", *data)
    tables = {table["table"]: table for table in report["tables"]}
    assert report["buyers"] == case.customers and not report["refusals"]
    assert {name: table["rows_in"] for name, table in tables.items()} == case.rows_in
    assert {name: table["quarantined"] for name, table in tables.items()} == case.quarantined
    assert all(table["accepted"] + sum(table["quarantined"].values()) == table["rows_in"] for table in tables.values())

    trained = run("train", *data)
    assert run("promote", "challenger", "--reason", "real data")["champion"] == trained["version"]
    assert run("score", *data, "--out", str(out))["customers"] == case.customers

    auc, gini, refunds = judged(folder, settings, out)
    print(f"\n{case.name} as of {case.as_of}: AUC {auc:.4f} (LightGBM defaults {case.baseline_auc}), Gini {gini:.4f}")
    assert auc >= case.baseline_auc
    assert refunds == case.refunds

    scores = pd.read_parquet(out).set_index("customer_id")
    asked = [str(scores.index[0]), "nobody", str(scores.index[-1])]
    answers = served(workspace, asked)
    assert [row["status"] for row in answers] == ["ok", "unknown", "ok"]
    assert [row["tier"] for row in answers] == [scores.tier.iloc[0], None, scores.tier.iloc[-1]]
    assert answers[0]["ltv_90d"] == scores.ltv_90d.iloc[0]


def judged(folder: Path, settings_file: Path, scored: Path) -> tuple[float, float, int]:
    """(AUC of p_repurchase_90d, normalized Gini of ltv_90d, refunds in the data), against what came after."""
    settings, scores = load_settings(folder, settings_file), pd.read_parquet(scored)
    cutoff = scores["cutoff"].iloc[0].tz_localize(None).to_pydatetime()
    with open_folder(folder, settings) as tables:
        happened = build_targets(tables, [cutoff], HORIZON_DAYS, cutoff + days(HORIZON_DAYS))
        refunds = int((tables.tables["orders"].amount < 0).sum().execute())
    both = scores.merge(happened, on="customer_id", how="left").fillna({"repurchased": 0, "value": 0.0})
    return roc_auc(both.repurchased, both.p_repurchase_90d), normalized_gini(both.value, both.ltv_90d), refunds


def served(workspace: Path, customer_ids: list[str]) -> list[dict[str, Any]]:
    """What a real server answers for these customers."""
    port = free_port(3100)
    url = f"http://127.0.0.1:{port}"
    with (workspace / "service.log").open("wb") as log, running(serve(workspace, port=port, log=log)) as process:
        wait_until_ready(url, process)
        body = json.dumps({"customer_ids": customer_ids}).encode()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(urllib.request.Request(f"{url}/v1/predict", body), timeout=30) as response:
            rows: list[dict[str, Any]] = json.loads(response.read())["scores"]
    return rows
