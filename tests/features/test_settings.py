"""Settings: every default, every refusal, all at once."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from features.errors import SettingsError, UsageRefused
from features.settings import Settings, SourceTable, TierSettings, parse_settings, read_settings
from features.sources import load_settings
from features.tables import COLUMN_NAMES


def parsed(text: str) -> Settings:
    return parse_settings(tomllib.loads(text), COLUMN_NAMES)


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parsed(text)
    return str(caught.value)


def test_every_key_has_its_default() -> None:
    assert parsed("") == Settings(
        currency="USD",
        timezone="UTC",
        extract_time=None,
        repurchase_horizons_days=(7, 14, 28, 90),
        ltv_horizons_days=(90,),
        primary_horizon_days=90,
        snapshot_every_days=30,
        max_snapshots=12,
        min_history_days=60,
        max_malformed_share=0.01,
        tiers=TierSettings(("platinum", "gold", "silver", "bronze"), (0.05, 0.15, 0.30, 0.50)),
        sources={},
    )


def test_every_key_can_be_set() -> None:
    found = parsed("""
        currency = "VND"
        timezone = "Asia/Ho_Chi_Minh"
        extract_time = 2025-01-01T00:00:00+07:00
        repurchase_horizons_days = [7, 30]
        ltv_horizons_days = [30, 365]
        primary_horizon_days = 30
        snapshot_every_days = 7
        max_snapshots = 3
        min_history_days = 90
        max_malformed_share = 0
        [tiers]
        names = ["A", "B"]
        shares = [0.25, 0.75]
        [sources.orders]
        path = "sales/*.txt"
        delimiter = ";"
        encoding = "latin-1"
        filter = "kind = 'sale'"
        group_by = "invoice"
        [sources.orders.columns]
        amount = "sum(price)"
        [sources.events]
        database = "clicks.duckdb"
        query = "SELECT * FROM clicks"
        """)
    assert (found.currency, found.currency_digits, found.zone.key) == ("VND", 0, "Asia/Ho_Chi_Minh")
    assert found.extract_time is not None
    assert found.extract_time.astimezone(UTC) == datetime(2024, 12, 31, 17, tzinfo=UTC)
    assert (found.repurchase_horizons_days, found.ltv_horizons_days, found.primary_horizon_days) == (
        (7, 30),
        (30, 365),
        30,
    )
    assert (found.snapshot_every_days, found.max_snapshots, found.min_history_days) == (7, 3, 90)
    assert (found.max_malformed_share, found.tiers) == (0.0, TierSettings(("A", "B"), (0.25, 0.75)))
    assert found.sources == {
        "orders": SourceTable(
            path="sales/*.txt",
            delimiter=";",
            encoding="latin-1",
            filter="kind = 'sale'",
            group_by=("invoice",),
            columns={"amount": "sum(price)"},
        ),
        "events": SourceTable(database="clicks.duckdb", query="SELECT * FROM clicks"),
    }


@pytest.mark.parametrize(("currency", "digits"), [("USD", 2), ("VND", 0), ("KWD", 3), ("CLF", 4), ("EUR", 2)])
def test_the_minor_unit_follows_iso_4217(currency: str, digits: int) -> None:
    assert parsed(f'currency = "{currency}"').currency_digits == digits


def test_all_problems_are_listed_at_once() -> None:
    assert refusal("""
        currencey = "USD"
        currency = "dollars"
        max_snapshots = true
        [tiers]
        names = ["A", "A"]
        [sources.ordres]
        path = "x.csv"
        [sources.events]
        path = "y.csv"
        [sources.events.columns]
        typ = "kind"
        """) == (
        "tiercast.toml has 7 problems:\n"
        "  unknown key 'currencey'; did you mean 'currency'?\n"
        "  currency must be an ISO 4217 code such as USD or VND, found 'dollars'\n"
        "  max_snapshots must be a whole number, 1 to 200, found True\n"
        "  [tiers] names must be different texts, best tier first\n"
        "  [tiers] needs one share per name, adding up to 1; found 2 names, 4 shares adding up to 1\n"
        "  unknown key 'ordres' in [sources]; did you mean 'orders'?\n"
        "  unknown key 'typ' in [sources.events.columns]; did you mean 'type'?"
    )


WRONG = {
    "currency = 5": "currency must be an ISO 4217 code",
    "currency = ['USD']": "currency must be an ISO 4217 code",
    "currency = 'usd'": "currency must be an ISO 4217 code",
    "timezone = 'Mars/Base'": "timezone must be an IANA name",
    "timezone = 'localtime'": "timezone must be an IANA name",
    "timezone = 7": "timezone must be an IANA name",
    "extract_time = '2024-01-01'": "extract_time must be a TOML date-time with an offset",
    "extract_time = 2024-01-01": "extract_time must be a TOML date-time with an offset",
    "extract_time = 2024-01-01T00:00:00": "extract_time must be a TOML date-time with an offset",
    "extract_time = 9999-12-31T23:59:59Z": "extract_time must be a TOML date-time with an offset",
    "repurchase_horizons_days = []": "repurchase_horizons_days must be a list of increasing whole days",
    "repurchase_horizons_days = [90, 7]": "repurchase_horizons_days must be a list of increasing whole days",
    "repurchase_horizons_days = [7, '90']": "repurchase_horizons_days must be a list of increasing whole days",
    "repurchase_horizons_days = 90": "repurchase_horizons_days must be a list of increasing whole days",
    "ltv_horizons_days = [90, 90]": "ltv_horizons_days must be a list of increasing whole days",
    "ltv_horizons_days = [30]": "primary_horizon_days (90) must be one of ltv_horizons_days (30)",
    "repurchase_horizons_days = [7]": "primary_horizon_days (90) must be one of repurchase_horizons_days (7)",
    "primary_horizon_days = 0": "primary_horizon_days must be whole days, 1 to 3650",
    "primary_horizon_days = 90.0": "primary_horizon_days must be whole days, 1 to 3650",
    "snapshot_every_days = -1": "snapshot_every_days must be whole days, 1 to 3650",
    "max_snapshots = 201": "max_snapshots must be a whole number, 1 to 200",
    "min_history_days = 'long'": "min_history_days must be whole days, 1 to 3650",
    "max_malformed_share = 2": "max_malformed_share must be a share from 0 to 1",
    "max_malformed_share = nan": "max_malformed_share must be a share from 0 to 1",
    "max_malformed_share = true": "max_malformed_share must be a share from 0 to 1",
    "tiers = 5": "[tiers] must be a table of keys, found 5",
    "tiers.names = 'abcd'": "[tiers] takes lists",
    "tiers.names = [1, 2, 3, 4]": "[tiers] names must be different texts",
    "tiers.shares = [0.5, 0.5, 0, 0]": "[tiers] shares must be positive numbers",
    "tiers.shares = [0.5, 0.4]": "[tiers] needs one share per name, adding up to 1; found 4 names, 2 shares",
    "tiers.colours = []": "unknown key 'colours' in [tiers]; known: names, shares",
    "sources = 5": "[sources] must be a table of keys, found 5",
    "sources.orders = 5": "[sources.orders] must be a table of keys, found 5",
    "sources.orders.delimiter = ','": "[sources.orders] needs either 'path'",
    "sources.orders = {path = 'a', database = 'b', table = 't'}": "[sources.orders] needs either 'path'",
    "sources.orders = {database = 'b'}": "with a 'database' needs either 'table' or",
    "sources.orders = {database = 'b', table = 't', query = 'q'}": "with a 'database' needs either 'table' or",
    "sources.orders = {path = 'a', table = 't'}": "[sources.orders] with a 'path' takes no 'table'",
    "sources.orders = {database = 'b', table = 't', encoding = 'utf-8'}": "with a 'database' takes no 'encoding'",
    "sources.orders = {path = ''}": "'path' in [sources.orders] must be text, found ''",
    "sources.orders = {path = ['a']}": "'path' in [sources.orders] must be text, found ['a']",
    "sources.orders = {path = 'a', delimiter = ';;'}": "'delimiter' in [sources.orders] must be one character",
    "sources.orders = {path = 'a', delimiter = '\"'}": "'delimiter' in [sources.orders] must be one character",
    "sources.orders = {path = 'a', encoding = 'cp1252'}": "'encoding' in [sources.orders] must be one of utf-8, utf-16",
    "sources.orders = {path = 'a', group_by = 5}": "'group_by' in [sources.orders] must be a list of texts, found 5",
    "sources.orders = {path = 'a', group_by = [5]}": "'group_by' in [sources.orders] must be a list of texts",
    "sources.orders = {path = 'a', group_by = ['x']}": "has a 'group_by' without [sources.orders.columns]",
    "sources.orders = {path = 'a', columns = 5}": "[sources.orders.columns] must be a table of keys, found 5",
    "sources.orders = {path = 'a', columns = {amount = 5}}": "'amount' in [sources.orders.columns] must be text",
    "sources.orders = {path = 'a', columns = {amount = ''}}": "[sources.orders.columns] must be text, found ''",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_refused_with_what_was_wanted(text: str) -> None:
    message = refusal(text)
    assert WRONG[text] in message
    assert "has 1 problem:" in message


def test_an_alien_value_never_ends_in_another_error() -> None:
    aliens: list[Any] = [None, 5, -1, 1.5, float("nan"), True, "", "x", [], [[]], {}, {"a": 1}, datetime(2024, 1, 1)]
    keys = [
        *Settings.__dataclass_fields__,
        "sources.orders",
        "sources.orders.columns",
        "sources.orders.group_by",
        "tiers.names",
    ]
    tried = 0
    for key in keys:
        for alien in aliens:
            found: Any = alien
            for part in reversed(key.split(".")):
                found = {part: found}
            try:
                parse_settings(found, COLUMN_NAMES)
            except SettingsError:
                tried += 1
    print(f"{tried} of {len(keys) * len(aliens)} alien values refused")
    assert tried > len(keys) * len(aliens) / 2


def test_a_folder_without_a_file_has_the_defaults(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == Settings()


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageRefused, match=r"there is no settings file .*shop\.toml"):
        load_settings(tmp_path, tmp_path / "shop.toml")


def test_a_named_file_goes_before_that_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tiercast.toml").write_text('currency = "EUR"')
    (tmp_path / "other.toml").write_text('currency = "VND"')
    assert load_settings(tmp_path).currency == "EUR"
    assert load_settings(tmp_path, tmp_path / "other.toml").currency == "VND"


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "tiercast.toml").write_bytes(b'\xef\xbb\xbfcurrency = "EUR"')
    assert load_settings(tmp_path).currency == "EUR"


@pytest.mark.parametrize("content", [b"currency = ", b"\xff\xfe", b"[sources", b"\0"])
def test_what_is_not_toml_is_refused_by_the_file_s_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"shop\.toml is not valid TOML"):
        read_settings(tmp_path / "shop.toml", COLUMN_NAMES)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiercast.toml").mkdir()
    with pytest.raises(SettingsError, match=r"tiercast\.toml cannot be read: Is a directory"):
        load_settings(tmp_path)
