"""When to learn and to judge: no window leaves its place, and what is said to be enough is enough."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from features.errors import TooLittleData
from features.settings import Settings
from features.tables import days
from training import cutoffs
from training.cutoffs import (
    Split,
    cutoff_grid,
    days_needed,
    first_order,
    longest_supported,
    missing_for,
    require_split,
    snapshots_needed,
    split_by_time,
)

START = datetime(2020, 1, 1, 12)
MOMENT = timedelta(microseconds=1)


@pytest.fixture
def from_start(monkeypatch):
    """A shop whose first order was at START, for functions that ask for nothing else."""
    monkeypatch.setattr(cutoffs, "first_order", lambda tables, as_of: START if as_of > START else None)


def settings_at_random(random: np.random.Generator) -> Settings:
    horizon = int(random.integers(1, 200))
    return Settings(
        primary_horizon_days=horizon,
        snapshot_every_days=int(random.integers(1, 70)),
        max_snapshots=int(random.integers(1, 40)),
        min_history_days=int(random.integers(1, 120)),
    )


def split_at(settings: Settings, horizon_days: int, as_of: datetime) -> Split | None:
    return split_by_time(cutoff_grid(None, settings, as_of), horizon_days, as_of)


def test_every_training_window_ends_before_the_evaluation_and_that_by_the_end(from_start):
    random, seen = np.random.default_rng(1), 0
    for _ in range(1000):
        settings = settings_at_random(random)
        horizon, as_of = int(random.integers(1, 250)), START + timedelta(hours=int(random.integers(1, 30_000)))
        split = split_at(settings, horizon, as_of)
        if split is None:
            continue
        seen += 1
        assert max(split.training) + days(horizon) <= split.evaluation
        assert split.evaluation + days(horizon) <= as_of
        assert split.evaluation == max(split.mature)
        assert all(c + days(horizon) <= as_of for c in split.mature)
        assert set(split.training) < set(split.mature)
        assert list(split.mature) == sorted(split.mature)
    print(f"{seen} splits")
    assert seen > 200


def test_the_grid_is_evenly_spaced_recent_and_has_history_before_it(from_start):
    random, seen = np.random.default_rng(2), 0
    for _ in range(1000):
        settings, as_of = settings_at_random(random), START + timedelta(hours=int(random.integers(1, 30_000)))
        grid = cutoff_grid(None, settings, as_of)
        assert len(grid) <= settings.max_snapshots
        if not grid:
            assert as_of - days(settings.primary_horizon_days) < START + days(settings.min_history_days)
            continue
        seen += 1
        assert grid[-1] == as_of - days(settings.primary_horizon_days)
        assert {b - a for a, b in itertools.pairwise(grid)} <= {days(settings.snapshot_every_days)}
        assert grid[0] >= START + days(settings.min_history_days)
        one_more = grid[0] - days(settings.snapshot_every_days)
        assert len(grid) == settings.max_snapshots or one_more < START + days(settings.min_history_days)
    print(f"{seen} grids")
    assert seen > 500


def test_the_days_that_are_said_to_be_enough_are_and_a_moment_less_is_not(from_start):
    random, horizons_beyond = np.random.default_rng(3), 0
    for _ in range(2000):
        settings, horizon = settings_at_random(random), int(random.integers(1, 250))
        horizons_beyond += horizon > settings.primary_horizon_days
        enough = replace(settings, max_snapshots=snapshots_needed(horizon, settings))
        as_of = START + days(days_needed(horizon, settings))
        assert split_at(enough, horizon, as_of) is not None
        assert split_at(enough, horizon, as_of - MOMENT) is None
        one_less = replace(enough, max_snapshots=enough.max_snapshots - 1)
        assert split_at(one_less, horizon, as_of + days(5000)) is None
    print(f"2000 settings, {horizons_beyond} with a horizon beyond the primary one")
    assert horizons_beyond > 200


def test_the_refusal_tells_the_truth(from_start):
    random, refused = np.random.default_rng(4), 0
    for _ in range(1000):
        settings, as_of = settings_at_random(random), START + timedelta(hours=int(random.integers(1, 15_000)))
        try:
            require_split(None, settings, as_of)
        except TooLittleData as error:
            refused += 1
            text = str(error)
        else:
            continue
        needed = int(re.search(r"needs (\d+) days of orders", text)[1])
        snapshots = int(re.search(r"and max_snapshots = (\d+)", text)[1])
        way_out = replace(settings, max_snapshots=max(settings.max_snapshots, snapshots))
        assert require_split(None, way_out, START + days(needed))
        claim = re.search(r"up to (\d+) days would work", text)
        longest = int(claim[1]) if claim else 0
        assert bool(claim) != ("No horizon would work yet" in text)
        for horizon in {1, (1 + longest) // 2, longest} - {0}:
            shorter = replace(settings, primary_horizon_days=horizon)
            assert (split_at(shorter, horizon, as_of) is not None) == (horizon <= longest)
        longer = replace(settings, primary_horizon_days=longest + 1)
        assert split_at(longer, longest + 1, as_of) is None
    print(f"{refused} refusals")
    assert refused > 200


def test_what_a_horizon_lacks_is_exactly_that(from_start):
    random, lacking = np.random.default_rng(5), 0
    for _ in range(1000):
        settings, as_of = settings_at_random(random), START + timedelta(hours=int(random.integers(1, 15_000)))
        horizon = int(random.integers(1, 250))
        if split_at(settings, horizon, as_of) is not None:
            continue
        lacking += 1
        text = missing_for(None, settings, as_of, horizon)
        more, snapshots = re.search(r"(\d+) more days", text), re.search(r"max_snapshots = (\d+)", text)
        cured = replace(settings, max_snapshots=int(snapshots[1])) if snapshots else settings
        assert split_at(cured, horizon, as_of + days(int(more[1]) if more else 0)) is not None
        if more:
            assert split_at(cured, horizon, as_of + days(int(more[1]) - 1)) is None
    print(f"{lacking} horizons without a split")
    assert lacking > 200


def test_the_refusal_names_the_numbers(from_start):
    with pytest.raises(TooLittleData) as refused:
        require_split(None, Settings(), START + days(200))
    assert str(refused.value) == (
        "a 90-day horizon needs 240 days of orders before the cutoff (60 of history, one window to learn from, one to "
        "judge by) and max_snapshots = 4.\n"
        "  Orders start 2020-01-01 12:00:00, 200 days before 2020-07-19 12:00:00, and max_snapshots is 12. "
        "A horizon of up to 60 days would work: set primary_horizon_days, and list it in repurchase_horizons_days "
        "and ltv_horizons_days."
    )


def test_the_largest_settings_do_not_leave_the_calendar(from_start):
    huge = Settings(primary_horizon_days=3650, snapshot_every_days=3650, max_snapshots=200, min_history_days=3650)
    assert cutoff_grid(None, huge, START + days(1)) == ()
    assert longest_supported(20_000, Settings(max_snapshots=200)) == 3650


def test_an_order_that_became_known_later_does_not_move_the_cutoffs(shop_of):
    late = {"customer_id": "b", "time": "2023-01-01", "known_time": "2024-06-01", "amount": 5}
    with shop_of([("a", "2024-01-01", 5), ("a", "2023-06-01", -5), late]) as tables:
        assert first_order(tables, datetime(2024, 5, 1)) == datetime(2024, 1, 1)
        assert first_order(tables, datetime(2024, 6, 1)) == datetime(2023, 1, 1)
        assert first_order(tables, datetime(2023, 12, 1)) is None
        assert cutoff_grid(tables, Settings(), datetime(2023, 12, 1)) == ()
        with pytest.raises(TooLittleData, match="no paid order was known at 2023-12-01"):
            require_split(tables, Settings(), datetime(2023, 12, 1))
