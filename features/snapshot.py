"""`build_snapshot`: every customer's features at every cutoff; the one feature code of training, batch and service."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd

from features import engagement, rfm
from features.errors import SpecMismatch
from features.naming import Feature
from features.tables import CONTRACT, History, Tables, known_at, require_utc

KEYS = ["customer_id", "cutoff"]
_IBIS_TYPE = {
    "id": "string",
    "text": "string",
    "time": "timestamp(6)",
    "date": "date",
    "money": "int64",
    "number": "float64",
}


@dataclass(frozen=True)
class FeatureSpec:
    """What a snapshot holds, learned at training and frozen: all columns are float64, missing is NaN.

    `tables` are the tables that the shop had, `event_types` the vocabulary of the engagement family,
    `names` the features in order.
    """

    tables: tuple[str, ...]
    event_types: tuple[str, ...]
    currency: str
    names: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything above; equal fingerprints mean equal features."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> FeatureSpec:
        return cls(
            tables=tuple(found["tables"]),
            event_types=tuple(found["event_types"]),
            currency=found["currency"],
            names=tuple(found["names"]),
        )

    def require_tables(self, tables: Tables) -> None:
        """Raises SpecMismatch when a table that the features need is not there, or the currency differs."""
        missing = sorted(set(self.tables) - tables.present)
        if missing:
            raise SpecMismatch(
                f"the model was trained with {', '.join(missing)}, which these data do not have; "
                "add the table or train without it"
            )
        if tables.currency != self.currency:
            raise SpecMismatch(
                f"the model was trained in {self.currency}, these data are in {tables.currency}; "
                "set currency in tiercast.toml or train again"
            )


@dataclass(frozen=True)
class Snapshot:
    """One row per (customer_id, cutoff), sorted by cutoff and customer, with the features of `spec`."""

    frame: pd.DataFrame
    spec: FeatureSpec

    def matrix(self) -> np.ndarray:
        """The features as float64, shape (rows, len(spec.names)), columns in the order of the spec."""
        return self.frame[list(self.spec.names)].to_numpy(dtype=np.float64)

    def at(self, cutoff: datetime) -> Snapshot:
        """The rows of one cutoff."""
        return Snapshot(self.frame[self.frame["cutoff"] == cutoff].reset_index(drop=True), self.spec)


def learn_spec(tables: Tables, cutoff: datetime) -> FeatureSpec:
    """The FeatureSpec of this shop, its vocabularies from what was known at `cutoff`."""
    history = tables.before(cutoff)
    used = tuple(sorted(name for name in {*rfm.TABLES, *engagement.TABLES} if _has_rows(history.tables[name])))
    event_types = engagement.learn_event_types(history) if "events" in used else ()
    names = tuple(feature.name for feature in list_features(used, event_types))
    return FeatureSpec(used, event_types, tables.currency, names)


def _has_rows(table: ir.Table) -> bool:
    return bool(table.limit(1).count().to_pyarrow().as_py())


def list_features(tables: Iterable[str], event_types: tuple[str, ...]) -> tuple[Feature, ...]:
    """Every feature, in order, that a shop with these tables and event types gets."""
    history = known_at(_CUTOFF, _unbound_tables(), currency_digits=2)
    return _features(history, frozenset(tables), event_types)[1]


def build_snapshot(
    tables: Tables,
    cutoffs: Iterable[datetime],
    spec: FeatureSpec,
    progress: Callable[[datetime], None] = lambda _: None,
) -> Snapshot:
    """Features of every customer with a paid order before the cutoff, at each of `cutoffs` (UTC).

    A row depends on its customer's rows before its cutoff and on nothing else: not on other customers, the other
    cutoffs, the order of the rows, or the number of threads. Without such a customer there are no rows. Raises
    SpecMismatch when `spec` names a feature that is not made here.
    """
    frames = []
    for cutoff in sorted(set(cutoffs)):
        frames.append(_at(tables, cutoff, spec))
        progress(cutoff)
    return Snapshot(pd.concat(frames, ignore_index=True) if frames else _without_rows(spec), spec)


def _at(tables: Tables, cutoff: datetime, spec: FeatureSpec) -> pd.DataFrame:
    require_utc(cutoff)
    engine = tables.tables["orders"].get_backend().con
    frame: pd.DataFrame = (
        engine.execute(_compiled(spec, tables.currency_digits), {"cutoff": cutoff}).to_arrow_table().to_pandas()
    )
    frame.insert(1, "cutoff", pd.Series([cutoff] * len(frame), dtype="datetime64[us]"))
    return frame.astype(_dtypes(spec))


_CUTOFF = ibis.param("timestamp")
# Ibis writes the values of parameters into its SQL; this one is written to be found and made DuckDB's $cutoff.
_PLACE = datetime(2000, 1, 1, 0, 0, 0, 123457)
_PLACE_SQL = "MAKE_TIMESTAMP(2000, 1, 1, 0, 0, 0.123457)"


@functools.lru_cache(maxsize=32)
def _compiled(spec: FeatureSpec, currency_digits: int) -> str:
    """DuckDB's SQL of a snapshot at `$cutoff`: compiled once, as that takes 0.4 s.

    Raises SpecMismatch when `spec` names a feature that is not made here.
    """
    history = known_at(_CUTOFF, _unbound_tables(), currency_digits)
    expression, _ = _features(history, frozenset(spec.tables), spec.event_types)
    unknown = [name for name in spec.names if name not in expression.columns]
    if unknown:
        count = f"{len(unknown)} feature" + ("s" if len(unknown) > 1 else "")
        raise SpecMismatch(
            f"the model was trained on {count} that this version does not make (first: {unknown[0]}); train again"
        )
    ordered = expression.select("customer_id", *spec.names).order_by("customer_id")
    sql = str(ibis.to_sql(ordered, dialect="duckdb", pretty=False, params={_CUTOFF: _PLACE}))
    if _PLACE_SQL not in sql:
        raise RuntimeError(
            "this version of Ibis writes timestamps in another way; the cutoff cannot be made a parameter"
        )
    return sql.replace(_PLACE_SQL, "$cutoff")


def _unbound_tables() -> dict[str, ir.Table]:
    """The contract's tables as names and types, bound to no engine."""
    return {
        name: ibis.table({column.name: _IBIS_TYPE[column.kind] for column in columns}, name=name)
        for name, columns in CONTRACT.items()
    }


def _without_rows(spec: FeatureSpec) -> pd.DataFrame:
    return pd.DataFrame(columns=list(_dtypes(spec))).astype(_dtypes(spec))


def _dtypes(spec: FeatureSpec) -> dict[str, str]:
    return {"customer_id": "str", "cutoff": "datetime64[us]"} | dict.fromkeys(spec.names, "float64")


def _features(
    history: History, tables: frozenset[str], event_types: tuple[str, ...]
) -> tuple[ir.Table, tuple[Feature, ...]]:
    """The buyers of the RFM block with every other family's columns beside them."""
    snapshot, features = rfm.block(history)
    if "events" in tables and event_types:
        snapshot, features = _beside(snapshot, features, engagement.events_block(history, event_types))
    if "exposures" in tables:
        snapshot, features = _beside(snapshot, features, engagement.exposures_block(history))
    snapshot, rates = engagement.add_rates(snapshot)
    return snapshot, features + rates


def _beside(
    snapshot: ir.Table, features: tuple[Feature, ...], block: tuple[ir.Table, tuple[Feature, ...]]
) -> tuple[ir.Table, tuple[Feature, ...]]:
    """`block` joined to the snapshot; a customer it does not know has counts of 0 and is missing otherwise."""
    table, added = block
    joined = snapshot.left_join(table, "customer_id").drop("customer_id_right")
    counts = {f.name: 0.0 for f in added if f.statistic == "count"}
    return joined.fill_null(counts) if counts else joined, features + added
