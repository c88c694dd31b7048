"""One real server, started and stopped as the command line does it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys

import pytest

from features.errors import BundleError, Refused, ReleaseNotFound
from serving.launch import free_port, running, serve, wait_until_ready

PLANTED = ("jane.doe@example.com", "customer-secret-77", "Bearer-token-4711")


def test_nothing_starts_without_a_champion(tmp_path):
    with pytest.raises(ReleaseNotFound, match="no champion"):
        serve(tmp_path)


def test_nothing_starts_from_a_changed_release(releases, tmp_path):
    releases.publish(tmp_path, "1")
    model = next((tmp_path / "releases").glob("*/ltv*.txt"))
    model.write_text(model.read_text().replace("leaf_value=", "leaf_value=9", 1))
    with pytest.raises(BundleError, match="changed since it was registered"):
        serve(tmp_path)


def test_a_taken_port_is_refused_and_another_is_found(workspace):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port}"):
            serve(workspace, port=port)
        assert free_port(port) != port


def test_waiting_ends_when_the_process_does():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(Refused, match="ended with code 3"):
        wait_until_ready("http://127.0.0.1:9", process)


def test_waiting_has_an_end():
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with running(sleeper), pytest.raises(Refused, match=r"not ready within 0\.3 seconds"):
        wait_until_ready(f"http://127.0.0.1:{free_port(3000)}", sleeper, timeout_seconds=0.3)
    assert sleeper.poll() is not None


@pytest.fixture(scope="module")
def served(releases, shop, tmp_path_factory):
    """Answers of a real server to good and bad requests, and everything it wrote."""
    workspace = tmp_path_factory.mktemp("served")
    releases.publish(workspace, "1")
    port = free_port(3000)
    with (workspace / "log").open("wb") as log, running(serve(workspace, "localhost", port, log)) as process:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        answers = [_ask(port, *request) for request in _requests(shop)]
        probes = [_ask(port, "GET", path, b"")[0] for path in ("/livez", "/readyz")]
    return workspace, answers, probes, (workspace / "log").read_text(), process.returncode


def _requests(shop):
    mail, customer_id, _ = PLANTED
    history = {**shop.history(shop.customers[0]), "customer_id": customer_id}
    bodies = [
        ("/v1/predict", {"customer_ids": [mail, customer_id, shop.customers[0]]}),
        ("/v1/predict", {"customer_ids": [mail, 5]}),
        ("/v1/predict", {"customer_ids": [mail], mail: customer_id}),
        ("/v1/predict", {mail: []}),
        ("/v1/score", {"customers": [history], "as_of": "2025-03-01T00:00:00Z"}),
        ("/v1/score", {"customers": [{"customer_id": mail, "orders": [{"time": mail, "amount": mail}]}]}),
        ("/v1/score", {"customers": [{"customer_id": mail, "orders": [{"time": 5, "amount": [mail]}]}]}),
        ("/v1/score", {"customers": [{**history, mail: mail}]}),
        ("/v1/score", {"customers": mail, "as_of": mail}),
        (f"/v1/predict/{customer_id}", {}),
        (f"/v1/model?who={mail}", {}),
        (f"/{mail}", {}),
    ]
    yield from (("POST", path, json.dumps(body).encode()) for path, body in bodies)
    yield "POST", "/v1/predict", f'{{"customer_ids": ["{mail}"'.encode()
    yield "POST", "/v1/predict", mail.encode()
    yield "GET", f"/v1/model?who={mail}", b""


def _ask(port: int, method: str, path: str, body: bytes) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": f"application/json; who={PLANTED[1]}", "Authorization": PLANTED[2]}
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_good_requests_are_answered_and_bad_ones_refused(served):
    _, answers, probes, _, _ = served
    assert [status for status, _ in answers] == [
        200,
        422,
        422,
        422,
        200,
        200,
        422,
        422,
        422,
        404,
        405,
        404,
        400,
        400,
        200,
    ]
    assert probes == [200, 200]


def test_nothing_personal_reaches_the_log(served):
    _, answers, _, log, _ = served
    lines = [line for line in log.splitlines() if "/v1/" in line]
    print(f"{len(answers)} requests, {len(lines)} lines in the log about them")
    # Positive control: the log that is searched is the one that these requests were written to.
    assert len(lines) == sum(status != 404 and status != 405 for status, _ in answers) > 0
    assert {planted: log.count(planted) for planted in PLANTED} == dict.fromkeys(PLANTED, 0)
    assert "Traceback" not in log


def test_nothing_personal_is_in_an_error(served):
    _, answers, _, _, _ = served
    errors = [text for status, text in answers if status >= 400]
    print(f"{len(errors)} errors")
    assert len(errors) == 11
    assert {planted: sum(planted in text for text in errors) for planted in PLANTED} == dict.fromkeys(PLANTED, 0)


def test_the_server_ends_when_asked_and_keeps_to_its_workspace(served):
    workspace, _, _, _, code = served
    assert code == 0
    assert {path.name for path in workspace.iterdir()} == {
        "bentoml",
        "champion.json",
        "log",
        "releases",
        "scores.parquet",
    }
