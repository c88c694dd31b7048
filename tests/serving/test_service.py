from __future__ import annotations

import asyncio
import json
import logging
import math
from datetime import UTC, datetime, timedelta

import bentoml
import httpx
import pytest

from features.tables import CONTRACT
from serving import service
from serving.bodies import MAX_BODY_BYTES
from serving.schemas import ROW_MODELS, answer_model
from serving.scorer import LiveScorer, open_scorer

PLANTED = "jane.doe@example.com"
AS_OF = "2025-03-01T00:00:00Z"
PREDICT, SCORE = "/v1/predict", "/v1/score"


class Client:
    """Requests to an ASGI app in this process, from its start to its end."""

    def __init__(self, app) -> None:
        self._app = app

    def request(self, method, path, **body) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with (
                self._app.router.lifespan_context(self._app),
                httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as client,
            ):
                return await client.request(method, path, **body)

        return asyncio.run(ask())

    def post(self, path, **body) -> httpx.Response:
        return self.request("POST", path, **body)

    def get(self, path) -> httpx.Response:
        return self.request("GET", path)


@pytest.fixture
def client(workspace) -> Client:
    return _client_of(workspace)


def _client_of(workspace) -> Client:
    service.app.state.live = LiveScorer(workspace)
    return Client(service.app)


def _score_body(**columns):
    return {"customers": [{"customer_id": PLANTED, "orders": [{"time": "2024-01-05", "amount": 5, **columns}]}]}


BAD = {
    "nothing": (PREDICT, b"", 400),
    "not JSON": (PREDICT, PLANTED.encode(), 400),
    "half a body": (PREDICT, f'{{"customer_ids": ["{PLANTED}'.encode(), 400),
    "not UTF-8": (PREDICT, b'{"customer_ids": ["\xff\xfe"]}', 400),
    "a lone surrogate": (PREDICT, b'{"customer_ids": ["\\ud800"]}', 400),
    "nested junk": (PREDICT, b'{"customer_ids": ' + b"[" * 100_000, 400),
    "a number of 5,000 digits": (PREDICT, b'{"customer_ids": ' + b"9" * 5000 + b"}", 400),
    "a list": (PREDICT, [PLANTED], 422),
    "null": (PREDICT, None, 422),
    "no key": (PREDICT, {}, 422),
    "wrapped": (PREDICT, {"request": {"customer_ids": [PLANTED]}}, 422),
    "an extra key": (PREDICT, {"customer_ids": [PLANTED], PLANTED: 1}, 422),
    "NaN": (PREDICT, b'{"customer_ids": [NaN]}', 422),
    "no ids": (PREDICT, {"customer_ids": []}, 422),
    "10,001 ids": (PREDICT, {"customer_ids": [PLANTED] * 10_001}, 422),
    "one id alone": (PREDICT, {"customer_ids": PLANTED}, 422),
    "a number for an id": (PREDICT, {"customer_ids": [PLANTED, 5]}, 422),
    "a list for an id": (PREDICT, {"customer_ids": [[PLANTED]]}, 422),
    "null for an id": (PREDICT, {"customer_ids": [None]}, 422),
    "an empty id": (PREDICT, {"customer_ids": [""]}, 422),
    "a long id": (PREDICT, {"customer_ids": [PLANTED * 10]}, 422),
    "no customers": (SCORE, {"customers": []}, 422),
    "1,001 customers": (SCORE, {"customers": [{"customer_id": PLANTED}] * 1001}, 422),
    "10,001 orders": (SCORE, {"customers": [{"customer_id": PLANTED, "orders": [{}] * 10_001}]}, 422),
    "a customer without id": (SCORE, {"customers": [{"orders": []}]}, 422),
    "an unknown table": (SCORE, {"customers": [{"customer_id": PLANTED, PLANTED: []}]}, 422),
    "an unknown column": (SCORE, _score_body(**{PLANTED: 1}), 422),
    "a row of another customer": (SCORE, _score_body(customer_id="customer-001"), 422),
    "a bool for money": (SCORE, _score_body(amount=True), 422),
    "NaN for money": (SCORE, json.dumps(_score_body(amount=math.nan)).encode(), 422),
    "Infinity for money": (SCORE, json.dumps(_score_body(amount=-math.inf)).encode(), 422),
    "1e999 for money": (SCORE, json.dumps(_score_body(amount="@")).replace('"@"', "1e999").encode(), 422),
    "an object for money": (SCORE, _score_body(amount={"value": PLANTED}), 422),
    "a long text for money": (SCORE, _score_body(amount="1" * 65), 422),
    "a number for a time": (SCORE, _score_body(time=1_700_000_000), 422),
    "a long text": (SCORE, _score_body(channel=PLANTED * 100), 422),
    "as_of no time": (SCORE, {**_score_body(), "as_of": PLANTED}, 422),
    "as_of a number": (SCORE, {**_score_body(), "as_of": 1_700_000_000}, 422),
    "as_of far ahead": (SCORE, {**_score_body(), "as_of": "2999-01-01"}, 422),
    "as_of before time": (SCORE, {**_score_body(), "as_of": "0001-01-01T00:00:00+14:00"}, 422),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_gets_one_shape_of_error_and_nothing_of_it_back(client, name, caplog):
    caplog.set_level(logging.DEBUG)
    path, body, status = BAD[name]
    response = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert {"code", "message"} <= error.keys() <= {"code", "message", "field"}
    assert error["code"] == ("not_json" if status == 400 else "invalid_request")
    assert PLANTED not in response.text
    assert PLANTED not in caplog.text


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"customer_ids": ["a", 5]}, "customer_ids.1", "customer_ids.1: Input should be a valid string"),
        ({"customer_ids": ["a"], "x": 1}, "", "the body: holds a key that is not known here"),
        ({}, "customer_ids", "customer_ids: Field required"),
        ({"customer_ids": [1, 2]}, "customer_ids.0", "(1 more problems)"),
    ],
)
def test_an_error_names_the_field(client, body, field, message):
    error = client.post(PREDICT, json=body).json()["error"]
    assert error.get("field", "") == field
    assert message in error["message"]


def test_an_error_in_a_row_names_its_place(client):
    body = {"customers": [{"customer_id": "a"}, {"customer_id": "b", "orders": [{"amount": 1}, {"amount": []}]}]}
    error = client.post(SCORE, json=body).json()["error"]
    assert error["field"] == "customers.1.orders.1.amount"
    assert "must be a number or a decimal text" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", PREDICT, 405),
        ("DELETE", SCORE, 405),
        ("POST", "/v1/model", 405),
        ("GET", "/", 404),
        ("POST", f"/v1/predict/{PLANTED}", 404),
    ],
)
def test_other_paths_and_methods_get_the_same_shape(client, method, path, status):
    response = client.request(method, path)
    assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert PLANTED not in response.text


def test_a_body_is_counted_as_it_arrives(client):
    taken = 0

    async def endless():
        nonlocal taken
        while taken < 2 * MAX_BODY_BYTES:
            taken += 2**20
            yield b" " * 2**20

    response = client.post(PREDICT, content=endless())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"


def test_predict_answers_in_the_order_asked(client, shop):
    asked = [shop.customers[2], "unknown", shop.customers[0], shop.customers[2]]
    rows = client.post(PREDICT, json={"customer_ids": asked}).json()["scores"]
    assert [row["customer_id"] for row in rows] == asked
    assert [row["status"] for row in rows] == ["ok", "unknown", "ok", "ok"]


def test_over_http_histories_and_lookups_give_the_same_rows(client, shop, workspace):
    body = {"customers": [shop.history(customer) for customer in shop.customers], "as_of": AS_OF}
    scored = client.post(SCORE, json=body).json()
    looked_up = client.post(PREDICT, json={"customer_ids": shop.customers}).json()["scores"]
    print(f"{len(looked_up)} customers compared")
    assert len(looked_up) == 40
    assert scored == {"scores": looked_up, "quarantined": {}}
    model = answer_model(open_scorer(workspace).release.columns)
    assert [model.model_validate(row).model_dump() for row in looked_up] == looked_up


def test_requests_at_the_same_time_do_not_disturb_each_other(client, shop):
    def body(customer):
        return {"customers": [shop.history(customer)], "as_of": AS_OF}

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=60) as http:
            return await asyncio.gather(*(http.post(SCORE, json=body(customer)) for customer in shop.customers[:4]))

    rows = [response.json()["scores"][0] for response in asyncio.run(ask_all())]
    assert rows == client.post(PREDICT, json={"customer_ids": shop.customers[:4]}).json()["scores"]


def test_amounts_may_be_decimal_texts_and_bad_rows_are_counted(client):
    def scores(*amounts):
        orders = [{"time": "2024-01-05T00:00:00+07:00", "amount": amount} for amount in amounts]
        body = {"customers": [{"customer_id": "a", "orders": orders}], "as_of": "2025-03-01T07:00:00+07:00"}
        return client.post(SCORE, json=body).json()

    assert scores(12.5) == scores("12.50")
    assert scores("12.50")["scores"][0]["cutoff"] == AS_OF
    found = scores("12.50", "twelve", 10**300)
    assert found["quarantined"] == {"orders": {"amount is not an amount": 2}}
    assert found["scores"] == scores("12.50")["scores"]


def test_the_end_of_today_may_be_asked_for(client):
    tomorrow = (datetime.now(UTC) + timedelta(hours=23)).isoformat()
    assert client.post(SCORE, json={**_score_body(), "as_of": tomorrow}).status_code == 200


def test_odd_texts_in_every_column_never_break_the_service(client):
    customers = []
    for text in ("\u0000", "'; DROP TABLE orders; --", "\U0001f600" * 10, "-infinity", "1e308", " "):
        for table, columns in CONTRACT.items():
            row = {c.name: text for c in columns if c.kind != "number" and c.name != "customer_id"}
            customer = {"customer_id": text, "orders": [{"time": "2024-01-05", "amount": 5}]}
            customers.append({**customer, table: [*customer.get(table, []), row]})
    response = client.post(SCORE, json={"customers": customers})
    assert response.status_code == 200, response.text
    assert [row["status"] for row in response.json()["scores"]] == ["ok"] * 6 * len(CONTRACT)


def test_every_column_of_the_contract_may_be_sent_but_the_customer():
    for table, columns in CONTRACT.items():
        assert list(ROW_MODELS[table].model_fields) == [c.name for c in columns if c.name != "customer_id"]


def test_model_says_what_answers(client):
    found = client.get("/v1/model").json()
    assert (found["model_version"], found["stored_scores"]["customers"]) == ("1", 40)
    assert [tier["name"] for tier in found["tiers"]] == ["platinum", "gold", "bronze"]


def test_a_swap_is_adopted_without_a_restart(releases, shop, tmp_path):
    releases.publish(tmp_path, "1")
    client, versions = _client_of(tmp_path), []
    for version in ("1", "2"):
        releases.publish(tmp_path, version)
        rows = client.post(PREDICT, json={"customer_ids": shop.customers}).json()["scores"]
        history = {"customers": [shop.history(shop.customers[0])], "as_of": AS_OF}
        assert client.post(SCORE, json=history).json()["scores"] == rows[:1]
        versions.append({row["model_version"] for row in rows})
    assert versions == [{"1"}, {"2"}]


def test_without_scores_predict_says_how_to_make_them(releases, tmp_path):
    releases.publish(tmp_path, "1", with_scores=False)
    response = _client_of(tmp_path).post(PREDICT, json={"customer_ids": ["a"]})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_scores"
    assert "tiercast score" in response.json()["error"]["message"]


def test_an_unforeseen_error_tells_neither_caller_nor_log_its_text(client, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError(f"could not convert {PLANTED}")

    monkeypatch.setattr("serving.scorer.Scorer.predict", fail)
    response = client.post(PREDICT, json={"customer_ids": [PLANTED]})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert PLANTED not in response.text + caplog.text
    assert "RuntimeError in " in caplog.text


def test_the_search_for_leaks_finds_the_one_that_bentoml_has(caplog):
    """Positive control, and the reason for the mounted app: a native endpoint logs the payload that it refuses."""

    @bentoml.service(name="native")
    class Native:
        @bentoml.api(route="/native")
        def native(self, number: int) -> str:
            return str(number)

    logger = logging.getLogger("bentoml")
    logger.propagate, propagated = True, logger.propagate
    try:
        response = Client(Native.to_asgi()).post("/native", json={"number": PLANTED})
    finally:
        logger.propagate = propagated
    assert response.status_code == 400
    assert PLANTED in caplog.text
