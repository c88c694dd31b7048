"""The registry: what was trained is kept whole, what was changed is not promoted, and no customer is named anywhere."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.errors import BundleError, ReleaseNotFound
from training import tracking
from training.bundle import RELEASES_FOLDER, load_champion, load_release
from training.tracking import NAME, promote, register, rollback, start_ui
from training.train import describe_data

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parameters(tables, shop):
    return describe_data(tables, shop.request)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A workspace whose database has its tables and nothing in them: making them takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    tracking._client(folder)
    tracking._client(folder).search_experiments()
    return folder


@pytest.fixture
def workspace(empty_store, tmp_path):
    folder = tmp_path / "workspace"
    folder.mkdir()
    shutil.copy(empty_store / "mlflow.db", folder)
    return folder


@pytest.fixture
def without_figures(monkeypatch):
    """They take most of the time of a registration, and who answers does not hang on them."""
    monkeypatch.setattr(tracking, "figures", lambda *_: {})


@pytest.fixture(scope="module")
def registered(empty_store, trained, parameters, tmp_path_factory):
    """A workspace with one release, promoted, that no test changes."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_store / "mlflow.db", folder)
    found = register(folder, trained, parameters)
    promote(folder, "challenger", "the first")
    return folder, found


def client(workspace: Path):
    return tracking._client(workspace)


def champion_of(workspace: Path) -> str:
    return str(client(workspace).get_model_version_by_alias(NAME, "champion").version)


# What a training leaves


def test_a_run_ends_finished_with_everything_a_reviewer_needs(registered, trained, parameters, tmp_path):
    workspace, found = registered
    run = client(workspace).get_run(found.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(trained.evaluation.metrics())
    assert parameters.items() <= run.data.params.items()
    assert run.data.params["repurchase.trials"] == "2" and "ltv.num_leaves" in run.data.params
    listed = {entry.path for entry in client(workspace).list_artifacts(found.run_id)}
    assert listed == {"comparison.json", "slices.json", "horizons.json", "figures", "release"}
    drawn = {entry.path for entry in client(workspace).list_artifacts(found.run_id, "figures")}
    assert drawn == {f"figures/{name}.png" for name in ("calibration", "gain", "deciles", "importance")}
    table = json.loads(
        Path(client(workspace).download_artifacts(found.run_id, "comparison.json", tmp_path)).read_text()
    )
    assert table["columns"][:2] == ["comparison", "roc_auc"]
    name, auc = table["data"][0][:2]
    assert name == "tiercast" and auc == pytest.approx(trained.evaluation.comparison.loc[name, "roc_auc"], abs=1e-4)


def test_a_version_is_registered_as_challenger_with_the_digest_of_its_manifest(registered):
    workspace, found = registered
    version = client(workspace).get_model_version_by_alias(NAME, "challenger")
    assert (str(version.version), version.run_id) == (found.version, found.run_id) and found.version == "1"
    assert version.tags[tracking.DIGEST_TAG] == found.digest
    folder = artifacts_of(workspace, found.run_id)
    assert load_release(folder, "1", found.digest).bundle.primary_horizon_days == 90
    assert re.search(r"^As of 2024-05-15, judged on .* AUC 0\.\d{3}, normalized Gini 0\.\d{3}", version.description)


def artifacts_of(workspace: Path, run_id: str) -> Path:
    return workspace / "artifacts" / run_id / "artifacts" / "release"


@pytest.mark.usefixtures("without_figures")
def test_training_again_makes_the_next_version_and_moves_the_challenger(workspace, trained, parameters):
    assert [register(workspace, trained, parameters).version for _ in range(2)] == ["1", "2"]
    assert str(client(workspace).get_model_version_by_alias(NAME, "challenger").version) == "2"


@pytest.mark.parametrize("broken", ["_log_numbers", "figures", "_log_release", "_description", "alias"])
def test_a_register_that_fails_leaves_a_failed_run_and_no_version(workspace, trained, parameters, monkeypatch, broken):
    def fail(*arguments, **named):
        raise RuntimeError("no space left")

    if broken == "alias":
        monkeypatch.setattr("mlflow.MlflowClient.set_registered_model_alias", fail)
    else:
        monkeypatch.setattr(tracking, broken, fail)
    with pytest.raises(RuntimeError, match="no space left"):
        register(workspace, trained, parameters)
    monkeypatch.undo()
    found = client(workspace)
    runs = found.search_runs([found.get_experiment_by_name(NAME).experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]
    assert list(found.search_model_versions(f"name = '{NAME}'")) == []


# Who answers


@pytest.mark.usefixtures("without_figures")
def test_a_release_is_promoted_by_alias_and_by_number(workspace, trained, parameters):
    for _ in range(2):
        register(workspace, trained, parameters)
    assert promote(workspace, "challenger", "looks good").version == "2"
    assert champion_of(workspace) == load_champion(workspace).version == "2"
    assert promote(workspace, "1", "").version == "1"
    assert champion_of(workspace) == load_champion(workspace).version == "1"
    decisions = json.loads(client(workspace).get_registered_model(NAME).tags[tracking.CHAMPIONS_TAG])
    assert [(d["version"], d["reason"]) for d in decisions] == [("2", "looks good"), ("1", "")]


@pytest.mark.usefixtures("without_figures")
def test_two_rollbacks_go_back_twice_and_a_third_is_refused(workspace, trained, parameters):
    for _ in range(3):
        register(workspace, trained, parameters)
        promote(workspace, "challenger", "next")
    promote(workspace, "3", "once more")  # must not stand between 3 and 2
    for before in ("2", "1"):
        assert rollback(workspace).version == before
        assert champion_of(workspace) == load_champion(workspace).version == before
    with pytest.raises(ReleaseNotFound, match="there is no earlier champion than release 1 to go back to"):
        rollback(workspace)
    assert load_champion(workspace).version == "1"


@pytest.mark.usefixtures("without_figures")
def test_a_promotion_that_was_cut_off_is_what_a_rollback_undoes(workspace, trained, parameters, monkeypatch):
    for _ in range(2):
        register(workspace, trained, parameters)
        promote(workspace, "challenger", "next")
    register(workspace, trained, parameters)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mlflow.MlflowClient.set_registered_model_alias", killed)
        promote(workspace, "3", "cut off after the pointer moved")
    assert load_champion(workspace).version == "3"
    for before in ("2", "1"):
        assert rollback(workspace).version == before
        assert champion_of(workspace) == load_champion(workspace).version == before


@pytest.mark.parametrize("name", ["7", "candidate", "²", "", "a/b", "x" * 300])
def test_an_unknown_release_is_refused_with_those_there_are(registered, name):
    with pytest.raises(ReleaseNotFound, match=f"no release {re.escape(repr(name))}; versions here: 1"):
        promote(registered[0], name, "")


@pytest.mark.usefixtures("without_figures")
def test_nothing_trained_nothing_promoted(workspace, tmp_path, trained, parameters):
    nowhere = tmp_path / "nowhere"
    for verb in (lambda: promote(nowhere, "1", ""), lambda: rollback(nowhere), lambda: start_ui(nowhere, 1)):
        with pytest.raises(ReleaseNotFound, match=r"nothing has been trained in .*nowhere; run `tiercast train DIR`"):
            verb()
    assert not nowhere.exists()
    with pytest.raises(ReleaseNotFound, match="no release '1'; nothing has been trained here yet"):
        promote(workspace, "1", "")
    with pytest.raises(ReleaseNotFound, match="nothing has been promoted yet"):
        rollback(workspace)
    register(workspace, trained, parameters)
    with pytest.raises(ReleaseNotFound, match="no release 'champion'; versions here: 1"):
        promote(workspace, "champion", "")


def _flip(folder: Path) -> None:
    path = folder / "ltv_90d.lightgbm.txt"
    path.write_text(path.read_text().replace("leaf_value=", "leaf_value=9", 1))


def _reseal(folder: Path) -> None:
    """A change with a manifest to match: only the digest in the registry tells."""
    import hashlib

    _flip(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = (folder / "ltv_90d.lightgbm.txt").read_bytes()
    manifest["sha256"]["ltv_90d.lightgbm.txt"] = hashlib.sha256(changed).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_flip, r"changed since it was registered: ltv_90d\.lightgbm\.txt"),
        (_reseal, "not the one that was registered"),
        (lambda folder: (folder / "tiers.json").unlink(), r"tiers\.json is missing"),
        (lambda folder: (folder / "more.txt").write_text("x"), r"does not list: more\.txt"),
        (shutil.rmtree, "the artifacts of release 2 .* are missing or cannot be read"),
    ],
)
@pytest.mark.usefixtures("without_figures")
def test_a_tampered_artifact_is_not_promoted_and_the_champion_stays(workspace, trained, parameters, tamper, message):
    register(workspace, trained, parameters)
    promote(workspace, "1", "")
    second = register(workspace, trained, parameters)
    tamper(artifacts_of(workspace, second.run_id))
    with pytest.raises(BundleError, match=message):
        promote(workspace, "2", "")
    assert champion_of(workspace) == load_champion(workspace).version == "1"
    assert len(json.loads(client(workspace).get_registered_model(NAME).tags[tracking.CHAMPIONS_TAG])) == 1


@pytest.mark.usefixtures("without_figures")
def test_a_version_without_a_digest_is_not_promoted(workspace, trained, parameters):
    register(workspace, trained, parameters)
    client(workspace).delete_model_version_tag(NAME, "1", tracking.DIGEST_TAG)
    with pytest.raises(BundleError, match="not the one that was registered"):
        promote(workspace, "1", "")


@pytest.mark.usefixtures("without_figures")
def test_many_promotions_with_long_reasons_fit_into_the_registry(workspace, trained, parameters, monkeypatch):
    monkeypatch.setattr(tracking, "publish", lambda *_: None)
    monkeypatch.setattr(tracking, "_download", lambda *_: Path())
    for _ in range(2):
        register(workspace, trained, parameters)
    before = [{"version": str(1 + n % 2), "time": "t", "reason": "r" * 500} for n in range(500)]
    client(workspace).set_registered_model_tag(NAME, tracking.CHAMPIONS_TAG, json.dumps(before[:150]))
    promote(workspace, "1", "because " * 10_000)
    kept = json.loads(client(workspace).get_registered_model(NAME).tags[tracking.CHAMPIONS_TAG])
    assert len(kept) == tracking.MAX_CHAMPIONS and len(kept[-1]["reason"]) == tracking.MAX_REASON


# Nobody is named


def files_naming(ids: list[bytes], folder: Path) -> list[str]:
    """Files under a folder that hold one of the ids, as text in any place."""
    pattern = re.compile(b"|".join(re.escape(one) for one in ids))
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in sorted(files) if pattern.search(path.read_bytes())]


def test_no_customer_id_is_in_the_registry_the_artifacts_or_the_releases(registered, shop, tmp_path):
    workspace, _ = registered
    column = pq.read_table(shop.folder / "customers.parquet", columns=["customer_id"])["customer_id"]
    ids = [one.encode() for one in column.to_pylist()]
    scanned = [path for path in workspace.rglob("*") if path.is_file()]
    assert files_naming(ids, workspace) == []
    print(f"{len(scanned)} files of {sum(p.stat().st_size for p in scanned):,} bytes scanned for {len(ids)} ids")
    assert len(ids) == 1500 and {"mlflow.db", "champion.json"} <= {path.name for path in scanned}
    assert any(RELEASES_FOLDER in path.parts for path in scanned)
    # The control: the same scanner finds one id that was planted in the database and one in a file.
    planted = Path(shutil.copytree(workspace, tmp_path / "planted"))
    with sqlite3.connect(planted / "mlflow.db") as database:
        database.execute("UPDATE registered_models SET description = ?", (f"about {ids[7].decode()}",))
    database.close()
    next(planted.rglob("champion.json")).write_bytes(ids[1499])
    assert files_naming(ids, planted) == ["champion.json", "mlflow.db"]


# Quiet, and gone when told to go

QUIET = """
import pickle, sys
from pathlib import Path
from training.tracking import promote, register, rollback
workspace = Path(sys.argv[1])
trained, parameters = pickle.loads(sys.stdin.buffer.read())
for _ in range(2):
    register(workspace, trained, parameters)
    promote(workspace, "challenger", "why not")
rollback(workspace)
"""


def test_nothing_is_written_to_the_terminal(trained, parameters, tmp_path):
    asked = pickle.dumps((trained, parameters))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", QUIET, tmp_path / "workspace"],
        input=asked,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert load_champion(tmp_path / "workspace").version == "1"


def processes_of_session(session: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session and "State:\tZ" not in (folder / "status").read_text():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def listening(port: int) -> set[str]:
    """Local addresses, as the kernel writes them, on which somebody listens on the port."""
    sockets = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    found = [line.split() for line in sockets]
    return {line[1] for line in found if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


def answer(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None
        try:
            if answer(port, "/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the UI did not answer")


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_ui_answers_on_this_machine_only_and_ends_with_its_process(registered, tmp_path):
    port = int(np.random.default_rng().integers(20_000, 32_000))
    with (tmp_path / "log").open("wb") as log:
        process = start_ui(registered[0], port, log)
        try:
            wait_for(port, process)
            assert listening(port) == {f"0100007F:{port:04X}"}
            assert b"<html" in answer(port, "/")[1]
            during = processes_of_session(process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)
    print(f"{len(during)} processes while it ran")
    assert len(during) >= 1
    deadline = time.monotonic() + 10
    while processes_of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of_session(process.pid) == [] and listening(port) == set()
