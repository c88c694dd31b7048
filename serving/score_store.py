"""The scores that a workspace answers from: one file, replaced whole, held in memory for look-ups by customer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import Refused

SCORES_FILE = "scores.parquet"
_TEXTS = ("cutoff", "tier", "model_version", "basis")


class ScoresUnusable(Refused):
    """A file of scores that is missing, or that the service cannot answer from."""


@dataclass(frozen=True)
class StoredScores:
    """A table of scores by customer, all of one model version and one cutoff.

    `positions` maps a customer to a row, `numbers` a score column to its values, `texts` a text column to
    (codes, words): a few words repeated over a million rows.
    """

    columns: tuple[str, ...]
    positions: Mapping[str, int]
    numbers: Mapping[str, np.ndarray]
    texts: Mapping[str, tuple[np.ndarray, tuple[str, ...]]]

    @property
    def model_version(self) -> str | None:
        """The version that made the scores; None for a table without rows."""
        return next(iter(self.texts["model_version"][1]), None)

    @property
    def cutoff(self) -> str | None:
        """The moment they were made for, ISO 8601 in UTC; None for a table without rows."""
        return next(iter(self.texts["cutoff"][1]), None)

    def describe(self) -> dict[str, Any]:
        """What is held, without whom."""
        return {"model_version": self.model_version, "cutoff": self.cutoff, "customers": len(self.positions)}

    def look_up(self, customer_ids: Sequence[str]) -> list[dict[str, Any]]:
        """One answer row per id, in their order; an id without scores has status `unknown` and no values."""
        return [self._row(customer_id) for customer_id in customer_ids]

    def _row(self, customer_id: str) -> dict[str, Any]:
        position = self.positions.get(customer_id)
        if position is None:
            return empty_row(self.columns, customer_id, "unknown", self.cutoff, self.model_version)
        row: dict[str, Any] = {"customer_id": customer_id, "status": "ok"}
        for column in self.columns[1:]:
            if column in self.numbers:
                row[column] = float(self.numbers[column][position])
            else:
                codes, words = self.texts[column]
                row[column] = words[codes[position]]
        return row


def empty_row(
    columns: Sequence[str], customer_id: str, status: str, cutoff: str | None, model_version: str | None
) -> dict[str, Any]:
    """The answer for a customer who has no scores: every column is there, and says so."""
    row = {"customer_id": customer_id, "status": status, **dict.fromkeys(columns[1:])}
    return row | {"cutoff": cutoff, "model_version": model_version}


def read_scores(path: Path) -> StoredScores:
    """The scores in a Parquet file. Raises ScoresUnusable when it is not what `publish_scores` writes."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ScoresUnusable(f"no {path.name} in the workspace; make it with `tiercast score`") from None
    except (pa.ArrowException, OSError):
        raise ScoresUnusable(f"{path.name} is not a whole Parquet file; make it again with `tiercast score`") from None
    missing = [column for column in ("customer_id", *_TEXTS) if column not in table.column_names]
    if missing:
        raise ScoresUnusable(f"{path.name} has no column {', '.join(missing)}; make it again with `tiercast score`")
    scores = _indexed(table, path.name)
    del table
    pa.default_memory_pool().release_unused()  # the table itself is not needed any more
    return scores


def _indexed(table: pa.Table, name: str) -> StoredScores:
    columns = tuple(table.column_names)
    positions = {customer: row for row, customer in enumerate(table["customer_id"].to_pylist())}
    texts = {column: _coded(table[column]) for column in _TEXTS}
    numbers = {
        column: table[column].to_numpy().astype(np.float64)
        for column in columns
        if column not in ("customer_id", *_TEXTS)
    }
    several = [column for column in ("cutoff", "model_version") if len(texts[column][1]) > 1]
    unfit = [column for column, values in numbers.items() if not np.isfinite(values).all()]
    unfit += [column for column in ("customer_id", *_TEXTS) if table[column].null_count]
    if len(positions) < table.num_rows or several or unfit:
        raise ScoresUnusable(
            f"{name} does not hold one complete row per customer of one version and cutoff "
            f"({table.num_rows:,} rows, {len(positions):,} customers, "
            f"several values of: {', '.join(several) or 'none'}, missing values in: {', '.join(unfit) or 'none'})"
        )
    return StoredScores(columns, positions, numbers, texts)


def _coded(values: pa.ChunkedArray) -> tuple[np.ndarray, tuple[str, ...]]:
    coded = values.combine_chunks().dictionary_encode()
    words = tuple(
        show_moment(word) if isinstance(word, datetime) else str(word) for word in coded.dictionary.to_pylist()
    )
    codes = coded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return codes.astype(np.min_scalar_type(len(words))), words


def show_moment(moment: datetime) -> str:
    """A moment as answers write it: ISO 8601 in UTC, ending in Z; without tzinfo it is taken as UTC."""
    utc = moment.astimezone(UTC) if moment.tzinfo else moment
    return utc.replace(tzinfo=None).isoformat() + "Z"
