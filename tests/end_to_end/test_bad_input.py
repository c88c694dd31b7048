"""Bad input gets a named error with the way out, exit code 1 or 2, and leaves no trace in the workspace."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

import tiercast

HEADER = "order_id,customer_id,time,amount\n"


def orders(customers: int = 60, repeats: bool = True) -> str:
    """Orders over two years: customer i on day i, then, with `repeats`, every 25, 65, 105 or 145 days."""
    lines = []
    for customer in range(customers):
        every_days = 25 + 40 * (customer % 4)
        for day in range(customer, 730 if repeats else customer + 1, every_days):
            time = date(2024, 1, 1) + timedelta(days=day)
            lines.append(f"o{len(lines)},c{customer},{time},{10 + day % 7}.50")
    return HEADER + "\n".join(lines) + "\n"


def write(text: str, name: str = "orders.csv") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def two(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(folder: Path) -> None:
        first(folder)
        second(folder)

    return both


# name: (what is in the folder, the arguments of `train`, exit code, what the error says)
CASES: dict[str, tuple[Callable[[Path], None], list[str], int, list[str]]] = {
    "missing column": (
        write("order_id,customer_id,time,total\no1,c1,2024-01-01,5\n"),
        [],
        1,
        ["ContractError", "'amount' is missing (found: order_id, customer_id, time, total)", "[sources.orders.col"],
    ),
    "unparsable dates": (
        write(HEADER + "o1,c1,32/13/2024,5\no2,c1,2024-01-02,5\n"),
        [],
        1,
        ["ContractError", "1 of 2 rows: time is not a time (first: row 1)", "[sources.orders.columns]"],
    ),
    "empty file": (write(""), [], 1, ["ContractError", "orders.csv is empty"]),
    "header only": (write(HEADER), [], 1, ["ContractError", "orders has no rows"]),
    "no orders at all": (lambda folder: None, [], 1, ["ContractError", "orders is missing", "tiercast.toml"]),
    "one customer": (write(orders(customers=1)), [], 1, ["TooLittleData", "customer"]),
    "no repeat buyers": (write(orders(customers=400, repeats=False)), [], 1, ["TooLittleData", "bought again"]),
    "cutoff before the data": (
        write(orders()),
        ["--as-of", "2020-01-01"],
        1,
        ["CutoffOutsideData", "orders start 2024-01-01"],
    ),
    "cutoff after the data": (write(orders()), ["--as-of", "2031-01-01"], 1, ["CutoffOutsideData", "outside the data"]),
    "cutoff too early to learn": (
        write(orders()),
        ["--as-of", "2024-03-01"],
        1,
        ["TooLittleData", "needs", "days of orders"],
    ),
    "cutoff that is no date": (
        write(orders()),
        ["--as-of", "yesterday"],
        2,
        ["UsageRefused", "'yesterday' is not a date"],
    ),
    "unknown settings key": (
        two(write(orders()), write('currencey = "VND"\n', "tiercast.toml")),
        [],
        2,
        ["SettingsError", "unknown key 'currencey'; did you mean 'currency'?"],
    ),
    "settings that are not TOML": (
        two(write(orders()), write("currency = \n", "tiercast.toml")),
        [],
        2,
        ["SettingsError", "not valid TOML"],
    ),
    "settings with two faults": (
        two(write(orders()), write('currency = "DONG"\nmax_snapshots = 0\n', "tiercast.toml")),
        [],
        2,
        ["2 problems", "currency must be an ISO 4217 code", "max_snapshots must be"],
    ),
    "an expression that fails": (
        two(
            write(orders()),
            write(
                '[sources.orders]\npath = "orders.csv"\n[sources.orders.columns]\ncustomer_id = "kunde"\n'
                'time = "time"\namount = "amount"\n',
                "tiercast.toml",
            ),
        ),
        [],
        1,
        ["ContractError", "orders", "kunde"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill, arguments, code, said = CASES[name]
    folder, workspace = tmp_path / "data", tmp_path / "workspace"
    folder.mkdir()
    fill(folder)

    found = tiercast.main(["train", str(folder), "--workspace", str(workspace), *arguments])

    error = capsys.readouterr().err
    assert found == code, error
    for text in said:
        assert text in error
    assert "Traceback" not in error
    assert not workspace.exists()


def test_the_shop_that_the_cases_spoil_is_itself_fine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(orders())(tmp_path)
    assert tiercast.main(["check", str(tmp_path)]) == tiercast.DONE
    assert "would be refused" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "DIR"),
        (["train", "x", "--trials", "-1"], "whole number"),
        (["score", "x"], "--out"),
        (["fly"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        tiercast.main(arguments)
    assert ended.value.code == tiercast.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["promote", "challenger"], "nothing has been trained"),
        (["rollback"], "nothing has been trained"),
        (["score", ".", "--out", "scores.csv"], "no champion"),
        (["serve"], "no champion"),
        (["ui"], "nothing has been trained"),
    ],
)
def test_an_empty_workspace_refuses_what_needs_a_release_and_stays_empty(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    assert tiercast.main([*arguments, "--workspace", str(workspace)]) == tiercast.REFUSED
    assert said in capsys.readouterr().err
    assert not workspace.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "{shop}", "--as-of", ""], "UsageRefused: --as-of '' is not a date"),
        (["check", "{shop}", "--workspace", "{file}"], "UsageRefused: the workspace"),
        (["check", "{shop}", "--workspace", "a%20b"], "UsageRefused: the workspace"),
        (["score", "{shop}", "--out", "{shop}"], "UsageRefused: scores are written as"),
        (["score", "{shop}", "--out", "{file}"], "UsageRefused: scores are written as"),
        (["simulate", "{file}/shop"], "FileExistsError"),
    ],
)
def test_odd_places_are_refused_before_the_work(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "shop", tmp_path / "file.txt"
    folder.mkdir()
    write(orders())(folder)
    file.write_text("here already")
    places = [text.format(shop=folder, file=file) for text in arguments]
    code = tiercast.main(places)
    told = capsys.readouterr()
    assert code in (tiercast.REFUSED, tiercast.USAGE)
    assert told.err.startswith(said) and not told.out
    assert file.read_text() == "here already"
