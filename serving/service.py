"""The service: HTTP in front of the scorer, run by BentoML.

The endpoints are a mounted Starlette app, not `@bentoml.api` methods: BentoML wraps a body by its parameter's name
and writes the caller's payload to the log when validation fails.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from features.errors import Refused
from serving.bodies import RequestRefused, parse_body, read_body
from serving.launch import WORKSPACE_VARIABLE
from serving.schemas import PredictRequest, ScoreRequest, utc
from serving.score_store import ScoresUnusable
from serving.scorer import LiveScorer, Scorer

TIMEOUT_SECONDS = 55
logger = logging.getLogger("bentoml.tiercast.access")

# Look-ups have threads of their own: they take microseconds and must not wait behind the scoring of histories.
_look_ups = ThreadPoolExecutor(2, "look-up")
_scorings = ThreadPoolExecutor(2, "scoring")


def answer_predict(scorer: Scorer, body: bytes) -> dict[str, Any]:
    """`{"customer_ids": [...]}` -> `{"scores": [...]}`, a row per id."""
    return {"scores": scorer.predict(parse_body(PredictRequest, body).customer_ids)}


def answer_score(scorer: Scorer, body: bytes) -> dict[str, Any]:
    """`{"customers": [...], "as_of": ...}` -> `{"scores": [...], "quarantined": {...}}`, a row per customer."""
    asked = parse_body(ScoreRequest, body)
    customers = [customer.model_dump(exclude_none=True) for customer in asked.customers]
    scored = scorer.score(customers, utc(asked.as_of, scorer.settings.zone))
    return {"scores": scored.rows, "quarantined": scored.quarantined}


def answer_model(scorer: Scorer, _body: bytes) -> dict[str, Any]:
    """Nothing -> what answers here: version, horizons, tiers and their bounds, the age of the stored scores."""
    return scorer.describe()


Answer = Callable[[Scorer, bytes], dict[str, Any]]


def _endpoint(answer: Answer, pool: ThreadPoolExecutor) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        response = await _respond(answer, pool, request)
        took_ms = 1000 * (time.perf_counter() - started)
        logger.info("%s %s %d %.1f ms", request.method, request.scope["path"], response.status_code, took_ms)
        return response

    return endpoint


async def _respond(answer: Answer, pool: ThreadPoolExecutor, request: Request) -> Response:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            body = await read_body(request)
            live: LiveScorer = request.app.state.live
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, lambda: JSONResponse(answer(live.current(), body)))
    except Exception as error:
        return _refusal(error).answer()


def _refusal(error: Exception) -> RequestRefused:
    """What the caller is told; of an error that we did not word ourselves neither they nor the log get the text."""
    match error:
        case RequestRefused():
            return error
        case ScoresUnusable():
            return RequestRefused(503, "no_scores", str(error))
        case TimeoutError():
            return RequestRefused(504, "timeout", f"no answer within {TIMEOUT_SECONDS} seconds; send fewer customers")
    # An engine's message quotes the values that it could not read.
    logger.error("%s in %s", type(error).__name__, _place(error))
    if isinstance(error, Refused):
        return RequestRefused(422, "refused", "these histories cannot be scored by the release that answers")
    return RequestRefused(500, "internal", "the request could not be answered; the log has the place")


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "an unknown place"


_routes = [
    Route("/v1/predict", _endpoint(answer_predict, _look_ups), methods=["POST"]),
    Route("/v1/score", _endpoint(answer_score, _scorings), methods=["POST"]),
    Route("/v1/model", _endpoint(answer_model, _look_ups), methods=["GET"]),
]


async def _no_such_route(request: Request) -> Response:
    """The one shape of errors for every other path and method; BentoML would answer in plain text."""
    for route in _routes:
        if route.path == request.scope["path"]:
            wanted = " or ".join(sorted(route.methods or ()))
            return RequestRefused(405, "method_not_allowed", f"this path takes {wanted}").answer()
    known = ", ".join(route.path for route in _routes)
    return RequestRefused(404, "not_found", f"no such path; there are {known}").answer()


_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = Starlette(routes=[*_routes, Route("/{path:path}", _no_such_route, methods=_METHODS)])


@bentoml.service(
    name="tiercast",
    workers=1,
    traffic={"timeout": 60},
    # BentoML's access log and metrics repeat the caller's path and content type, which may be anything; ours do not.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    monitoring={"enabled": False},
)
@bentoml.asgi_app(app)
class Tiercast:
    """Scores and tiers of customers, from the workspace in `TIERCAST_WORKSPACE` (default: ./workspace)."""

    def __init__(self) -> None:
        live = LiveScorer(Path(os.environ.get(WORKSPACE_VARIABLE, "workspace")))
        live.current().score([])  # the first call of the engine costs a second; better now than in a request
        app.state.live = live
        # What is loaded now stays: collections of it would stall requests.
        gc.collect()
        gc.freeze()
