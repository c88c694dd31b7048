"""The one door to MLflow: a training becomes a run and a registered release; aliases say which one answers."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from features.errors import BundleError, ReleaseNotFound
from features.tables import show_local
from training.bundle import champion_version, publish, save_release
from training.evaluate import MODEL
from training.figures import figures
from training.train import Trained

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

NAME = "tiercast"  # of the experiment and of the registered model
CHAMPION, CHALLENGER = "champion", "challenger"
RELEASE_FOLDER = "release"
# On the registered model: the versions that have answered, oldest first, the champion last. A rollback drops the last.
CHAMPIONS_TAG = "champions"
DIGEST_TAG = "manifest_sha256"
UI_READY_PATH = "/health"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
# Promotions that are remembered: a tag has room for 100,000 characters.
MAX_CHAMPIONS, MAX_REASON = 100, 500
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # shows runs as trained models, not as chats


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    version: str
    run_id: str
    digest: str


def address(workspace: Path) -> str:
    """The tracking address of a workspace: SQLite in `mlflow.db`."""
    return f"sqlite:///{(workspace / 'mlflow.db').resolve()}"


def register(workspace: Path, trained: Trained, parameters: dict[str, str]) -> Registered:
    """One run with parameters, metrics, tables and figures, and one version with the alias `challenger`."""
    workspace.mkdir(parents=True, exist_ok=True)
    with _alone(workspace):
        return _register(_client(workspace), workspace, trained, parameters)


def _register(client: MlflowClient, workspace: Path, trained: Trained, parameters: dict[str, str]) -> Registered:
    with _finished_run(client, _experiment(client, workspace), trained) as run_id:
        client.set_tag(run_id, "mlflow.note.content", _description(trained))
        _log_numbers(client, run_id, trained, parameters)
        _log_evaluation(client, run_id, trained, parameters["currency"])
        digest = _log_release(client, run_id, trained)
        version = _create_version(client, run_id, digest, trained)
    return Registered(version, run_id, digest)


def promote(workspace: Path, name: str, reason: str) -> Registered:
    """Makes a version (a number, or an alias such as `challenger`) the champion; the release is verified first.

    Raises ReleaseNotFound, or BundleError where the artifacts are not those that were registered; the champion then
    stays.
    """
    with _alone(workspace):
        return _promote(_existing_client(workspace), workspace, name, reason)


def _promote(client: MlflowClient, workspace: Path, name: str, reason: str) -> Registered:
    found = _find(client, name)
    before = _champions(client)
    if before and before[-1]["version"] == found.version:
        before = before[:-1]  # promoted again: a rollback must not lead to itself
    decision = {"version": found.version, "time": _now(), "reason": reason[:MAX_REASON]}
    return _enthrone(client, workspace, found, [*before, decision][-MAX_CHAMPIONS:])


def rollback(workspace: Path) -> Registered:
    """Makes the version that answered before the champion the champion again."""
    with _alone(workspace):
        return _rollback(_existing_client(workspace), workspace)


def _rollback(client: MlflowClient, workspace: Path) -> Registered:
    champions = _champions(client)
    if champions and champions[-1]["version"] != champion_version(workspace):
        # A promotion was cut off after its release answered and before it was written down: it is what is undone.
        return _enthrone(client, workspace, _find(client, champions[-1]["version"]), champions)
    if not champions:
        raise ReleaseNotFound("nothing has been promoted yet")
    if len(champions) == 1:
        raise ReleaseNotFound(f"there is no earlier champion than release {champions[0]['version']} to go back to")
    return _enthrone(client, workspace, _find(client, champions[-2]["version"]), champions[:-1])


@contextmanager
def _alone(workspace: Path) -> Iterator[None]:
    """One command at a time writes to a workspace: two would make its database at once, or interleave decisions."""
    if not workspace.exists():
        yield
        return
    with (workspace / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def start_ui(workspace: Path, port: int, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Starts the MLflow UI of a workspace on 127.0.0.1 and returns its process; `log` takes what it writes.

    `terminate()` on the process ends all of it.
    """
    _existing_client(workspace)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address(workspace), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, **_QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    output = subprocess.STDOUT if log else None
    return subprocess.Popen(command, env=environment, cwd=workspace, stdout=log, stderr=output, start_new_session=True)


def _enthrone(client: MlflowClient, workspace: Path, found: Registered, champions: list[dict[str, str]]) -> Registered:
    """The release first, the alias after it: an alias never names a release that could not be verified."""
    with tempfile.TemporaryDirectory(prefix="tiercast-") as arriving:
        publish(workspace, _download(client, found, arriving), found.version, found.digest)
    client.set_registered_model_alias(NAME, CHAMPION, found.version)
    client.set_registered_model_tag(NAME, CHAMPIONS_TAG, json.dumps(champions))
    return found


def _download(client: MlflowClient, found: Registered, folder: str) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        client.download_artifacts(found.run_id, RELEASE_FOLDER, folder)
    except (MlflowException, OSError):
        run = f"run {found.run_id}"
        raise BundleError(f"the artifacts of release {found.version} ({run}) are missing or cannot be read") from None
    return Path(folder) / RELEASE_FOLDER


# Reading the registry


def _find(client: MlflowClient, name: str) -> Registered:
    from mlflow.exceptions import MlflowException

    by_name = client.get_model_version if name.isdigit() else client.get_model_version_by_alias
    try:
        found = by_name(NAME, name)
    except MlflowException:
        versions = sorted((int(v.version) for v in client.search_model_versions(f"name = '{NAME}'")), reverse=True)
        listed = ", ".join(map(str, versions[:10]))
        known = f"versions here: {listed}" if versions else "nothing has been trained here yet"
        raise ReleaseNotFound(f"no release {name!r}; {known}") from None
    return Registered(str(found.version), str(found.run_id), found.tags.get(DIGEST_TAG, ""))


def _champions(client: MlflowClient) -> list[dict[str, str]]:
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(NAME).tags
    except MlflowException:
        return []
    found: list[dict[str, str]] = json.loads(tags.get(CHAMPIONS_TAG, "[]"))
    return found


def _existing_client(workspace: Path) -> MlflowClient:
    if not (workspace / "mlflow.db").exists():
        way_out = "run `tiercast train DIR` first, or name another --workspace"
        raise ReleaseNotFound(f"nothing has been trained in {workspace}; {way_out}")
    return _client(workspace)


def _client(workspace: Path) -> MlflowClient:
    os.environ.update(_QUIET)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(address(workspace), address(workspace))


# Writing a run


def _experiment(client: MlflowClient, workspace: Path) -> str:
    found = client.get_experiment_by_name(NAME)
    if found is not None:
        return str(found.experiment_id)
    location = (workspace / "artifacts").resolve().as_uri()
    return str(client.create_experiment(NAME, artifact_location=location, tags=_KIND))


@contextmanager
def _finished_run(client: MlflowClient, experiment: str, trained: Trained) -> Iterator[str]:
    """A run that ends as FINISHED, or as FAILED when something goes wrong on the way."""
    name = f"as of {_as_of(trained)}"
    run_id = str(client.create_run(experiment, run_name=name).info.run_id)
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def _log_numbers(client: MlflowClient, run_id: str, trained: Trained, parameters: dict[str, str]) -> None:
    """Parameters and metrics."""
    from mlflow.entities import Metric, Param

    searched = {
        f"{outcome}.{name}": value
        for outcome, entry in trained.found.items()
        for name, value in (entry.parameters.to_json() | {"trials": entry.trials}).items()
    }
    found = {**parameters, **searched, "features": len(trained.bundle.spec.names)}
    now = int(datetime.now(UTC).timestamp() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in trained.evaluation.metrics().items()]
    client.log_batch(run_id, metrics=metrics, params=[Param(name, str(value)) for name, value in found.items()])


def _log_evaluation(client: MlflowClient, run_id: str, trained: Trained, currency: str) -> None:
    evaluation = trained.evaluation
    for name in ("comparison", "slices", "horizons"):
        table: pd.DataFrame = getattr(evaluation, name)
        client.log_table(run_id, table.rename_axis(name).reset_index().round(4), f"{name}.json")
    for file_name, figure in figures(trained.bundle, evaluation, currency).items():
        client.log_figure(run_id, figure, f"figures/{file_name}")


def _log_release(client: MlflowClient, run_id: str, trained: Trained) -> str:
    with tempfile.TemporaryDirectory(prefix="tiercast-") as folder:
        digest = save_release(Path(folder), trained.bundle, trained.tiers)
        client.log_artifacts(run_id, folder, RELEASE_FOLDER)
    return digest


def _create_version(client: MlflowClient, run_id: str, digest: str, trained: Trained) -> str:
    """A version with its digest and the alias, or none at all."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(NAME)
    except MlflowException:
        what = "Repurchase probability and lifetime value per customer, as tiers."
        client.create_registered_model(NAME, description=what)
    source, tags = f"runs:/{run_id}/{RELEASE_FOLDER}", {DIGEST_TAG: digest}
    version = client.create_model_version(NAME, source, run_id, tags, description=_description(trained)).version
    try:
        client.set_registered_model_alias(NAME, CHALLENGER, version)
    except BaseException:
        client.delete_model_version(NAME, version)
        raise
    return str(version)


def _description(trained: Trained) -> str:
    evaluation = trained.evaluation
    row = evaluation.comparison.loc[MODEL]
    return (
        f"As of {_as_of(trained)}, judged on {evaluation.customers:,} customers over "
        f"{evaluation.horizon_days} days from {evaluation.cutoff:%Y-%m-%d}: AUC {row['roc_auc']:.3f}, "
        f"normalized Gini {row['normalized_gini']:.3f}, bias {row['bias']:+.0%}."
    )


def _as_of(trained: Trained) -> str:
    provenance = trained.bundle.provenance
    return show_local(datetime.fromisoformat(provenance["as_of"]), provenance["timezone"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
