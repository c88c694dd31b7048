"""What a machine needs: the serving-only install answers, and has none of training's packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

PROJECT = Path(__file__).resolve().parents[2]
TRAINING_ONLY = ("matplotlib", "mlflow", "optuna", "pyspark", "sklearn")

SERVE_AND_ASK = """
import json, pathlib, sys, urllib.request
from serving.launch import free_port, running, serve, wait_until_ready
workspace, customer = pathlib.Path(sys.argv[1]), sys.argv[2]
port = free_port(3200)
with open(workspace / "serving-only.log", "wb") as log, running(serve(workspace, port=port, log=log)) as process:
    wait_until_ready(f"http://127.0.0.1:{port}", process)
    body = json.dumps({"customer_ids": [customer]}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print(direct.open(urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", body), timeout=30).read().decode())
"""


@pytest.fixture(scope="module")
def serving_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the serving lock and our wheel, nothing else."""
    root = tmp_path_factory.mktemp("install")
    source = root / "source"  # a build leaves folders behind
    left_out = shutil.ignore_patterns(".*", "build", "workspace", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT, source, ignore=left_out)
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(root),
        str(source),
    )
    run(sys.executable, "-m", "venv", str(root / "venv"))
    pip = [str(root / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--require-hashes", "-r", str(PROJECT / "requirements-serving.lock"))
    run(*pip, "--no-deps", *map(str, root.glob("*.whl")))
    return root / "venv/bin"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.heavy
def test_a_serving_only_install_scores_and_serves_without_training_packages(
    serving_only: Path, shop: Any, tmp_path: Path
) -> None:
    python, command = str(serving_only / "python"), str(serving_only / "tiercast")
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", "--disable-pip-version-check"))
    installed = {entry["name"].lower().replace("scikit-learn", "sklearn") for entry in listed}
    print(f"{len(installed)} packages in a serving-only install")
    assert not installed & set(TRAINING_ONLY)
    assert "bentoml" in installed and "tiercast" in installed

    out = tmp_path / "scores.parquet"
    run(command, "score", str(shop.folder), "--out", str(out), "--workspace", str(shop.workspace))
    here = pd.read_parquet(shop.workspace.parent / "scores.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(out), here, check_exact=True)

    answer = json.loads(run(python, "-c", SERVE_AND_ASK, str(shop.workspace), str(here.customer_id[0])))
    assert answer["scores"][0]["tier"] == here.tier[0]

    refused = subprocess.run([command, "train", str(shop.folder)], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 1
    assert "install tiercast[train]" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.heavy
def test_the_demo_reaches_a_served_prediction_and_leaves_no_process(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    command = [str(Path(sys.executable).parent / "tiercast"), "demo", "--exit", "--workspace", str(workspace)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for step in ("simulate", "check", "train", "promote challenger", "score"):
        assert f"$ tiercast {step}" in done.stdout
    answer = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert [row["status"] for row in answer["scores"]] == ["ok", "ok"]
    assert not still_running(workspace)


def still_running(workspace: Path) -> list[str]:
    """Command lines of processes that name the workspace."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(workspace) in line:
            lines.append(line)
    return lines


def test_the_search_for_processes_finds_one(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path)]) as process:
        try:
            deadline = time.monotonic() + 5  # a new process has an empty command line for a moment
            while not still_running(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert still_running(tmp_path)
        finally:
            process.terminate()
