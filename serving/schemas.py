"""What a request may look like: strict pydantic models, their rows made from the data contract itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from features.tables import CONTRACT, Kind

MAX_IDS, MAX_CUSTOMERS, MAX_ROWS = 10_000, 1_000, 10_000
MAX_ID, MAX_TEXT, MAX_NUMBER = 128, 1_000, 64
# A batch is made for the end of its last day, and the same moment may be asked for here.
MAX_AHEAD = timedelta(days=1)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def _read_amount(value: Any) -> int | float | str:
    """Money as JSON has it; whether a text is an amount is for the engine to say, row by row."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if number or (isinstance(value, str) and len(value) <= MAX_NUMBER):
        return cast("int | float | str", value)
    raise PydanticCustomError("amount", "must be a number or a decimal text")


def _read_moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        latest = datetime.now(UTC) + MAX_AHEAD
        if datetime(1970, 1, 2, tzinfo=UTC) <= (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) <= latest:
            return moment
    except (TypeError, ValueError, OverflowError):
        raise PydanticCustomError("moment", "must be an ISO 8601 date and time") from None
    raise PydanticCustomError("moment", "must lie between 1970 and one day from now")


CustomerId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]
Amount = Annotated[
    Any,
    BeforeValidator(_read_amount),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "maxLength": MAX_NUMBER}]}),
]
Moment = Annotated[datetime, BeforeValidator(_read_moment)]
# Times stay text here: the engine reads them as it reads those of a file, and a bad one costs its row, not the request.
_Time = Annotated[
    str,
    StringConstraints(max_length=MAX_NUMBER),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": MAX_NUMBER}),
]
_TYPES: dict[Kind, Any] = {
    "id": CustomerId,
    "text": Annotated[str, StringConstraints(max_length=MAX_TEXT)],
    "time": _Time,
    "date": Annotated[
        str, StringConstraints(max_length=MAX_NUMBER), WithJsonSchema({"type": "string", "format": "date"})
    ],
    "money": Amount,
    "number": float,
}


def _row_model(table: str) -> type[BaseModel]:
    """The row of one contract table without its customer_id: the customer is the one that the row is sent under."""
    columns = [column for column in CONTRACT[table] if column.name != "customer_id"]
    fields: Any = {c.name: (_TYPES[c.kind] | None, Field(default=None, description=c.meaning)) for c in columns}
    return create_model(f"{table.title().replace('_', '')}Row", __base__=_Strict, **fields)


ROW_MODELS = {table: _row_model(table) for table in CONTRACT}


def _history_model() -> type[BaseModel]:
    fields: Any = {
        table: (Annotated[list[model], Field(max_length=MAX_ROWS)], Field(default=[]))  # type: ignore[valid-type]
        for table, model in ROW_MODELS.items()
    }
    return create_model("CustomerHistory", __base__=_Strict, customer_id=(CustomerId, ...), **fields)


if TYPE_CHECKING:
    CustomerHistory = BaseModel
else:
    CustomerHistory = _history_model()


class PredictRequest(_Strict):
    """Whose stored scores are wanted."""

    customer_ids: Annotated[list[CustomerId], Field(min_length=1, max_length=MAX_IDS)]


class ScoreRequest(_Strict):
    """Whose histories are to be scored, and as of when; a time without an offset is the shop's."""

    customers: Annotated[list[CustomerHistory], Field(min_length=1, max_length=MAX_CUSTOMERS)]
    as_of: Moment | None = None


def answer_model(columns: list[str]) -> type[BaseModel]:
    """The row of an answer with these score columns (`Release.columns`), numbers missing unless the status is `ok`."""
    texts = ("cutoff", "tier", "model_version", "basis")
    fields: Any = {column: ((str if column in texts else float) | None, ...) for column in columns[1:]}
    return create_model("ScoreRow", __base__=_Strict, customer_id=(str, ...), status=(str, ...), **fields)


# What is wrong with a request, without anything that was in it

_KNOWN_NAMES = {"customer_ids", "customers", "as_of"} | {
    name for table, columns in CONTRACT.items() for name in (table, *(column.name for column in columns))
}
# Kinds of errors whose pydantic text holds nothing of the request.
_SAFE = (
    "missing", "amount", "moment", "string_type", "string_too_short", "string_too_long", "float_type", "finite_number",
    "list_type", "too_short", "too_long", "model_type",
)  # fmt: skip


def show_problem(error: ErrorDetails) -> tuple[str, str]:
    """(field, message) of one pydantic error; a key that is not ours is not repeated: it may be anything."""
    field = ".".join(_known_parts(error["loc"]))
    if error["type"] == "extra_forbidden":
        return field, "holds a key that is not known here"
    return field, error["msg"] if error["type"] in _SAFE else "is not valid"


def _known_parts(loc: tuple[int | str, ...]) -> Iterator[str]:
    for part in loc:
        if isinstance(part, int) or part in _KNOWN_NAMES:
            yield str(part)


def utc(moment: datetime | None, zone: Any) -> datetime | None:
    """A moment in UTC without tzinfo, as the engine takes it; one without an offset is in `zone`."""
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC).replace(tzinfo=None)
