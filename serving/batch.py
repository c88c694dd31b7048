"""Scores for every customer of a shop, and the files they are written to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import UsageRefused
from features.snapshot import build_snapshot
from features.tables import Tables
from serving.score_store import SCORES_FILE
from training.bundle import Release, write_whole

FILE_ENDINGS = (".parquet", ".csv")
_TEXTS = ("customer_id", "tier", "model_version", "basis")


def score_customers(
    tables: Tables, release: Release, as_of: datetime, progress: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """orders (and the tables that the release was trained with) -> one row of scores per customer, sorted by customer.

    Columns are `release.columns`; customers are those with a paid order before `as_of` (UTC). `progress` is told each
    step as it begins. Raises SpecMismatch for tables that do not fit the release, CutoffOutsideData for a moment that
    the data do not cover.
    """
    release.bundle.spec.require_tables(tables)
    tables.require_inside(as_of)
    progress("features")
    snapshot = build_snapshot(tables, [as_of], release.bundle.spec)
    progress("scores")
    return release.score(snapshot)


def write_scores(scores: pd.DataFrame, out: Path) -> None:
    """Writes scores to a `.parquet` or `.csv` file, whole or not at all; raises UsageRefused for another ending.

    `cutoff` is a UTC timestamp in Parquet and ISO 8601 text in CSV; floats read back equal from both.
    """
    require_writable(out)
    table = _as_arrow(scores)
    if out.suffix == ".parquet":
        write_whole(out, lambda path: pq.write_table(table, path))
    else:
        cutoffs = pa.array([moment.isoformat() + "Z" for moment in scores["cutoff"]], pa.string())
        written = table.set_column(table.column_names.index("cutoff"), "cutoff", cutoffs)
        write_whole(out, lambda path: pyarrow.csv.write_csv(written, path))


def publish_scores(scores: pd.DataFrame, workspace: Path) -> bool:
    """Makes these the scores that the service of this workspace looks customers up in; says whether it did.

    Scores for a moment before that of the stored ones, by the same release, are a look back: the stored ones stay.
    """
    path = workspace / SCORES_FILE
    if _is_look_back(scores, path):
        return False
    write_scores(scores, path)
    return True


def _is_look_back(scores: pd.DataFrame, path: Path) -> bool:
    if scores.empty or not path.exists():
        return False
    try:
        batches = pq.ParquetFile(path).iter_batches(1, columns=["cutoff", "model_version"])
        stored = [row for batch in itertools.islice(batches, 1) for row in batch.to_pylist()]
    except (pa.ArrowException, OSError):
        return False
    first = scores.iloc[0]
    return (
        bool(stored)
        and stored[0]["model_version"] == first["model_version"]
        and (stored[0]["cutoff"].replace(tzinfo=None) > first["cutoff"].to_pydatetime())
    )


def require_writable(out: Path) -> None:
    """Raises UsageRefused where scores could not be written to `out`: another ending, or a folder."""
    if out.suffix not in FILE_ENDINGS:
        raise UsageRefused(f"scores are written as {' or '.join(FILE_ENDINGS)}, not as {out.name!r}")
    if out.is_dir():
        raise UsageRefused(f"{out} is a folder; name a file in it")


def _as_arrow(scores: pd.DataFrame) -> pa.Table:
    types = {column: pa.string() for column in _TEXTS} | {"cutoff": pa.timestamp("us", tz="UTC")}
    schema = pa.schema([(column, types.get(column, pa.float64())) for column in scores.columns])
    return pa.Table.from_pandas(
        scores.assign(cutoff=scores["cutoff"].dt.tz_localize("UTC")), schema, preserve_index=False
    )
