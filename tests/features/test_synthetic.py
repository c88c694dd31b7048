"""The simulated shop: its rows keep the contract, its planted effects are visible, and its truth is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.errors import Refused
from features.synthetic import shop as shop_module
from features.synthetic import truth
from features.synthetic.shop import FILES, SimulatedShop, block_streams, simulate
from features.synthetic.truth import HORIZONS, Truth, truth_at
from features.synthetic.world import Block, Calendar, draw_block, make_calendar
from features.tables import COLUMN_NAMES, ROW_ID

CUSTOMERS, MONTHS, SEED = 3000, 24, 11
Z_MAX = 4.0


def _say(text: str) -> None:
    print(text)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatedShop]:
    """A shop of three blocks, so that what holds within a block must hold across them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shop_module, "BLOCK_CUSTOMERS", 1000)
        yield simulate(tmp_path_factory.mktemp("shop") / "small", CUSTOMERS, MONTHS, SEED)


@pytest.fixture(scope="module")
def tables(shop: SimulatedShop) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(shop.folder / f"{name}.parquet") for name in (*COLUMN_NAMES, "truth")}


@dataclass(frozen=True)
class World:
    """Blocks of a shop that goes on for a year after the latest cutoff at which its truth is tested."""

    calendar: Calendar
    blocks: tuple[Block, ...]


@pytest.fixture(scope="module")
def world() -> World:
    calendar = make_calendar(30)
    blocks = [draw_block(calendar, np.arange(20_000), block_streams(SEED, number)[0]) for number in range(3)]
    return World(calendar, tuple(blocks))


def test_tables_have_the_columns_of_the_contract_and_plain_types(shop: SimulatedShop) -> None:
    for name, columns in COLUMN_NAMES.items():
        schema = pq.read_schema(shop.folder / f"{name}.parquet")
        assert set(schema.names) == set(columns)
        assert {str(schema.field(column).type) for column in ("time", "known_time")} == {"timestamp[us]"}
        assert all(str(schema.field(c).type) == "string" for c in schema.names if c.endswith("_id"))


def test_row_counts_are_those_reported(shop: SimulatedShop, tables: dict[str, pd.DataFrame]) -> None:
    assert {name: len(table) for name, table in tables.items()} == dict(shop.rows)
    assert shop.rows["customers"] == CUSTOMERS


def test_ids_are_unique(tables: dict[str, pd.DataFrame]) -> None:
    assert tables["customers"].customer_id.is_unique and tables["truth"].customer_id.is_unique
    for name, column in ROW_ID.items():
        assert tables[name][column].is_unique, name


def test_rows_lie_in_the_period_and_are_known_within_three_days(
    shop: SimulatedShop, tables: dict[str, pd.DataFrame]
) -> None:
    for name in COLUMN_NAMES:
        table = tables[name]
        assert len(table) and table.time.min() >= shop.start and table.time.max() < shop.end
        late = table.known_time - table.time
        assert late.min() >= pd.Timedelta(0) and late.max() <= pd.Timedelta(days=3)
    assert (tables["events"].known_time > tables["events"].time).mean() == pytest.approx(0.03, abs=0.005)


def test_every_customer_starts_with_a_signup(tables: dict[str, pd.DataFrame]) -> None:
    signup = tables["customers"].set_index("customer_id").time
    for name in ("orders", "events", "feedback", "exposures"):
        first = tables[name].groupby("customer_id").time.min()
        assert (first >= signup.loc[first.index]).all(), name


def test_lines_sum_exactly_to_the_paid_amount_of_their_order(tables: dict[str, pd.DataFrame]) -> None:
    cents = (tables["order_lines"].amount * 100).round().astype(int)
    lines = cents.groupby(tables["order_lines"].order_id).sum()
    paid = tables["orders"][tables["orders"].amount > 0].set_index("order_id")
    assert set(lines.index) == set(paid.index)
    assert (lines.loc[paid.index] == (paid.amount * 100).round().astype(int)).all()
    assert cents.min() >= 0


def test_refunds_never_exceed_what_was_paid_before(tables: dict[str, pd.DataFrame], world: World) -> None:
    orders = tables["orders"].sort_values(["customer_id", "time"])
    cents = (orders.amount * 100).round().astype(int)
    assert (cents < 0).sum() > 100
    assert cents.groupby(orders.customer_id).cumsum().min() >= 0
    for block in world.blocks:
        refunded = np.isfinite(block.orders.refunded_at)
        assert (block.orders.refund_cents <= block.orders.cents).all()
        assert (block.orders.refunded_at[refunded] > block.orders.time[refunded]).all()


def test_the_truth_covers_exactly_the_customers_of_the_history(tables: dict[str, pd.DataFrame]) -> None:
    orders = tables["orders"]
    paid = orders[orders.amount > 0]
    assert set(tables["truth"].customer_id) == set(paid.customer_id)
    # First orders are known at once, so late rows hide no customer at the cutoff.
    known = paid[paid.known_time <= tables["truth"].cutoff.iloc[0]]
    assert set(known.customer_id) == set(paid.customer_id)


def test_truth_is_ordered_by_horizon(tables: dict[str, pd.DataFrame]) -> None:
    p = tables["truth"][[f"p_repurchase_{h}d" for h in HORIZONS]].to_numpy()
    assert (np.diff(p, axis=1) >= 0).all() and p.min() >= 0
    assert (p <= tables["truth"].p_alive.to_numpy()[:, None] + 1e-12).all()


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, 300, 6, seed)
    for file in FILES:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b and a != c, file


def test_the_shop_looks_like_a_shop(tables: dict[str, pd.DataFrame]) -> None:
    paid = tables["orders"][tables["orders"].amount > 0]
    per_customer = paid.customer_id.value_counts()
    assert 0.28 < (per_customer == 1).mean() < 0.42
    assert 2 <= per_customer.median() <= 4 and 8 < len(tables["orders"]) / CUSTOMERS < 12
    assert 25 < len(tables["events"]) / CUSTOMERS < 38
    assert 0.02 < 1 - len(per_customer) / CUSTOMERS < 0.08
    assert 0.3 < tables["truth"].p_repurchase_90d.mean() < 0.5


def test_progress_counts_customers_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    seen: list[int] = []
    simulate(tmp_path / "shop", 50, 2, 3, seen.append)
    assert seen == [50]

    def fail(done: int) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        simulate(tmp_path / "other", 50, 2, 3, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_a_folder_with_data_and_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.parquet").write_bytes(b"mine")
    with pytest.raises(Refused, match=r"already holds orders\.parquet"):
        simulate(tmp_path, 10, 2, 3)
    assert (tmp_path / "orders.parquet").read_bytes() == b"mine"
    for customers, months, seed, message in (
        (0, 2, 3, "--customers is 0"),
        (10, 0, 3, "--months is 0"),
        (10, 121, 3, "--months is 121"),
        (10, 2, -1, "--seed is -1"),
    ):
        with pytest.raises(Refused, match=message):
            simulate(tmp_path / "new", customers, months, seed)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("customers", [1, 2])
def test_tiny_shops_are_written_too(tmp_path: Path, customers: int) -> None:
    for seed in range(4):
        rows = simulate(tmp_path / str(seed), customers, 1, seed).rows
        assert rows["customers"] == customers and rows["events"] >= customers


# The truth


def _groups(world: World, block: Block, cutoff: int, who: np.ndarray) -> dict[str, np.ndarray]:
    """Named groups of the customers `who` by what was known at the cutoff: masks."""
    orders, visits, people = block.orders, block.visits, block.people
    customers = len(people.numbers)
    count = np.bincount(orders.customer[orders.time < cutoff], minlength=customers)
    recent = (visits.time < cutoff) & (visits.time > cutoff - 5)
    before = np.flatnonzero(orders.time < cutoff)
    last = before[np.append(np.diff(orders.customer[before]) > 0, True)]
    rating = np.zeros(customers)
    rating[orders.customer[last]] = np.where(orders.rated_at[last] < cutoff, orders.satisfaction[last], 0)
    masks = {
        "all": np.ones(customers, bool),
        "control": people.consent & ~people.treated,
        "treated": people.consent & people.treated,
        "without consent": ~people.consent,
        "moved by campaigns": people.consent & people.treated & (people.campaign_effect > 0.5),
        "new since the last campaign": people.first_order > cutoff - 8,
        "one-time buyers": count == 1,
        "frequent buyers": count >= 10,
        "visited lately": np.bincount(visits.customer[recent], minlength=customers) > 0,
        "cart lately": np.bincount(visits.customer[recent & visits.cart], minlength=customers) > 0,
        "last rating low": (rating > 0) & (rating <= 2),
        "last rating high": rating >= 4,
    }
    return {name: mask[who] for name, mask in masks.items()}


def _happened(block: Block, cutoff: int, horizon: int, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of `who` bought in the window, and their net revenue in it."""
    orders, customers = block.orders, len(block.people.numbers)
    bought = (orders.time >= cutoff) & (orders.time < cutoff + horizon)
    refunded = (orders.refunded_at >= cutoff) & (orders.refunded_at < cutoff + horizon)
    count = np.bincount(orders.customer[bought], minlength=customers)
    cents = np.bincount(orders.customer[bought], orders.cents[bought], minlength=customers)
    cents -= np.bincount(orders.customer[refunded], orders.refund_cents[refunded], minlength=customers)
    return count[who] > 0, cents[who] / 100


def _z(actual: np.ndarray, expected: np.ndarray) -> float:
    difference = actual - expected
    return float(abs(difference.sum()) / np.sqrt((difference**2).sum() + 1e-12))


def _binomial_z(actual: np.ndarray, p: np.ndarray) -> float:
    return float(abs((actual - p).sum()) / np.sqrt((p * (1 - p)).sum() + 1e-12))


def _deviations(world: World, truths: list[Truth], cutoff: int) -> dict[str, float]:
    """Predicted against realised, in standard deviations, for each outcome, horizon and group of 300 or more.

    Values are compared where 100 of them are not 0: fewer are too skewed for their own variance.
    """
    who = [truth.customer for truth in truths]
    parts = [_groups(world, block, cutoff, w) for block, w in zip(world.blocks, who, strict=True)]
    groups = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = {}
    for k, horizon in enumerate(HORIZONS):
        seen = [_happened(block, cutoff, horizon, w) for block, w in zip(world.blocks, who, strict=True)]
        bought, value = (np.concatenate(columns) for columns in zip(*seen, strict=True))
        p, expected = (np.concatenate([getattr(t, n)[:, k] for t in truths]) for n in ("p_repurchase", "value"))
        for name, mask in (groups | _deciles("p", p) | _deciles("value", expected)).items():
            if mask.sum() >= 300:
                found[f"{name}: p {horizon}d"] = _binomial_z(bought[mask], p[mask])
            if np.count_nonzero(value[mask]) >= 100:
                found[f"{name}: value {horizon}d"] = _z(value[mask], expected[mask])
    return found


def _deciles(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable") * 10 // len(values)
    return {f"{name} decile {k}": rank == k for k in range(10)}


def _truths(world: World, cutoff: int) -> list[Truth]:
    return [truth_at(world.calendar, block, cutoff) for block in world.blocks]


def _report(found: dict[str, float]) -> None:
    worst = max(found, key=found.__getitem__)
    rms = np.sqrt(np.mean(np.square(list(found.values()))))
    _say(f"{len(found)} checks of the truth, rms z {rms:.2f}, worst {worst}: z = {found[worst]:.2f}")


def _month_end(world: World) -> int:
    return make_calendar(18).days


def _mid_campaign(world: World) -> int:
    """Three days after a send, when some have got the running campaign and newer customers have not."""
    return int(world.calendar.sends[16]) + 3


@pytest.mark.parametrize("cutoff_of", [_month_end, _mid_campaign])
def test_the_truth_is_what_then_happens(world: World, cutoff_of: Callable[[World], int]) -> None:
    cutoff = cutoff_of(world)
    found = _deviations(world, _truths(world, cutoff), cutoff)
    _report(found)
    assert len(found) > 300
    assert {name: z for name, z in found.items() if z > Z_MAX} == {}


def test_a_truth_that_ignores_dropout_is_caught(world: World) -> None:
    cutoff = _month_end(world)
    faulty = []
    for told in _truths(world, cutoff):
        alive = np.maximum(told.p_alive, 1e-9)[:, None]
        faulty.append(replace(told, p_repurchase=np.minimum(told.p_repurchase / alive, 1.0), value=told.value / alive))
    found = _deviations(world, faulty, cutoff)
    _report(found)
    assert max(found.values()) > 3 * Z_MAX


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("DEAD_VISITS", 0.6), ("CART_IF_NOT", 0.3), ("REFUND_MEAN_PART", 0.0), ("DEAD_OPENS", 0.2)],
)
def test_a_truth_of_another_world_is_caught(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, wrong: float
) -> None:
    cutoff = _month_end(world)
    monkeypatch.setattr(truth, name, wrong)
    found = _deviations(world, _truths(world, cutoff), cutoff)
    _report(found)
    assert max(found.values()) > Z_MAX


def test_the_posterior_of_being_alive_is_calibrated(world: World) -> None:
    cutoff = _month_end(world)
    truths = _truths(world, cutoff)
    alive = np.concatenate([b.dropped_at[t.customer] >= cutoff for b, t in zip(world.blocks, truths, strict=True)])
    p = np.concatenate([truth.p_alive for truth in truths])
    found = {name: _binomial_z(alive[mask], p[mask]) for name, mask in _deciles("alive", p).items()}
    _report(found)
    assert max(found.values()) < Z_MAX and 0.5 < alive.mean() < 0.9


# The planted effects


def test_treated_customers_buy_more_after_a_campaign_than_the_control_group(world: World) -> None:
    bought = {True: 0, False: 0}
    reached = {True: 0, False: 0}
    for block in world.blocks:
        treated = block.people.treated
        for send in world.calendar.sends[12:24]:
            mailed = block.people.consent & (block.people.first_order <= send)
            after = (block.orders.time > send) & (block.orders.time < send + 10)
            orders = np.bincount(block.orders.customer[after], minlength=len(treated)) > 0
            for arm in (True, False):
                bought[arm] += int((orders & mailed & (treated == arm)).sum())
                reached[arm] += int((mailed & (treated == arm)).sum())
    share = {arm: bought[arm] / reached[arm] for arm in (True, False)}
    _say(f"bought within 10 days: treated {share[True]:.4f}, control {share[False]:.4f}")
    assert share[True] > 1.1 * share[False]


def test_customers_who_rate_low_come_back_less(world: World) -> None:
    low, high = [], []
    for block in world.blocks:
        orders = block.orders
        rated = np.flatnonzero(np.isfinite(orders.rated_at) & (orders.time < world.calendar.days - 120))
        next_time = np.append(np.where(np.diff(orders.customer) == 0, orders.time[1:], np.inf), np.inf)
        back = next_time[rated] < orders.time[rated] + 120
        low.append(back[orders.satisfaction[rated] <= 2])
        high.append(back[orders.satisfaction[rated] == 5])
    _say(f"back in 120 days: rated 1-2 {np.concatenate(low).mean():.3f}, 5 {np.concatenate(high).mean():.3f}")
    assert len(np.concatenate(low)) > 1000
    assert np.concatenate(low).mean() < np.concatenate(high).mean() - 0.03


def test_visits_and_carts_announce_orders(world: World) -> None:
    cutoff = _month_end(world)
    shares: dict[str, list[np.ndarray]] = {"cart": [], "visit": [], "neither": []}
    for block in world.blocks:
        who = np.unique(block.orders.customer[block.orders.time < cutoff])
        bought, _ = _happened(block, cutoff, 14, who)
        visits = block.visits
        recent = (visits.time < cutoff) & (visits.time > cutoff - 3)
        visit = np.bincount(visits.customer[recent], minlength=len(block.people.numbers))[who] > 0
        cart = np.bincount(visits.customer[recent & visits.cart], minlength=len(block.people.numbers))[who] > 0
        for name, mask in (("cart", cart), ("visit", visit & ~cart), ("neither", ~visit)):
            shares[name].append(bought[mask])
    share = {name: np.concatenate(parts).mean() for name, parts in shares.items()}
    _say(f"bought within 14 days, by the last 3: {share}")
    assert share["cart"] > share["visit"] > 2 * share["neither"]


def test_december_is_busier_than_the_february_after_it(tables: dict[str, pd.DataFrame]) -> None:
    paid = tables["orders"][tables["orders"].amount > 0]
    by_month = paid.groupby(paid.time.dt.strftime("%Y-%m")).size()
    assert by_month["2023-12"] / 31 > 1.2 * by_month["2024-02"] / 29


def test_attributes_carry_signal(tables: dict[str, pd.DataFrame]) -> None:
    truth = tables["truth"].merge(tables["customers"], on="customer_id")
    loyal, fickle = (truth[truth.acquisition_channel == name] for name in ("referral", "marketplace"))
    assert loyal.p_repurchase_365d.mean() > fickle.p_repurchase_365d.mean() + 0.1
