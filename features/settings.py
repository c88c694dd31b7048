"""What a shop says about itself in `tiercast.toml`: every key has a default, unknown keys are refused."""

from __future__ import annotations

import difflib
import tomllib
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from features.errors import SettingsError

FILE_NAME = "tiercast.toml"

# ISO 4217, active codes; the minor unit is two digits unless listed in MINOR_DIGITS.
_ACTIVE_CODES = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLF CLP CNY
    COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS
    INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP
    MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR
    SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND
    VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG"""
_WITHOUT_MINOR_UNIT = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF"
_IN_THOUSANDTHS = "BHD IQD JOD KWD LYD OMR TND"
CURRENCIES = frozenset(_ACTIVE_CODES.split())
MINOR_DIGITS = dict.fromkeys(_WITHOUT_MINOR_UNIT.split(), 0) | dict.fromkeys(_IN_THOUSANDTHS.split(), 3) | {"CLF": 4}
# What the engine reads without an extension.
ENCODINGS = ("utf-8", "utf-16", "latin-1")


@dataclass(frozen=True)
class SourceTable:
    """Where one contract table comes from, and how its columns are made there.

    `path` is a file or glob in the shop's folder; `database` is a DuckDB file or a PostgreSQL address, read
    through `table` or `query`. `columns` maps contract columns to SQL expressions over the foreign ones; without
    it, columns are taken by their contract names. `filter` is an SQL condition on the foreign rows; with `group_by`
    the expressions are aggregates. `delimiter` is one character or "whitespace"; default: by the file's ending.
    """

    path: str | None = None
    database: str | None = None
    table: str | None = None
    query: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    filter: str | None = None
    group_by: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TierSettings:
    """Ordered tier names, best first, and the share of customers that each holds when the policy is fitted."""

    names: tuple[str, ...] = ("platinum", "gold", "silver", "bronze")
    shares: tuple[float, ...] = (0.05, 0.15, 0.30, 0.50)


@dataclass(frozen=True)
class Settings:
    """The top-level keys of `tiercast.toml`.

    `timezone` says what a time without an offset means, and what midnight is; inside, everything is UTC.
    `extract_time` is when the data left the shop (default: now); rows after it are quarantined.
    `max_malformed_share` is the share of unreadable values above which a column is refused as misread.
    """

    currency: str = "USD"
    timezone: str = "UTC"
    extract_time: datetime | None = None
    repurchase_horizons_days: tuple[int, ...] = (7, 14, 28, 90)
    ltv_horizons_days: tuple[int, ...] = (90,)
    primary_horizon_days: int = 90
    snapshot_every_days: int = 30
    max_snapshots: int = 12
    min_history_days: int = 60
    max_malformed_share: float = 0.01
    tiers: TierSettings = field(default_factory=TierSettings)
    sources: Mapping[str, SourceTable] = field(default_factory=dict)

    @property
    def currency_digits(self) -> int:
        """Digits after the point of the currency's minor unit: 2 for USD, 0 for VND."""
        return MINOR_DIGITS.get(self.currency, 2)

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        """The shop's time zone."""
        return zoneinfo.ZoneInfo(self.timezone)


def read_settings(path: Path, table_columns: Mapping[str, tuple[str, ...]]) -> Settings:
    """Settings of the file at `path`; all defaults where there is none.

    `table_columns` is the contract: table name -> column names that `[sources.*]` may fill.
    Raises SettingsError naming every problem of the file.
    """
    if not path.exists():
        return Settings()
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read: {error.strerror}") from None
    return parse_settings(found, table_columns, path.name)


def parse_settings(
    found: Mapping[str, Any], table_columns: Mapping[str, tuple[str, ...]], name: str = FILE_NAME
) -> Settings:
    """Settings from the parsed TOML `found`; raises SettingsError naming every problem."""
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in _known(found, [f.name for f in fields(Settings)], "", problems).items():
        if key == "sources":
            values[key] = _parse_sources(value, table_columns, problems)
        elif key == "tiers":
            values[key] = _parse_tiers(value, problems)
        else:
            values[key] = _checked(key, value, _RULES[key], problems)
    if not problems:
        settings = Settings(**values)
        problems += _cross_checks(settings)
    if problems:
        count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
        raise SettingsError(f"{name} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))
    return settings


def _known(found: Any, allowed: list[str], where: str, problems: list[str]) -> dict[str, Any]:
    """The entries of `found` whose keys are allowed; the others are added to `problems` with a suggestion."""
    if not isinstance(found, Mapping):
        problems.append(f"[{where}] must be a table of keys, found {found!r}")
        return {}
    for key in found:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(allowed)}"
            problems.append(f"unknown key {key!r}{f' in [{where}]' if where else ''}; {hint}")
    return {key: value for key, value in found.items() if key in allowed}


def _parse_sources(
    found: Any, table_columns: Mapping[str, tuple[str, ...]], problems: list[str]
) -> dict[str, SourceTable]:
    sources = {}
    for table, keys in _known(found, list(table_columns), "sources", problems).items():
        where = f"sources.{table}"
        count = len(problems)
        entry = _known(keys, [f.name for f in fields(SourceTable)], where, problems)
        entry["columns"] = _known(entry.get("columns", {}), list(table_columns[table]), f"{where}.columns", problems)
        entry["group_by"] = _as_tuple(entry.get("group_by", ()))
        problems += _source_problems(where, entry) if isinstance(keys, Mapping) else []
        if len(problems) == count:
            sources[table] = SourceTable(**entry)
    return sources


def _as_tuple(found: Any) -> Any:
    """A lone text or a list as a tuple; anything else as it is, for the checks to refuse."""
    return (found,) if isinstance(found, str) else tuple(found) if isinstance(found, list) else found


def _source_problems(where: str, entry: Mapping[str, Any]) -> list[str]:
    texts = {key: value for key, value in entry.items() if key not in ("group_by", "columns")}
    problems = [
        f"{key!r} in [{place}] must be text, found {value!r}"
        for place, group in ((where, texts), (f"{where}.columns", entry["columns"]))
        for key, value in group.items()
        if not _is_text(value)
    ]
    if not isinstance(entry["group_by"], tuple) or not all(map(_is_text, entry["group_by"])):
        problems.append(f"'group_by' in [{where}] must be a list of texts, found {entry['group_by']!r}")
    elif entry["group_by"] and not entry["columns"]:
        problems.append(f"[{where}] has a 'group_by' without [{where}.columns] that says how each group is summed up")
    return problems + _place_problems(where, entry) + _format_problems(where, entry)


def _place_problems(where: str, entry: Mapping[str, Any]) -> list[str]:
    places = {"path", "database"} & entry.keys()
    if len(places) != 1:
        return [f"[{where}] needs either 'path' (a file) or 'database' (a DuckDB file or postgresql://...)"]
    place = places.pop()
    foreign = ("table", "query") if place == "path" else ("delimiter", "encoding")
    problems = [f"[{where}] with a {place!r} takes no {key!r}" for key in foreign if key in entry]
    if place == "database" and len({"table", "query"} & entry.keys()) != 1:
        problems.append(f"[{where}] with a 'database' needs either 'table' or 'query'")
    return problems


def _format_problems(where: str, entry: Mapping[str, Any]) -> list[str]:
    problems = []
    delimiter, encoding = entry.get("delimiter", ","), entry.get("encoding", "utf-8")
    if _is_text(delimiter) and delimiter != "whitespace" and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        problems.append(f"'delimiter' in [{where}] must be one character or 'whitespace', found {delimiter!r}")
    if _is_text(encoding) and encoding not in ENCODINGS:
        problems.append(f"'encoding' in [{where}] must be one of {', '.join(ENCODINGS)}, found {encoding!r}")
    return problems


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _parse_tiers(found: Any, problems: list[str]) -> TierSettings:
    entry = _known(found, ["names", "shares"], "tiers", problems)
    if not all(isinstance(value, list) for value in entry.values()):
        problems.append("[tiers] takes lists: names = [...], shares = [...]")
        return TierSettings()
    tiers = TierSettings(**{key: tuple(value) for key, value in entry.items()})
    if not all(map(_is_text, tiers.names)) or len(set(tiers.names)) < len(tiers.names):
        problems.append("[tiers] names must be different texts, best tier first")
    if not all(_is_number(share) and share > 0 for share in tiers.shares):
        problems.append("[tiers] shares must be positive numbers")
    elif len(tiers.names) != len(tiers.shares) or abs(sum(tiers.shares) - 1) > 1e-9:
        problems.append(
            f"[tiers] needs one share per name, adding up to 1; found {len(tiers.names)} names, "
            f"{len(tiers.shares)} shares adding up to {sum(tiers.shares):g}"
        )
    return tiers


Rule = tuple[str, Callable[[Any], bool], Callable[[Any], Any]]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_horizon(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= 3650


def _is_timezone(value: Any) -> bool:
    # "localtime" would make the same files mean something else on another machine.
    return isinstance(value, str) and value in zoneinfo.available_timezones() - {"localtime"}


def _is_moment(value: Any) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None and 1970 < value.year < 3000


_HORIZONS: Rule = (
    "a list of increasing whole days, each 1 to 3650",
    lambda v: isinstance(v, list) and bool(v) and all(map(_is_horizon, v)) and v == sorted(set(v)),
    tuple,
)
_RULES: dict[str, Rule] = {
    "currency": ("an ISO 4217 code such as USD or VND", lambda v: isinstance(v, str) and v in CURRENCIES, str),
    "timezone": ("an IANA name such as Asia/Ho_Chi_Minh", _is_timezone, str),
    "extract_time": ("a TOML date-time with an offset, from 1971 to 2999", _is_moment, lambda v: v),
    "repurchase_horizons_days": _HORIZONS,
    "ltv_horizons_days": _HORIZONS,
    "primary_horizon_days": ("whole days, 1 to 3650", _is_horizon, int),
    "snapshot_every_days": ("whole days, 1 to 3650", _is_horizon, int),
    "max_snapshots": ("a whole number, 1 to 200", lambda v: _is_whole(v) and 1 <= v <= 200, int),
    "min_history_days": ("whole days, 1 to 3650", _is_horizon, int),
    "max_malformed_share": ("a share from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1, float),
}


def _checked(key: str, value: Any, rule: Rule, problems: list[str]) -> Any:
    wanted, is_fine, convert = rule
    if not is_fine(value):
        problems.append(f"{key} must be {wanted}, found {value!r}")
        return None
    return convert(value)


def _cross_checks(settings: Settings) -> list[str]:
    primary = settings.primary_horizon_days
    return [
        f"primary_horizon_days ({primary}) must be one of {key} ({', '.join(map(str, getattr(settings, key)))})"
        for key in ("repurchase_horizons_days", "ltv_horizons_days")
        if primary not in getattr(settings, key)
    ]
