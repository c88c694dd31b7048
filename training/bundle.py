"""The bundle: models, feature spec and provenance as LightGBM text and JSON, saved and loaded whole.

This is the only module of `training` that serving imports; it pulls in neither MLflow nor anything else of training.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightgbm
import numpy as np
import pandas as pd

from features.errors import BundleError, ReleaseNotFound, SpecMismatch
from features.snapshot import FeatureSpec, Snapshot
from segments.scores import ltv_column, non_decreasing, repurchase_column, score_columns
from segments.tiers import TierPolicy

FORMAT = 1
BUNDLE_FILE, TIERS_FILE, MANIFEST_FILE = "bundle.json", "tiers.json", "manifest.json"
RELEASES_FOLDER, CHAMPION_FILE = "releases", "champion.json"

Outcome = Literal["repurchase", "ltv"]


@dataclass(frozen=True)
class Head:
    """One model: what it predicts, over which horizon, and the currency by which its output is multiplied."""

    outcome: Outcome
    horizon_days: int
    booster: lightgbm.Booster
    scale: float = 1.0

    @property
    def column(self) -> str:
        return repurchase_column(self.horizon_days) if self.outcome == "repurchase" else ltv_column(self.horizon_days)

    @property
    def file_name(self) -> str:
        return f"{self.column}.lightgbm.txt"

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """matrix, shape (rows, features) -> predictions, shape (rows,)."""
        return np.asarray(self.booster.predict(matrix)) * self.scale


@dataclass(frozen=True)
class Bundle:
    """Everything that turns a snapshot into scores.

    `heads` hold one model per outcome and horizon; `provenance` says what it was trained on, `metrics` how it did.
    """

    spec: FeatureSpec
    primary_horizon_days: int
    heads: tuple[Head, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def horizons_days(self, outcome: Outcome) -> tuple[int, ...]:
        """Horizons that the bundle predicts `outcome` for, shortest first."""
        return tuple(sorted(head.horizon_days for head in self.heads if head.outcome == outcome))

    def score(self, snapshot: Snapshot, model_version: str) -> pd.DataFrame:
        """snapshot -> scores without tiers: one row per row of the snapshot, in its order.

        Raises SpecMismatch when the snapshot's features are not those the models were trained on.
        """
        if snapshot.spec.fingerprint != self.spec.fingerprint:
            raise SpecMismatch(
                f"the snapshot's features ({snapshot.spec.fingerprint[:12]}) are not the model's "
                f"({self.spec.fingerprint[:12]}); build it with the bundle's own spec"
            )
        matrix = snapshot.matrix()
        scores = snapshot.frame[["customer_id", "cutoff"]].copy()
        for head in self.heads:
            scores[head.column] = head.predict(matrix) if len(matrix) else np.empty(0)
        scores = non_decreasing(scores, [repurchase_column(h) for h in self.horizons_days("repurchase")])
        scores = non_decreasing(scores, [ltv_column(h) for h in self.horizons_days("ltv")])
        scores["p_churn"] = 1.0 - scores[repurchase_column(self.primary_horizon_days)]
        return scores.assign(model_version=model_version, basis="learned")


@dataclass(frozen=True)
class Release:
    """What a reviewer promotes and serving adopts in one move: a bundle and its frozen tier policy."""

    bundle: Bundle
    tiers: TierPolicy
    version: str

    @property
    def columns(self) -> list[str]:
        """The columns of its scores, in order."""
        return score_columns(self.bundle.horizons_days("repurchase"), self.bundle.horizons_days("ltv"))

    def score(self, snapshot: Snapshot) -> pd.DataFrame:
        """snapshot -> the whole table of scores, tiers included."""
        scores = self.bundle.score(snapshot, self.version)
        tiers = self.tiers.assign(scores[self.tiers.score].to_numpy())
        return scores.assign(tier=pd.Series(tiers, index=scores.index, dtype="str"))[self.columns]


def save_release(folder: Path, bundle: Bundle, tiers: TierPolicy) -> str:
    """Writes bundle, tiers and manifest into the empty `folder`; returns the manifest's SHA-256.

    The digest belongs somewhere else than the files: `load_release` compares it.
    """
    for head in bundle.heads:
        (folder / head.file_name).write_text(head.booster.model_to_string(), encoding="utf-8")
    _write_json(folder / BUNDLE_FILE, _describe(bundle))
    _write_json(folder / TIERS_FILE, tiers.to_json())
    hashes = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    _write_json(folder / MANIFEST_FILE, {"format": FORMAT, "sha256": hashes})
    return _sha256((folder / MANIFEST_FILE).read_bytes())


def load_release(folder: Path, version: str, digest: str) -> Release:
    """The release in `folder`, verified: manifest against `digest`, every file against the manifest.

    Nothing reaches LightGBM before its hash is right: a broken model file would end the process. Raises BundleError.
    """
    files = _verified_files(folder, digest)
    try:
        found = json.loads(files[BUNDLE_FILE])
        heads = tuple(_load_head(head, files) for head in found["heads"])
        spec = FeatureSpec.from_json(found["spec"])
        bundle = Bundle(spec, found["primary_horizon_days"], heads, found["provenance"], found["metrics"])
        tiers = TierPolicy.from_json(json.loads(files[TIERS_FILE]))
    except (AttributeError, KeyError, TypeError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise BundleError(
            f"the bundle in {folder.name} cannot be read, although its hashes are right: {error!r}"
        ) from None
    for head in heads:
        if head.booster.feature_name() != list(spec.names):
            raise BundleError(f"{head.file_name} was trained on other features than the bundle's spec lists")
    return Release(bundle, tiers, version)


def _verified_files(folder: Path, digest: str) -> dict[str, bytes]:
    """File name -> content, each read once and hashed as read."""
    hashes = _verified_hashes(folder, digest)
    extra = {path.name for path in folder.iterdir()} - {*hashes, MANIFEST_FILE}
    if extra:
        raise BundleError(f"{folder.name} holds files that its manifest does not list: {', '.join(sorted(extra))}")
    files = {name: _read(folder / name) for name in hashes}
    changed = sorted(name for name, content in files.items() if _sha256(content) != hashes[name])
    if changed:
        raise BundleError(f"changed since it was registered: {', '.join(changed)} in {folder.name}")
    return files


def _verified_hashes(folder: Path, digest: str) -> dict[str, str]:
    """File name -> SHA-256, out of a manifest that is the registered one and of our format."""
    manifest = _read(folder / MANIFEST_FILE)
    if _sha256(manifest) != digest:
        raise BundleError(f"{MANIFEST_FILE} in {folder.name} is not the one that was registered (SHA-256 differs)")
    try:
        found = json.loads(manifest)
        written, hashes = found["format"], dict(found["sha256"])
    except (KeyError, TypeError, ValueError):
        raise BundleError(f"{MANIFEST_FILE} in {folder.name} is not a manifest of Tiercast") from None
    if written != FORMAT:
        raise BundleError(f"{folder.name} is of format {written}; this Tiercast reads format {FORMAT}")
    return hashes


def _read(path: Path) -> bytes:
    if path.is_symlink():
        raise BundleError(f"{path.name} in {path.parent.name} is a link; a release holds plain files only")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing in {path.parent.name}") from None
    except OSError as error:
        raise BundleError(f"{path.name} in {path.parent.name} cannot be read: {error.strerror}") from None


def _describe(bundle: Bundle) -> dict[str, Any]:
    return {
        "spec": bundle.spec.to_json(),
        "primary_horizon_days": bundle.primary_horizon_days,
        "heads": [
            {"outcome": head.outcome, "horizon_days": head.horizon_days, "scale": head.scale, "file": head.file_name}
            for head in bundle.heads
        ],
        "provenance": bundle.provenance,
        "metrics": {name: None if np.isnan(value) else value for name, value in bundle.metrics.items()},
    }


def _load_head(found: dict[str, Any], files: dict[str, bytes]) -> Head:
    booster = lightgbm.Booster(model_str=files[found["file"]].decode("utf-8"))
    return Head(found["outcome"], found["horizon_days"], booster, found["scale"])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# The champion of a workspace: a verified copy of the release that answers, and a pointer to it


def publish(workspace: Path, source: Path, version: str, digest: str) -> Release:
    """Makes the release in `source` the one that answers: verifies it, copies it, then moves the pointer.

    Each step is a rename of something complete, so that a reader sees the old champion or the new one.
    Raises BundleError, and then nothing has changed.
    """
    load_release(source, version, digest)
    release = _keep(source, _kept(workspace, version, digest), version, digest)
    pointer = {"version": version, "sha256": digest}
    write_whole(workspace / CHAMPION_FILE, lambda path: _write_json(path, pointer))
    return release


def load_champion(workspace: Path) -> Release:
    """The release that answers in this workspace, verified. Raises ReleaseNotFound, BundleError."""
    version, digest = _pointer(workspace)
    return load_release(_kept(workspace, version, digest), version, digest)


def champion_version(workspace: Path) -> str | None:
    """The version that answers in this workspace, None where none does or the pointer cannot be read."""
    try:
        return _pointer(workspace)[0]
    except (BundleError, ReleaseNotFound):
        return None


def _pointer(workspace: Path) -> tuple[str, str]:
    """Version and manifest digest of the release that answers. Raises ReleaseNotFound, BundleError."""
    pointer = workspace / CHAMPION_FILE
    if not pointer.exists():
        way_out = "train a release, look at it, then `tiercast promote challenger`"
        raise ReleaseNotFound(f"no champion in {workspace}; {way_out}")
    try:
        found = json.loads(pointer.read_text(encoding="utf-8"))
        return str(found["version"]), str(found["sha256"])
    except (KeyError, TypeError, ValueError, OSError):
        raise BundleError(f"{CHAMPION_FILE} in {workspace} cannot be read; promote a release again") from None


def _kept(workspace: Path, version: str, digest: str) -> Path:
    """Where a workspace holds a release. Version numbers start again in a new registry, digests never do."""
    return workspace / RELEASES_FOLDER / f"{version}-{digest[:12]}"


def _keep(source: Path, kept: Path, version: str, digest: str) -> Release:
    """The release in `kept`, copied there from `source` unless it is there, whole, already."""
    with contextlib.suppress(BundleError):
        return load_release(kept, version, digest)
    arriving = Path(tempfile.mkdtemp(prefix=f".{kept.name}-", dir=_made(kept.parent)))
    try:
        shutil.copytree(source, arriving, dirs_exist_ok=True)
        arriving.chmod(0o755)
        release = load_release(arriving, version, digest)
        # Whatever is there cannot answer: it did not verify.
        shutil.rmtree(kept, ignore_errors=True)
        arriving.rename(kept)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return release


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file beside `path` and renames it into place: readers see the old or the new, whole."""
    arriving = _made(path.parent) / f".{path.stem}-{os.getpid()}{path.suffix}"
    try:
        write(arriving)
        arriving.replace(path)
    finally:
        arriving.unlink(missing_ok=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
