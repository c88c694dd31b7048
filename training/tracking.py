"""The one door to MLflow: a training becomes a run and a registered release; aliases say which one answers."""

from __future__ import annotations

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
from typing import IO, TYPE_CHECKING, Any

from features.errors import ReleaseNotFound
from training.bundle import publish, save_release
from training.figures import figures
from training.train import Trained

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "tiercast"  # of the experiment and of the registered model
CHAMPION, CHALLENGER = "champion", "challenger"
RELEASE_FOLDER = "release"
# On the registered model: the versions that have answered, oldest first, the champion last. A rollback drops the last.
CHAMPIONS_TAG = "champions"
DIGEST_TAG = "manifest_sha256"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


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
    client = _client(workspace)
    with _finished_run(client, _experiment(client, workspace), trained) as run_id:
        _log_parameters(client, run_id, trained, parameters)
        _log_metrics(client, run_id, trained.evaluation.metrics())
        _log_evaluation(client, run_id, trained, parameters["currency"])
        digest = _log_release(client, run_id, trained)
    version = _create_version(client, run_id, digest, trained)
    return Registered(version, run_id, digest)


def promote(workspace: Path, name: str, reason: str) -> Registered:
    """Makes a version (a number, or an alias such as `challenger`) the champion; the release is verified first."""
    client = _existing_client(workspace)
    found = _find(client, name)
    champions = [*_champions(client), {"version": found.version, "time": _now(), "reason": reason}]
    return _enthrone(client, workspace, found, champions)


def rollback(workspace: Path) -> Registered:
    """Makes the version that answered before the champion the champion again."""
    client = _existing_client(workspace)
    champions = _champions(client)
    if len(champions) < 2:
        raise ReleaseNotFound("there is no earlier champion to go back to" if champions else "nothing has been promoted yet")
    return _enthrone(client, workspace, _find(client, champions[-2]["version"]), champions[:-1])


def start_ui(workspace: Path, port: int, log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Starts the MLflow UI of a workspace on 127.0.0.1 and returns its process; `log` takes what it writes."""
    _existing_client(workspace)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address(workspace), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    output = subprocess.STDOUT if log else None
    return subprocess.Popen(command, env={**os.environ, **_QUIET}, cwd=workspace, stdout=log, stderr=output, start_new_session=True)


def _enthrone(client: MlflowClient, workspace: Path, found: Registered, champions: list[dict[str, str]]) -> Registered:
    """The release first, the alias after it: an alias never names a release that could not be verified."""
    with tempfile.TemporaryDirectory(prefix="tiercast-") as arriving:
        client.download_artifacts(found.run_id, RELEASE_FOLDER, arriving)
        publish(workspace, Path(arriving) / RELEASE_FOLDER, found.version, found.digest)
    client.set_registered_model_alias(NAME, CHAMPION, found.version)
    client.set_registered_model_tag(NAME, CHAMPIONS_TAG, json.dumps(champions))
    return found


# Reading the registry


def _find(client: MlflowClient, name: str) -> Registered:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(NAME, name) if name.isdigit() else client.get_model_version_by_alias(NAME, name)
    except MlflowException:
        versions = sorted((int(v.version) for v in client.search_model_versions(f"name = '{NAME}'")), reverse=True)
        known = f"versions here: {', '.join(map(str, versions[:10]))}" if versions else "nothing has been trained here yet"
        raise ReleaseNotFound(f"no release {name!r}; {known}") from None
    return Registered(str(found.version), found.run_id, found.tags.get(DIGEST_TAG, ""))


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
        raise ReleaseNotFound(f"nothing has been trained in {workspace}; run `tiercast train DIR` first, or name another --workspace")
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
    return str(client.create_experiment(NAME, artifact_location=(workspace / "artifacts").resolve().as_uri()))


@contextmanager
def _finished_run(client: MlflowClient, experiment: str, trained: Trained) -> Iterator[str]:
    """A run that ends as FINISHED, or as FAILED when something goes wrong on the way."""
    name = f"as of {trained.bundle.provenance['as_of'][:10]}"
    run_id = str(client.create_run(experiment, run_name=name).info.run_id)
    try:
        yield run_id
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)


def _log_parameters(client: MlflowClient, run_id: str, trained: Trained, parameters: dict[str, str]) -> None:
    found = {
        f"{outcome}.{name}": str(value)
        for outcome, entry in trained.found.items()
        for name, value in (entry.parameters.to_json() | {"trials": entry.trials}).items()
    }
    for name, value in (parameters | found | {"features": str(len(trained.bundle.spec.names))}).items():
        client.log_param(run_id, name, value)


def _log_metrics(client: MlflowClient, run_id: str, metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(datetime.now(UTC).timestamp() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])


def _log_evaluation(client: MlflowClient, run_id: str, trained: Trained, currency: str) -> None:
    tables = {"comparison": trained.evaluation.comparison, "slices": trained.evaluation.slices, "horizons": trained.evaluation.horizons}
    for name, table in tables.items():
        client.log_table(run_id, table.rename_axis(name).reset_index().round(4), f"{name}.json")
    for file_name, figure in figures(trained.bundle, trained.evaluation, currency).items():
        client.log_figure(run_id, figure, f"figures/{file_name}")


def _log_release(client: MlflowClient, run_id: str, trained: Trained) -> str:
    with tempfile.TemporaryDirectory(prefix="tiercast-") as folder:
        digest = save_release(Path(folder), trained.bundle, trained.tiers)
        client.log_artifacts(run_id, folder, RELEASE_FOLDER)
    return digest


def _create_version(client: MlflowClient, run_id: str, digest: str, trained: Trained) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(NAME)
    except MlflowException:
        client.create_registered_model(NAME, description="Repurchase probability and lifetime value per customer, as tiers.")
    version = client.create_model_version(
        NAME, source=f"runs:/{run_id}/{RELEASE_FOLDER}", run_id=run_id, tags={DIGEST_TAG: digest}, description=_description(trained)
    )
    client.set_registered_model_alias(NAME, CHALLENGER, version.version)
    return str(version.version)


def _description(trained: Trained) -> str:
    evaluation: Any = trained.evaluation
    row = evaluation.comparison.loc["tiercast"]
    return (
        f"As of {trained.bundle.provenance['as_of'][:10]}, judged on {evaluation.customers:,} customers over "
        f"{evaluation.horizon_days} days from {evaluation.cutoff:%Y-%m-%d}: AUC {row['roc_auc']:.3f}, "
        f"normalized Gini {row['normalized_gini']:.3f}, bias {row['bias']:+.0%}."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
