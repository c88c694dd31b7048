from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from features.errors import ReleaseNotFound
from features.sources import open_rows
from serving.batch import score_customers
from serving.score_store import ScoresUnusable
from serving.scorer import LiveScorer, Scorer, open_scorer

AS_OF = datetime(2025, 3, 1)


@pytest.fixture(scope="module")
def scorer(workspace) -> Scorer:
    return open_scorer(workspace)


def _differences(ours, theirs) -> tuple[int, list[str]]:
    """How many values were compared, and the columns in which some differ."""
    compared, wrong = 0, []
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for column, value in mine.items():
            compared += 1
            equal = abs(value - other[column]) <= 1e-12 if isinstance(value, float) else value == other[column]
            wrong += [] if equal else [column]
    return compared, wrong


def _batch_rows(shop, release, as_of):
    with open_rows(shop.rows, shop.settings) as tables:
        scores = score_customers(tables, release, as_of)
    texts = {"cutoff": [as_of.isoformat() + "Z"] * len(scores), "status": ["ok"] * len(scores)}
    return scores.assign(**texts).to_dict("records")


def test_batch_lookup_and_history_give_the_same_rows(shop, scorer):
    batch = _batch_rows(shop, scorer.release, AS_OF)
    looked_up = scorer.predict(shop.customers)
    from_history = scorer.score([shop.history(customer) for customer in shop.customers], AS_OF)
    compared, wrong = 0, []
    for rows in (looked_up, from_history.rows):
        found = _differences(rows, batch)
        compared, wrong = compared + found[0], wrong + found[1]
    print(f"{len(batch)} customers, {compared} values compared")
    assert compared >= 2 * 40 * 10
    assert wrong == []
    assert from_history.quarantined == {}


def test_the_comparison_finds_one_missing_order(shop, scorer):
    """Positive control: a history without its last order gives other rows."""
    histories = [shop.history(customer) for customer in shop.customers]
    shorter = [{**history, "orders": history["orders"][:-1]} for history in histories if len(history["orders"]) > 1]
    full = [history for history in histories if len(history["orders"]) > 1]
    _, wrong = _differences(scorer.score(shorter, AS_OF).rows, scorer.score(full, AS_OF).rows)
    assert len(wrong) > 10


@pytest.mark.parametrize("as_of", [datetime(2024, 7, 1), datetime(2024, 12, 24, 18, 30, 0, 123456)])
def test_an_as_of_in_the_past_sees_nothing_later(shop, scorer, as_of):
    histories = [shop.history(customer) for customer in shop.customers]
    cut = [_until(history, as_of) for history in histories]
    assert sum(len(h["orders"]) for h in cut) < sum(len(h["orders"]) for h in histories)
    answers = scorer.score(histories, as_of).rows
    assert answers == scorer.score(cut, as_of).rows
    _, wrong = _differences([a for a in answers if a["status"] == "ok"], _batch_rows(shop, scorer.release, as_of))
    assert wrong == []


def _until(history, as_of):
    return {
        table: rows
        if table == "customer_id"
        else [row for row in rows if datetime.fromisoformat(row["time"][:-1]) < as_of]
        for table, rows in history.items()
    }


def test_alone_or_among_others_a_customer_gets_the_same_row(shop, scorer):
    histories = [shop.history(customer) for customer in shop.customers[:3]]
    together = scorer.score(histories, AS_OF).rows
    assert [scorer.score([history], AS_OF).rows[0] for history in histories] == together


def test_order_and_duplicates_are_kept(shop, scorer):
    asked = [shop.customers[3], shop.customers[1], shop.customers[3]]
    assert [row["customer_id"] for row in scorer.predict(asked)] == asked
    scored = scorer.score([shop.history(customer) for customer in asked], AS_OF).rows
    assert [row["customer_id"] for row in scored] == asked
    assert scored[0] == scored[2] == scorer.predict(asked)[0]


def test_an_unknown_customer_does_not_disturb_the_others(shop, scorer):
    known = scorer.predict(shop.customers[:2])
    found = scorer.predict([shop.customers[0], "nobody we know", shop.customers[1]])
    assert [found[0], found[2]] == known
    assert found[1] == {**dict.fromkeys(scorer.release.columns), "customer_id": "nobody we know", "status": "unknown",
                        "cutoff": "2025-03-01T00:00:00Z", "model_version": "1"}  # fmt: skip


NO_PAID_ORDER = {
    "none": [],
    "at the cutoff": [{"time": "2025-03-01T00:00:00Z", "amount": 5}],
    "a refund only": [{"time": "2024-03-01T00:00:00Z", "amount": -5}],
    "a free one": [{"time": "2024-03-01T00:00:00Z", "amount": 0}],
    "unreadable": [{"time": "soon", "amount": "much"}],
    "blank": [{}],
}


def test_a_customer_without_a_paid_order_is_told_so(shop, scorer):
    without = [{"customer_id": name, "orders": orders} for name, orders in NO_PAID_ORDER.items()]
    rows = scorer.score([*without, shop.history(shop.customers[0])], AS_OF).rows
    assert rows[-1] == scorer.predict(shop.customers[:1])[0]
    assert [(row["customer_id"], row["status"]) for row in rows[:-1]] == [(n, "no_paid_order") for n in NO_PAID_ORDER]
    assert all(row["tier"] is None and row["p_churn"] is None for row in rows[:-1])
    assert scorer.score(without, AS_OF).rows == rows[:-1]


def test_rows_that_cannot_be_used_are_counted_with_reasons_and_no_values(scorer):
    planted = "jane@example.com"
    customer = {
        "customer_id": planted,
        "orders": [
            {"time": planted, "amount": 5},
            {"time": "2024-01-05", "amount": planted},
            {"order_id": "1", "time": "2024-01-05", "amount": "7.25"},
            {"order_id": "1", "time": "2024-01-05", "amount": 7.25},
        ],
        "events": [{"time": "2024-01-05"}],
    }
    scored = scorer.score([customer], AS_OF)
    assert scored.quarantined == {
        "orders": {"time is not a time": 1, "amount is not an amount": 1, "duplicate order_id": 1},
        "events": {"no type": 1},
    }
    assert scored.rows[0]["status"] == "ok"


def test_one_customers_order_ids_do_not_cost_another_their_orders(shop, scorer):
    histories = [shop.history(customer) for customer in shop.customers[:5]]
    numbered = [
        {**history, "orders": [{**row, "order_id": str(place)} for place, row in enumerate(history["orders"])]}
        for history in histories
    ]
    scored = scorer.score(numbered, AS_OF)
    assert scored.quarantined == {}
    assert scored.rows == scorer.score(histories, AS_OF).rows


def test_times_without_an_offset_are_the_shops(shop, scorer):
    bundle = replace(scorer.release.bundle, provenance={"timezone": "Asia/Ho_Chi_Minh"})
    there = Scorer(replace(scorer.release, bundle=bundle), None)
    local = {"customer_id": "x", "orders": [{"time": "2024-06-01T07:00:00", "amount": 5}]}
    exact = {"customer_id": "x", "orders": [{"time": "2024-06-01T00:00:00Z", "amount": 5}]}
    assert there.score([local], AS_OF).rows == scorer.score([exact], AS_OF).rows
    assert there.score([exact], AS_OF).rows == scorer.score([exact], AS_OF).rows


def test_no_champion_is_said_at_once(tmp_path):
    with pytest.raises(ReleaseNotFound, match="no champion"):
        LiveScorer(tmp_path)


def test_without_stored_scores_histories_are_still_scored(releases, shop, tmp_path):
    releases.publish(tmp_path, "1", with_scores=False)
    scorer = LiveScorer(tmp_path).current()
    with pytest.raises(ScoresUnusable, match="tiercast score"):
        scorer.predict(["a"])
    assert scorer.score([shop.history(shop.customers[0])], AS_OF).rows[0]["status"] == "ok"


def test_a_new_champion_and_new_scores_are_adopted(releases, shop, tmp_path):
    releases.publish(tmp_path, "1")
    live = LiveScorer(tmp_path)
    history = [shop.history(shop.customers[0])]
    before = live.current()
    assert live.current() is before
    release = releases.publish(tmp_path, "2", with_scores=False)
    assert live.current().score(history, AS_OF).rows[0]["model_version"] == "2"
    assert live.current().predict(shop.customers) == before.predict(shop.customers)
    releases.publish_scores(tmp_path, release)
    after = live.current()
    assert {row["model_version"] for row in after.predict([*shop.customers, "unknown"])} == {"2"}
    assert after.predict(shop.customers[:1]) == after.score(history, AS_OF).rows
    assert before.predict(shop.customers[:1])[0]["model_version"] == "1"


@pytest.mark.parametrize("name", ["scores.parquet", "champion.json"])
def test_what_cannot_be_used_is_not_adopted_and_logged_once(releases, shop, tmp_path, name, caplog):
    releases.publish(tmp_path, "1")
    live = LiveScorer(tmp_path)
    before = live.current()
    (tmp_path / name).write_bytes(b"broken")
    assert [live.current(), live.current()] == [before, before]
    assert len([record for record in caplog.records if "not adopted" in record.message]) == 1
    releases.publish(tmp_path, "2")
    assert live.current().predict(shop.customers[:1])[0]["model_version"] == "2"


def test_no_answer_mixes_versions_while_they_are_swapped(releases, shop, tmp_path):
    prepared = {}
    for version in ("1", "2"):
        folder = tmp_path / f"prepared-{version}"
        releases.publish(folder, version)
        prepared[version] = folder
    held = tmp_path / "workspace"
    releases.publish(held, "2")
    releases.publish(held, "1")
    live = LiveScorer(held)
    right = {v: {row["customer_id"]: row for row in open_scorer(prepared[v]).predict(shop.customers)} for v in prepared}
    stop, answers, problems = threading.Event(), [], []

    def swap() -> None:
        for turn in range(24):
            version = "2" if turn % 2 else "1"
            for name in ("champion.json", "scores.parquet"):
                shutil.copy(prepared[version] / name, held / f".{name}")
                (held / f".{name}").replace(held / name)
        stop.set()

    def ask() -> None:
        while not stop.is_set():
            rows = live.current().predict(shop.customers)
            version = rows[0]["model_version"]
            answers.append(version)
            problems.extend(row for row in rows if row != right[version][row["customer_id"]])

    threads = [threading.Thread(target=work) for work in (swap, ask, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(answers)} answers, {answers.count('1')} of version 1")
    assert min(answers.count("1"), answers.count("2")) > 0
    assert problems == []
    assert live.current().stored_version == "2"


def test_describe_says_what_answers(scorer):
    found = scorer.describe()
    assert found["tiers"] == [
        {"name": "platinum", "lower_bound": 120.0},
        {"name": "gold", "lower_bound": 40.0},
        {"name": "bronze", "lower_bound": None},
    ]
    assert found["stored_scores"] == {"model_version": "1", "cutoff": "2025-03-01T00:00:00Z", "customers": 40}
    assert (found["repurchase_horizons_days"], found["ltv_horizons_days"]) == ((28, 90), (90,))


def test_the_default_as_of_is_now(shop, scorer):
    row = scorer.score([shop.history(shop.customers[0])]).rows[0]
    made = datetime.fromisoformat(row["cutoff"])
    assert abs(datetime.now(made.tzinfo) - made) < timedelta(minutes=5)
