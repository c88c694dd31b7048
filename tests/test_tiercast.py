"""The command line: thin, and importing only what a command needs."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

import tiercast
from features.errors import UsageRefused
from features.settings import Settings

HEAVY = (
    "bentoml",
    "duckdb",
    "ibis",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "sklearn",
)


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter holds after running `code`."""
    report = f"{code}\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


def test_help_loads_no_heavy_package() -> None:
    code = "import contextlib, tiercast\nwith contextlib.suppress(SystemExit):\n    tiercast.main(['--help'])"
    assert loaded_by(code) == set()
    assert "numpy" in loaded_by("import numpy")  # the control


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("simulate", "check", "train", "promote", "rollback", "score", "serve", "ui", "demo")
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            tiercast.main([command, "--help"])
        assert ended.value.code == tiercast.DONE
        shown = capsys.readouterr().out
        assert f"tiercast {command}" in shown and "--workspace" in shown


@pytest.mark.parametrize(
    ("text", "timezone", "utc"),
    [
        ("2026-01-31", "UTC", "2026-01-31T00:00"),
        ("2026-01-31", "Asia/Ho_Chi_Minh", "2026-01-30T17:00"),
        ("2026-07-01T12:00", "Europe/London", "2026-07-01T11:00"),
        ("2026-01-31T00:00:00+07:00", "Europe/London", "2026-01-30T17:00"),
        ("2026-01-31T00:00:00Z", "Asia/Ho_Chi_Minh", "2026-01-31T00:00"),
    ],
)
def test_a_cutoff_is_read_in_the_time_zone_of_the_shop(text: str, timezone: str, utc: str) -> None:
    assert tiercast._moment(text, Settings(timezone=timezone)) == datetime.fromisoformat(utc)


def test_a_cutoff_that_is_no_date_says_how_to_write_one() -> None:
    with pytest.raises(UsageRefused, match="write it as 2026-01-31"):
        tiercast._moment("31.01.2026", Settings())


def test_the_workspace_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIERCAST_WORKSPACE", str(tmp_path))
    assert tiercast._parser().parse_args(["rollback"]).workspace == tmp_path
    assert tiercast._parser().parse_args(["rollback", "--workspace", "here"]).workspace == Path("here")


def test_json_of_a_refusal_goes_nowhere_but_its_reason_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiercast.main(["check", str(tmp_path), "--json"]) == tiercast.REFUSED
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("ContractError: ")


def test_json_holds_no_nan_and_writes_moments_one_way() -> None:
    found = tiercast._plain({"a": [1.5, float("nan")], "at": datetime(2026, 1, 31), 2: ("x", None)})
    assert found == {"a": [1.5, None], "at": "2026-01-31T00:00:00", "2": ["x", None]}
