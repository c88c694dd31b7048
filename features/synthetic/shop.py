"""A simulated shop with a known truth: the contract's six tables as Parquet files, and an oracle's answers.

The world is in `features.synthetic.world`, its rows in `features.synthetic.rows` and the oracle in
`features.synthetic.truth`; here the files are written, a block of customers at a time. Every block has its
own random stream, so that the files depend on the arguments and the library versions alone, and memory does
not grow with the number of customers.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import Refused
from features.synthetic.rows import SCHEMAS, Scene, tables_of
from features.synthetic.world import START, Calendar, draw_block, make_calendar

MONTHS_MAX = 120
# What the digits of the ids can tell apart.
CUSTOMERS_MAX = 10_000_000
BLOCK_CUSTOMERS = 20_000

FILES = tuple(f"{table}.parquet" for table in SCHEMAS)


@dataclass(frozen=True)
class SimulatedShop:
    """What was written: the folder, the half-open period of the data (UTC), and the rows of each file."""

    folder: Path
    start: np.datetime64
    end: np.datetime64
    rows: Mapping[str, int]


def simulate(
    folder: Path, customers: int, months: int, seed: int, progress: Callable[[int], None] | None = None
) -> SimulatedShop:
    """Writes the six tables and `truth.parquet` of a shop that opens on 2023-01-01, `months` months of it.

    The truth is that of `features.synthetic.truth`, at the end of the data, for every customer with a paid
    order: `p_alive`, `p_repurchase_{h}d`, `value_{h}d` (currency, net of refunds) and the customer's latents;
    `arm` is "none" for customers without consent, who are in no campaign. `progress` gets the number of
    customers written so far. The files appear all at once at the end. Raises Refused for numbers out of
    range and when the folder holds one of the files already.
    """
    _require(folder, customers, months, seed)
    calendar = make_calendar(months)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch:
        rows = _write(scratch, calendar, customers, seed, progress)
        _move(scratch, folder)
    return SimulatedShop(folder, START, START + calendar.days, rows)


def block_streams(seed: int, block: int) -> tuple[np.random.Generator, np.random.Generator]:
    """The random streams of the block with this number: one for its world, one for its rows."""
    world, rows = np.random.SeedSequence(seed, spawn_key=(block,)).spawn(2)
    return np.random.default_rng(world), np.random.default_rng(rows)


def _require(folder: Path, customers: int, months: int, seed: int) -> None:
    if not 1 <= customers <= CUSTOMERS_MAX:
        raise Refused(f"a shop has 1 to {CUSTOMERS_MAX:,} customers; --customers is {customers}")
    if not 1 <= months <= MONTHS_MAX:
        raise Refused(f"a shop is simulated for 1 to {MONTHS_MAX} months; --months is {months}")
    if seed < 0:
        raise Refused(f"--seed is {seed}; give a whole number from 0")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is a file; give a folder that is empty or does not exist yet")
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise Refused(f"{folder} already holds {', '.join(there)}; give another folder, or delete them first")


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-partial-", dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(scratch: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    moved: list[Path] = []
    try:
        for name in FILES:
            (scratch / name).replace(folder / name)
            moved.append(folder / name)
    except OSError:
        for path in moved:
            path.unlink()
        raise


def _write(
    folder: Path, calendar: Calendar, customers: int, seed: int, progress: Callable[[int], None] | None
) -> dict[str, int]:
    counted = dict.fromkeys(SCHEMAS, 0) | {"sessions": 0}
    with contextlib.ExitStack() as stack:
        writers = {table: stack.enter_context(_writer(folder, table)) for table in SCHEMAS}
        for number, first in enumerate(range(0, customers, BLOCK_CUSTOMERS)):
            numbers = np.arange(first, min(first + BLOCK_CUSTOMERS, customers))
            world, rows = block_streams(seed, number)
            scene = Scene(calendar, draw_block(calendar, numbers, world), dict(counted), rows)
            for table, made in tables_of(scene).items():
                writers[table].write_table(made)
                counted[table] += made.num_rows
            counted["sessions"] += len(numbers) + len(scene.block.visits.time)
            if progress:
                progress(int(numbers[-1]) + 1)
    return {table: counted[table] for table in SCHEMAS}


def _writer(folder: Path, table: str) -> pq.ParquetWriter:
    # Without the stored Arrow schema, readers see the contract's plain strings instead of dictionaries.
    schema = SCHEMAS[table]
    repeating = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    return pq.ParquetWriter(
        folder / f"{table}.parquet", schema, compression="zstd", use_dictionary=repeating, store_schema=False
    )
