"""Request bodies in, answers out: limits, validation, and errors that repeat nothing of what was sent."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from features.errors import Refused
from serving.schemas import show_problem

MAX_BODY_BYTES = 32 * 2**20

Model = TypeVar("Model", bound=BaseModel)


class RequestRefused(Refused):
    """A request that is not answered: HTTP status, a code for programs, a message for people, the field at fault."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field

    def answer(self) -> JSONResponse:
        """The one shape of every error."""
        error = {"code": self.code, "message": self.message} | ({"field": self.field} if self.field else {})
        return JSONResponse({"error": error}, self.status)


async def read_body(request: Request) -> bytes:
    """The whole body, counted as it arrives; raises RequestRefused (413) beyond MAX_BODY_BYTES."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise RequestRefused(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES:,} bytes")
    except ClientDisconnect:
        raise RequestRefused(400, "cut_off", "the connection ended before the body did") from None
    return bytes(body)


def parse_body(model: type[Model], body: bytes) -> Model:
    """The body as `model`; raises RequestRefused: 400 when it is not JSON, 422 when it is not what the model wants."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
    # Outside the handler: the ValidationError holds the payload and must not travel along as a cause.
    if problems[0]["type"] == "json_invalid":
        raise RequestRefused(400, "not_json", "the body is not JSON (UTF-8, without NaN and Infinity)")
    field, message = show_problem(problems[0])
    more = f" ({len(problems) - 1:,} more problems)" if len(problems) > 1 else ""
    raise RequestRefused(422, "invalid_request", f"{field or 'the body'}: {message}{more}", field)
