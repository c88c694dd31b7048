"""BG/NBD and Gamma-Gamma against the papers, against simulation and against integrals."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import betaln

from features.btyd import BgNbd, BtydNotFitted, GammaGamma, fit_bg_nbd, fit_gamma_gamma
from features.errors import Refused

PUBLISHED = BgNbd(r=0.243, alpha=4.414, a=0.793, b=2.426)
PUBLISHED_VALUE = GammaGamma(p=6.25, q=3.74, v=15.44)
DATA = Path(os.environ.get("TIERCAST_DATA", Path(__file__).parents[3] / "shared" / "data"))

models = st.builds(
    BgNbd, r=st.floats(0.05, 20), alpha=st.floats(0.05, 300), a=st.floats(0.05, 20), b=st.floats(0.05, 50)
)
ages = st.tuples(st.floats(0.1, 1000), st.floats(0, 1), st.floats(0, 1)).map(
    lambda t: (t[0] * min(t[1], t[2]), t[0] * max(t[1], t[2]), t[0])
)


@pytest.fixture(scope="module")
def cdnow_sample() -> pd.DataFrame:
    """Calibration customers: frequency, recency, age in weeks, mean value of the repeat purchase days."""
    file = DATA / "cdnow" / "CDNOW_sample.txt"
    if not file.exists():
        pytest.skip(f"the public CDNOW sample is not at {file}; set TIERCAST_DATA to the folder that holds cdnow/")
    names = ["master_id", "customer_id", "day", "cds", "dollars"]
    rows = pd.read_csv(file, sep=r"\s+", header=None, names=names)
    rows["day"] = pd.to_datetime(rows["day"].astype(str))
    end = pd.Timestamp("1997-09-30")
    days = rows[rows["day"] <= end].groupby(["customer_id", "day"], as_index=False)["dollars"].sum()
    customers = days.groupby("customer_id")["day"].agg(["min", "max", "size"])
    repeats = days[days["day"] > days["customer_id"].map(customers["min"])]
    return pd.DataFrame(
        {
            "frequency": customers["size"] - 1,
            "recency": (customers["max"] - customers["min"]).dt.days / 7,
            "age": (end - customers["min"]).dt.days / 7,
            "mean_value": repeats.groupby("customer_id")["dollars"].mean(),
        }
    )


def simulated(model: BgNbd, customers: int, seed: int) -> tuple[npt.NDArray[np.float64], ...]:
    """x, t_x, T and purchases in the 30 units after T of customers who follow the model."""
    random = np.random.default_rng(seed)
    rate, leaving = (
        random.gamma(model.r, 1 / model.alpha, customers),
        random.beta(model.a, model.b, customers),
    )
    T = random.uniform(20, 60, customers)
    x, t_x, later = np.zeros(customers), np.zeros(customers), np.zeros(customers)
    now, alive = np.zeros(customers), np.ones(customers, dtype=bool)
    while alive.any():
        now = now + random.exponential(1 / rate)
        before, after = alive & (now <= T), alive & (now > T) & (now <= T + 30)
        x, t_x, later = x + before, np.where(before, now, t_x), later + after
        alive &= (now <= T + 30) & (random.random(customers) >= leaving)
    return x, t_x, T, later


def test_cdnow_parameters_are_those_of_the_2005_paper(cdnow_sample: pd.DataFrame) -> None:
    assert len(cdnow_sample) == 2357
    model = fit_bg_nbd(cdnow_sample["frequency"], cdnow_sample["recency"], cdnow_sample["age"])
    found = (model.r, model.alpha, model.a, model.b)
    assert found == pytest.approx((0.243, 4.414, 0.793, 2.426), abs=5e-4)


def test_cdnow_order_values_are_those_of_the_2013_note(cdnow_sample: pd.DataFrame) -> None:
    model = fit_gamma_gamma(cdnow_sample["frequency"], cdnow_sample["mean_value"])
    assert (model.p, model.q, model.v) == pytest.approx((6.25, 3.74, 15.44), abs=5e-3)


def test_a_fit_in_days_has_seven_times_the_alpha_of_a_fit_in_weeks(cdnow_sample: pd.DataFrame) -> None:
    x, t_x, T = (cdnow_sample[name].to_numpy(dtype=float) for name in ("frequency", "recency", "age"))
    weeks, days = fit_bg_nbd(x, t_x, T), fit_bg_nbd(x, t_x * 7, T * 7)
    assert days.alpha == pytest.approx(7 * weeks.alpha, rel=1e-6)
    assert (days.r, days.a, days.b) == pytest.approx((weeks.r, weeks.a, weeks.b), rel=1e-6)


def test_the_customer_of_the_paper_is_expected_to_order_1_226_times() -> None:
    assert PUBLISHED.expected_orders(2, 30.43, 38.86, 39)[0] == pytest.approx(1.226, abs=5e-4)


def test_a_customer_without_history_is_worth_the_mean_and_a_loyal_one_his_own() -> None:
    value = PUBLISHED_VALUE.expected_order_value([0, 1, 10_000], [np.nan, 100.0, 100.0])
    assert value[0] == pytest.approx(6.25 * 15.44 / 2.74)
    assert value[0] < value[1] < value[2] == pytest.approx(100, rel=1e-3)


def test_the_fit_finds_the_parameters_that_made_the_customers() -> None:
    truth = BgNbd(r=0.8, alpha=6.0, a=0.7, b=2.5)
    x, t_x, T, later = simulated(truth, 40_000, seed=1)
    model = fit_bg_nbd(x, t_x, T)
    assert (model.r, model.alpha) == pytest.approx((truth.r, truth.alpha), rel=0.05)
    assert model.a / (model.a + model.b) == pytest.approx(truth.a / (truth.a + truth.b), rel=0.05)
    assert truth.expected_orders(x, t_x, T, 30).mean() == pytest.approx(later.mean(), rel=0.03)
    assert truth.p_repurchase(x, t_x, T, 30).mean() == pytest.approx((later > 0).mean(), rel=0.02)


def test_predictions_are_right_for_customers_of_each_frequency() -> None:
    truth = BgNbd(r=0.8, alpha=6.0, a=0.7, b=2.5)
    x, t_x, T, later = simulated(truth, 60_000, seed=2)
    checked = 0
    for count in range(5):
        chosen = x == count
        repurchase = truth.p_repurchase(x[chosen], t_x[chosen], T[chosen], 30).mean()
        assert repurchase == pytest.approx((later[chosen] > 0).mean(), abs=0.02)
        checked += int(chosen.sum())
    assert checked > 30_000


def test_the_gamma_gamma_fit_finds_the_parameters_that_made_the_orders() -> None:
    random, truth = np.random.default_rng(3), GammaGamma(p=4.0, q=3.0, v=30.0)
    x = random.integers(1, 8, 30_000)
    mean = random.gamma(truth.p * x, 1 / random.gamma(truth.q, 1 / truth.v, x.size)) / x
    model = fit_gamma_gamma(x, mean)
    assert (model.p, model.q, model.v) == pytest.approx((truth.p, truth.q, truth.v), rel=0.08)
    assert fit_gamma_gamma(x, mean * 100).v == pytest.approx(model.v * 100, rel=1e-4)


def test_equal_customers_may_be_given_once_with_a_weight() -> None:
    x, t_x, T, _ = simulated(PUBLISHED, 300, seed=4)
    count = np.arange(300) % 4
    repeated = [np.repeat(array, count) for array in (x, t_x, T)]
    found, expected = fit_bg_nbd(x, t_x, T, weights=count), fit_bg_nbd(*repeated)
    assert list(found.to_json().values()) == pytest.approx(list(expected.to_json().values()), rel=1e-6)


def test_two_fits_are_equal_and_row_order_changes_nothing_visible() -> None:
    x, t_x, T, _ = simulated(PUBLISHED, 500, seed=5)
    shuffled = np.random.default_rng(6).permutation(500)
    first, again = fit_bg_nbd(x, t_x, T), fit_bg_nbd(x, t_x, T)
    assert first == again
    moved = fit_bg_nbd(x[shuffled], t_x[shuffled], T[shuffled])
    assert list(moved.to_json().values()) == pytest.approx(list(first.to_json().values()), rel=1e-6)


def by_integral(model: BgNbd, x: float, T: float, horizon: float) -> float:
    """Expected orders if alive at T: (1 - E[exp(-lambda p horizon)]) / p over p ~ beta(a, b + x)."""

    def weighted(power: float) -> float:
        p = power ** (1 / model.a)
        orders = -np.expm1(-(model.r + x) * np.log1p(p * horizon / (model.alpha + T))) / p
        return float(orders * (1 - p) ** (model.b + x - 1))

    area = quad(weighted, 0, 1, limit=400, epsrel=1e-10)[0]
    return float(area / model.a * np.exp(-betaln(model.a, model.b + x)))


@pytest.mark.parametrize("a", [0.3, 0.999_999_9, 1.0, 1 + 1e-14, 1.000_01, 2.5])
@pytest.mark.parametrize("x", [0, 1, 7, 60])
@pytest.mark.parametrize("horizon", [1, 90, 1500])
def test_expected_orders_are_the_integral_over_the_chance_to_leave(a: float, x: int, horizon: float) -> None:
    for b in (0.7, 1.4, 6.0):
        model = BgNbd(r=0.4, alpha=12.0, a=a, b=b)
        found = model.expected_orders(x, 200, 200, horizon)[0] / model.p_alive(x, 200, 200)[0]
        assert found == pytest.approx(by_integral(model, x, 200, horizon), rel=2e-5)


def test_the_second_way_to_the_expected_orders_agrees_with_the_first() -> None:
    x, T = np.array([0.0, 3.0, 200.0]), np.array([50.0, 90.0, 400.0])
    summed = PUBLISHED._orders_if_alive_summed(x, T, np.full(3, 60.0))
    assert summed == pytest.approx(PUBLISHED.expected_orders(x, T, T, 60) / PUBLISHED.p_alive(x, T, T), rel=1e-4)


@settings(max_examples=150, deadline=None)
@given(models, st.integers(0, 5000), ages, st.floats(0.1, 3000))
def test_predictions_stay_possible(model: BgNbd, x: int, age: tuple[float, float, float], horizon: float) -> None:
    t_x, _, T = age if x else (0.0, 0.0, age[2])
    alive, buys = model.p_alive(x, t_x, T)[0], model.p_repurchase(x, t_x, T, horizon)[0]
    orders = model.expected_orders(x, t_x, T, horizon)[0]
    assert 0 <= buys <= alive <= 1
    # One order at least with probability `buys`, and never more than the rate of one who cannot leave.
    assert buys * (1 - 1e-3) <= orders <= alive * (model.r + x) * horizon / (model.alpha + T) * (1 + 1e-3)


@settings(max_examples=80, deadline=None)
@given(models, st.integers(1, 500), ages)
def test_a_later_last_order_makes_life_likelier(model: BgNbd, x: int, age: tuple[float, float, float]) -> None:
    earlier, later, T = age
    assert model.p_alive(x, earlier, T)[0] <= model.p_alive(x, later, T)[0] + 1e-12


@settings(max_examples=80, deadline=None)
@given(models, st.integers(0, 500), ages, st.floats(0.1, 500))
def test_a_longer_horizon_never_lowers_a_prediction(
    model: BgNbd, x: int, age: tuple[float, float, float], horizon: float
) -> None:
    t_x, T = (age[0] if x else 0.0), age[2]
    short, long = (model.p_repurchase(x, t_x, T, days)[0] for days in (horizon, 1.5 * horizon))
    assert short <= long
    fewer, more = (model.expected_orders(x, t_x, T, days)[0] for days in (horizon, 1.5 * horizon))
    assert fewer <= more * (1 + 1e-3)


def test_a_customer_who_never_came_back_has_not_left() -> None:
    assert PUBLISHED.p_alive([0, 1], [0, 1], [500, 500])[0] == 1
    assert PUBLISHED.p_alive([0, 1], [0, 1], [500, 500])[1] < 0.2


def test_a_fit_refuses_what_it_cannot_learn_from() -> None:
    assert issubclass(BtydNotFitted, Refused)
    with pytest.raises(BtydNotFitted, match="9 customers; a BG/NBD model needs 10"):
        fit_bg_nbd([1] * 9, [3] * 9, [9] * 9)
    with pytest.raises(BtydNotFitted, match="none of 20 customers bought again"):
        fit_bg_nbd([0] * 20, [0] * 20, [9] * 20)
    with pytest.raises(BtydNotFitted, match="9 customers with orders of a positive value"):
        fit_gamma_gamma([1] * 9 + [0], [3.0] * 9 + [np.nan])
    with pytest.raises(ValueError, match="2 of 12 histories are not"):
        fit_bg_nbd([1] * 12, [3] * 10 + [10, -1], [9] * 12)


def test_shops_at_the_edge_still_get_a_usable_model() -> None:
    """Equal customers, customers who never leave, one price for everything: all maxima at infinity."""
    T = np.full(50, 100.0)
    shops = [
        (np.full(50, 4.0), np.full(50, 95.0)),
        (np.r_[np.zeros(49), 1.0], np.r_[np.zeros(49), 2.0]),
        (np.full(50, 90.0), np.full(50, 100.0)),
    ]
    for x, t_x in shops:
        model = fit_bg_nbd(x, t_x, T)
        orders = model.expected_orders(x, t_x, T, 100)
        assert np.isfinite(orders).all() and (orders >= 0).all() and (orders <= 2 * x.max() + 1).all()
    one_price = fit_gamma_gamma(np.arange(1, 51), np.full(50, 20.0))
    assert one_price.expected_order_value([0, 1, 9], [np.nan, 20, 20]) == pytest.approx(20, rel=0.01)


def test_heavy_spenders_leave_the_mean_order_value_finite() -> None:
    random = np.random.default_rng(7)
    value = 10 * random.pareto(0.7, 2000) + 1
    assert np.isfinite(fit_gamma_gamma(np.ones(2000), value).expected_order_value(0, np.nan)).all()


def test_parameters_survive_json_and_foreign_ones_do_not() -> None:
    assert BgNbd.from_json(PUBLISHED.to_json()) == PUBLISHED
    assert GammaGamma.from_json(PUBLISHED_VALUE.to_json()) == PUBLISHED_VALUE
    with pytest.raises(ValueError, match="expected"):
        BgNbd.from_json({"r": 1.0})
    with pytest.raises(ValueError, match="positive numbers: q"):
        GammaGamma.from_json({"p": 1.0, "q": float("nan"), "v": 2.0})
