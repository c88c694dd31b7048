"""What the end-to-end tests share: the real data where they are, and a small shop that went through the commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiercast

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data; the tests that need it are skipped, saying so, where it is absent."""
    folder = Path(os.environ.get("TIERCAST_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the public data are absent: set TIERCAST_DATA to a folder with online_retail/ and cdnow/")
    return folder


@dataclass(frozen=True)
class Shop:
    """A simulated shop and the workspace in which its release answers."""

    folder: Path
    workspace: Path


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """2,000 customers over 18 months: simulated, trained, promoted and scored by the commands themselves."""
    root = tmp_path_factory.mktemp("shop")
    made = Shop(root / "data", root / "workspace")
    workspace = ["--workspace", str(made.workspace)]
    for command in (
        ["simulate", str(made.folder), "--customers", "2000", "--months", "18", "--seed", "3"],
        ["train", str(made.folder), "--trials", "2", *workspace],
        ["promote", "challenger", "--reason", "test", *workspace],
        ["score", str(made.folder), "--out", str(root / "scores.parquet"), *workspace],
    ):
        assert tiercast.main(command) == tiercast.DONE, command
    return made
