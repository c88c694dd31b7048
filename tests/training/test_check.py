"""The report on the data: right counts, and refusals that are those of the training itself."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import numpy as np
import pytest

from features.errors import CutoffOutsideData, Refused
from features.settings import Settings
from training.check import as_text, check
from training.train import Request, train

AS_OF = datetime(2024, 12, 31)
SETTINGS = Settings(
    repurchase_horizons_days=(1, 30), ltv_horizons_days=(30, 120), primary_horizon_days=30, max_snapshots=4
)
START = datetime(2024, 1, 1)
Order = tuple[str, str, float]


def order(customer: int, day: float, amount: float = 10.0) -> Order:
    return (f"c{customer}", (START + timedelta(days=day)).isoformat() + "Z", amount)


def regulars(customers: int, first_day: int = 0, seed: int = 0) -> list[Order]:
    random = np.random.default_rng(seed)
    rates = random.gamma(1.0, 0.02, customers)
    bought = np.argwhere(random.random((customers, 365)) < rates[:, None])
    return [order(0, first_day)] + [order(c, int(d), 5.0 + c) for c, d in bought if d >= first_day]


SHOPS: dict[str, tuple[list[Order], str]] = {
    "fine": (regulars(120), ""),
    "one customer": ([order(0, day) for day in range(0, 365, 5)], "customer moments"),
    "nobody repeats": ([order(number, number / 2) for number in range(600)], "bought again"),
    "too short": (regulars(300, first_day=300), "days of orders before the cutoff"),
    "constant": ([order(number, day) for number in range(60) for day in range(0, 365, 10)], "did not buy again"),
    "money back": ([*regulars(120), *[(c, t, -a) for c, t, a in regulars(120)]], "brought money in"),
}


@pytest.mark.parametrize("name", SHOPS)
def test_what_would_be_refused_is_what_training_refuses(shop_of, name):
    orders, reason = SHOPS[name]
    with shop_of([*orders, order(0, 364.5)], SETTINGS) as tables:
        report = check(tables, SETTINGS, AS_OF)
        try:
            found = train(tables, SETTINGS, Request(AS_OF, 0, 0))
        except Refused as refused:
            assert report.refusals == (f"{type(refused).__name__}: {refused}",)
            assert reason and reason in report.refusals[0]
            return
    assert report.refusals == () and not reason
    learned = {(head.outcome, head.horizon_days) for head in found.bundle.heads}
    assert {(h.outcome, h.horizon_days) for h in report.horizons if h.windows} == learned
    missing = {(h.outcome, h.horizon_days): h.reason for h in report.horizons if not h.windows}
    assert missing == dict(found.horizons.missing)
    print(f"{len(learned)} horizons learned, {len(missing)} not")


def test_the_counts_are_right(shop_of):
    orders = [
        order(1, 0),
        order(1, 20),
        order(2, 5),
        order(2, 6, -4.0),  # a refund is no order
        order(3, 7, 0.0),  # nor is a free one
        order(4, 30),
        order(4, 364.75),  # after the cutoff
        ("", "2024-02-01", 5.0),  # nobody
        ("c5", "soon", 5.0),
    ]
    with shop_of(orders) as tables:
        report = check(tables, Settings(), datetime(2024, 12, 30, 12))
    assert (report.buyers, report.repeat_buyers) == (3, 1)
    (intake,) = report.tables
    assert (intake["rows_in"], intake["accepted"], sum(intake["quarantined"].values())) == (9, 7, 2)


def test_windows_are_counted_per_horizon(shop_of):
    with shop_of([*regulars(120), order(0, 364.5)], SETTINGS) as tables:
        report = check(tables, SETTINGS, AS_OF)
    windows = {(h.outcome, h.horizon_days): (h.windows, h.reason) for h in report.horizons}
    assert windows["repurchase", 30] == windows["ltv", 30] == (4, "")
    assert windows["ltv", 120] == (0, "needs max_snapshots = 8")
    assert windows["repurchase", 1][0] == 0 and "bought again within 1 days" in windows["repurchase", 1][1]


def test_the_report_is_readable_and_json(shop_of):
    with shop_of([*regulars(120), order(0, 364.5), ("", "2024-02-01", 5.0)], SETTINGS) as tables:
        report = check(tables, SETTINGS, AS_OF)
    text = as_text(report)
    assert "1 quarantined: no customer_id" in text and "as of 2024-12-31: " in text
    assert "repurchase at 30 days    4 past windows to learn from" in text
    assert "ltv at 120 days          not yet: needs max_snapshots = 8" in text
    assert max(map(len, text.splitlines())) < 200
    found = json.loads(json.dumps(report.to_json(), default=str))
    assert found["refusals"] == [] and len(found["horizons"]) == 4


def test_a_refusal_is_told_once(shop_of):
    with shop_of([*regulars(300, first_day=300), order(0, 364.5)], SETTINGS) as tables:
        text = as_text(check(tables, SETTINGS, AS_OF))
    assert text.count("would be refused: TooLittleData: a 30-day horizon needs 120 days of orders") == 1
    assert "not yet" not in text


def test_a_moment_outside_the_data_is_refused(shop_of):
    with shop_of([order(1, 0)]) as tables, pytest.raises(CutoffOutsideData):
        check(tables, Settings(), datetime(2031, 1, 1))
