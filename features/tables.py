"""The data contract: six tables with fixed columns, and the one door of time, `Tables.before(cutoff)`."""

from __future__ import annotations

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import ibis
import ibis.expr.types as ir

from features.errors import CutoffOutsideData, UsageRefused

Kind = Literal["id", "text", "time", "date", "money", "number"]

DAY_US = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Column:
    """One column of the contract. Money is held in minor units of the shop's currency, as whole numbers."""

    name: str
    kind: Kind
    meaning: str
    required: bool = False


def _columns(*own: Column) -> tuple[Column, ...]:
    """`own` after the columns that every table has."""
    return (
        Column("customer_id", "id", "who", required=True),
        Column("time", "time", "when it happened", required=True),
        Column("known_time", "time", "when the shop learned of it; default: time"),
        *own,
    )


CONTRACT: dict[str, tuple[Column, ...]] = {
    "customers": _columns(
        Column("birth_date", "date", "date of birth"),
        Column("gender", "text", "as declared"),
        Column("region", "text", "where the customer lives"),
        Column("acquisition_channel", "text", "how the customer was won"),
    ),
    "orders": _columns(
        Column("order_id", "id", "the order; default: the row number"),
        Column("amount", "money", "paid, net of discount; negative is a refund, a row of its own", required=True),
        Column("discount", "money", "given away on this order"),
        Column("channel", "text", "where it was bought: web, app, store"),
        Column("promotion", "text", "promotion code"),
    ),
    "order_lines": _columns(
        Column("line_id", "id", "the line; default: the row number"),
        Column(
            "order_id",
            "id",
            "the order it belongs to, which gives customer and time where they are absent",
            required=True,
        ),
        Column("product_id", "text", "what"),
        Column("category", "text", "kind of product"),
        Column("quantity", "number", "pieces; negative when returned"),
        Column("amount", "money", "paid for the line"),
    ),
    "events": _columns(
        Column("event_id", "id", "the event; default: the row number"),
        Column("type", "text", "visit, product_view, cart, email_open, ...", required=True),
        Column("channel", "text", "web, app, store"),
        Column("session_id", "text", "the visit it belongs to"),
        Column("duration_seconds", "number", "how long it took"),
    ),
    "feedback": _columns(
        Column("feedback_id", "id", "the answer; default: the row number"),
        Column("kind", "text", "rating, nps, csat, review, complaint", required=True),
        Column("score", "number", "on the scale of its kind"),
    ),
    "exposures": _columns(
        Column("exposure_id", "id", "the contact; default: the row number"),
        Column("campaign", "text", "which campaign"),
        Column("channel", "text", "email, push, sms, social"),
        Column("arm", "text", "treated or control"),
    ),
}
# The column that tells two rows of a table apart; customers may have several rows, the latest known one counts.
ROW_ID = {
    "orders": "order_id",
    "order_lines": "line_id",
    "events": "event_id",
    "feedback": "feedback_id",
    "exposures": "exposure_id",
}
COLUMN_NAMES = {table: tuple(column.name for column in columns) for table, columns in CONTRACT.items()}


@dataclass(frozen=True)
class TableIntake:
    """What became of the rows of one table: `rows_in == accepted + sum(quarantined.values())`.

    `quarantined` maps a reason to a number of rows, `first_rows` the same reason to the first row: 1 is the first
    after the header, rows that `filter` leaves out count, with `group_by` groups are counted. Times are UTC, of the
    accepted rows, None when there are none.
    """

    table: str
    rows_in: int
    accepted: int
    quarantined: Mapping[str, int]
    first_rows: Mapping[str, int]
    first_time: datetime | None
    last_time: datetime | None
    unused_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """What the shop knew at one cutoff: every table cut to `time < cutoff and known_time <= cutoff`.

    Each table has one more column, `age_us`: microseconds from the row's time to the cutoff, at least 1.
    """

    currency_digits: int
    tables: Mapping[str, ir.Table]

    @property
    def customers(self) -> ir.Table:
        return self.tables["customers"]

    @property
    def orders(self) -> ir.Table:
        return self.tables["orders"]

    @property
    def events(self) -> ir.Table:
        return self.tables["events"]

    @property
    def feedback(self) -> ir.Table:
        return self.tables["feedback"]

    @property
    def exposures(self) -> ir.Table:
        return self.tables["exposures"]

    @property
    def paid_orders(self) -> ir.Table:
        """Orders with a positive amount; refunds and free orders left out."""
        return self.orders.filter(self.orders.amount > 0)

    def money(self, minor_units: ir.NumericValue) -> ir.FloatingValue:
        """Whole minor units as currency."""
        return minor_units.cast("float64") / float(10**self.currency_digits)


@dataclass(frozen=True)
class Tables:
    """A shop's accepted rows in the engine, all times UTC, and what became of the rows that came in.

    A table that the shop does not have is here too, empty; `present` names those it has. `start` is the time of the
    first paid order, `end` the shop's first midnight after the last order or refund: what happened later cannot be
    known, whatever other tables hold. Without a paid order they are equal.
    """

    tables: Mapping[str, ir.Table]
    present: frozenset[str]
    currency: str
    currency_digits: int
    timezone: str
    intake: tuple[TableIntake, ...]
    start: datetime
    end: datetime

    def before(self, cutoff: datetime) -> History:
        """What was known at `cutoff` (UTC, without tzinfo): the only way from tables to features and targets.

        Raises UsageRefused for a cutoff with a time zone, which the engine would compare in the shop's local time.
        """
        require_utc(cutoff)
        return known_at(ibis.timestamp(cutoff), self.tables, self.currency_digits)

    def require_inside(self, cutoff: datetime) -> None:
        """Raises CutoffOutsideData unless some paid order lies before `cutoff` and the data reach up to it."""
        if self.start < cutoff <= self.end:
            return
        asked, start, end = (show_local(moment, self.timezone) for moment in (cutoff, self.start, self.end))
        raise CutoffOutsideData(
            f"the cutoff {asked} is outside the data: orders start {start} and end {end}.\n"
            "  Choose --as-of after the first and not after the second."
        )


def known_at(cutoff: ir.TimestampValue, tables: Mapping[str, ir.Table], currency_digits: int) -> History:
    """The history of `tables` at `cutoff`, a moment in UTC: the one place where time is cut."""
    cut = {}
    for name, table in tables.items():
        known = table.filter((table.time < cutoff) & (table.known_time <= cutoff))
        cut[name] = known.mutate(age_us=cutoff.delta(known.time, unit="microsecond"))
    return History(currency_digits, cut)


def require_utc(cutoff: datetime) -> None:
    """Raises UsageRefused for a cutoff with a time zone, which the engine would compare in the shop's local time."""
    if cutoff.tzinfo is not None:
        raise UsageRefused(f"the cutoff {cutoff.isoformat()} has a time zone; give it in UTC, without tzinfo")


def show_time(moment: datetime) -> str:
    """A UTC moment for people: the date alone at midnight."""
    return moment.strftime(
        "%Y-%m-%d" if moment == moment.replace(hour=0, minute=0, second=0, microsecond=0) else "%Y-%m-%d %H:%M:%S"
    )


def show_local(moment: datetime, timezone: str) -> str:
    """A UTC moment for people, in the shop's time zone."""
    return show_time(moment.replace(tzinfo=UTC).astimezone(zoneinfo.ZoneInfo(timezone)).replace(tzinfo=None))


def days(count: float) -> timedelta:
    """`count` days of 24 hours; the only day that windows and horizons know."""
    return timedelta(days=count)
