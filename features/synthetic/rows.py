"""The rows that the simulated shop leaves behind: a block of its world as the contract's tables.

What only rows have is drawn here: channels, lateness, promotion codes, order lines, sessions and complaints.
None of it depends on whether a customer dropped out, so an oracle learns nothing new from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.synthetic.truth import HORIZONS, truth_at
from features.synthetic.world import (
    ACQUISITION_CHANNELS,
    CAMPAIGN_DAYS,
    CART_IF_CONVERTING,
    CART_IF_NOT,
    CATEGORIES,
    COMPLAINT_SHARE,
    GENDERS,
    REGIONS,
    START,
    Block,
    Calendar,
    Flags,
    Floats,
    Ints,
)

CHANNELS = ("web", "app", "store")
EVENT_TYPES = ("visit", "product_view", "cart", "email_open", "email_click")
EVENT_CHANNELS = (*CHANNELS, "email")
PRODUCTS_PER_CATEGORY = 120
CATEGORY_PRICE = np.array([1.4, 1.1, 0.6, 1.2, 1.5, 0.8, 0.4, 1.0])
VIEW_SHARE = 0.2
STORE_SHARE = 0.12
UNKNOWN_BIRTH_SHARE, UNKNOWN_GENDER_SHARE = 0.08, 0.05
CAMPAIGN_CODE_SHARE, WELCOME_CODE_SHARE, SALE_CODE_SHARE = 0.35, 0.25, 0.04

_TEXT = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("us")


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, _TEXT) for name in names]


def _numbers(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.float64()) for name in names]


_WHO = [("customer_id", _TEXT), ("time", _TIME), ("known_time", _TIME)]

SCHEMAS: dict[str, pa.Schema] = {
    "customers": pa.schema([*_WHO, ("birth_date", pa.date32()), *_texts("gender", "region", "acquisition_channel")]),
    "orders": pa.schema(
        [("order_id", pa.string()), *_WHO, *_numbers("amount", "discount"), *_texts("channel", "promotion")]
    ),
    "order_lines": pa.schema(
        [
            *(("line_id", pa.string()), ("order_id", pa.string()), *_WHO, *_texts("product_id", "category")),
            *(("quantity", pa.int32()), ("amount", pa.float64())),
        ]
    ),
    "events": pa.schema(
        [
            *(("event_id", pa.string()), *_WHO, *_texts("type", "channel")),
            *(("session_id", pa.string()), ("duration_seconds", pa.int32())),
        ]
    ),
    "feedback": pa.schema([("feedback_id", pa.string()), *_WHO, *_texts("kind"), ("score", pa.int32())]),
    "exposures": pa.schema([("exposure_id", pa.string()), *_WHO, *_texts("campaign", "channel", "arm")]),
    "truth": pa.schema(
        [
            *(*_texts("customer_id"), ("cutoff", _TIME), *_numbers("p_alive")),
            *_numbers(*(f"p_repurchase_{h}d" for h in HORIZONS), *(f"value_{h}d" for h in HORIZONS)),
            *_numbers("episode_rate", "conversion_probability", "dropout_probability"),
            *(*_numbers("order_value_mean", "campaign_effect"), *_texts("arm")),
        ]
    ),
}


@dataclass(frozen=True)
class Scene:
    """What the rows of a block are made from; `counted` are the rows of each table in the blocks before."""

    calendar: Calendar
    block: Block
    counted: Mapping[str, int]
    rng: np.random.Generator

    @property
    def end(self) -> float:
        return float(self.calendar.days)

    def customer_ids(self, customer: Ints) -> pa.DictionaryArray:
        names = numbered("c", self.block.people.numbers, digits=8)
        return pa.DictionaryArray.from_arrays(pa.array(customer, pa.int32()), names)

    def ids(self, table: str, prefix: str, rows: int) -> pa.Array:
        return numbered(prefix, self.counted[table] + np.arange(rows))

    def channels(self, customer: Ints) -> Ints:
        """Codes of `CHANNELS`: each customer's own share of the app, the rest mostly the web."""
        app, drawn = self.block.people.app_share[customer] * (1 - STORE_SHARE), self.rng.random(len(customer))
        return np.where(drawn < app, 1, np.where(drawn < app + STORE_SHARE, 2, 0))

    def known(self, time: Floats, late_share: float, most_days: float) -> Floats:
        """When the shop learned of rows at `time`: at once, but for a share up to `most_days` late."""
        late = self.rng.random(len(time)) < late_share
        return time + np.where(late, self.rng.uniform(1 / 24, most_days, len(time)), 0.0)


@dataclass(frozen=True)
class _Ledger:
    """The rows of orders and refunds by customer and time; `source` is the position in the block's orders."""

    ids: pa.Array
    source: Ints
    refund: Flags
    customer: Ints
    time: Floats
    known: Floats
    cents: Ints


@dataclass(frozen=True)
class _Happened:
    """Events of one type; `session` (number in the block) and `seconds` are -1 where there is none."""

    type: str
    customer: Ints
    time: Floats
    channel: Ints
    session: Ints
    seconds: Ints


def tables_of(scene: Scene) -> dict[str, pa.Table]:
    """The block's rows in every table of `SCHEMAS`, by customer and time, up to the end of the data."""
    ledger = _ledger(scene)
    return {
        "customers": _customers(scene),
        "orders": _orders(scene, ledger),
        "order_lines": _order_lines(scene, ledger),
        "events": _events(scene),
        "feedback": _feedback(scene),
        "exposures": _exposures(scene),
        "truth": _truth(scene),
    }


def numbered(prefix: str, numbers: Ints, digits: int = 10) -> pa.Array:
    """Ids as strings: `prefix` and the number with leading zeros."""
    width = len(prefix) + digits
    text = np.empty((len(numbers), width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode(), np.uint8)
    rest = np.asarray(numbers, np.int64)
    for place in range(width - 1, len(prefix) - 1, -1):
        rest, digit = np.divmod(rest, 10)
        text[:, place] = digit + ord("0")
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(width)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text.ravel()))


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = SCHEMAS[name]
    arrays = [columns[field.name] for field in schema]
    typed = [
        a.cast(f.type) if isinstance(a, pa.Array) else pa.array(a, f.type) for a, f in zip(arrays, schema, strict=True)
    ]
    return pa.Table.from_arrays(typed, schema=schema)


def _who(scene: Scene, customer: Ints, time: Floats, known: Floats) -> dict[str, Any]:
    return {"customer_id": scene.customer_ids(customer), "time": _stamps(time), "known_time": _stamps(known)}


def _stamps(days: Floats) -> pa.Array:
    """Days after `START` as timestamps, cut to whole seconds so that nothing crosses the end of the data."""
    seconds = np.floor(days * 86400).astype(np.int64) * 1_000_000
    return pa.array(START.astype("datetime64[us]").astype(np.int64) + seconds, pa.int64()).view(_TIME)


def _words(codes: NDArray[Any], words: tuple[str, ...] | list[str], missing: Flags | None = None) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32(), mask=missing), pa.array(words, pa.string()))


def _customers(scene: Scene) -> pa.Table:
    people, rng = scene.block.people, scene.rng
    n = len(people.numbers)
    unknown = rng.random(n) < UNKNOWN_BIRTH_SHARE
    born = np.floor(people.birth_day).astype(np.int32) + START.astype("datetime64[D]").astype(np.int32)
    return _table(
        "customers",
        _who(scene, np.arange(n), people.signup, people.signup)
        | {
            "birth_date": pa.array(born, pa.int32(), mask=unknown).view(pa.date32()),
            "gender": _words(people.gender, GENDERS, rng.random(n) < UNKNOWN_GENDER_SHARE),
            "region": _words(people.region, REGIONS),
            "acquisition_channel": _words(people.acquisition_channel, ACQUISITION_CHANNELS),
        },
    )


def _ledger(scene: Scene) -> _Ledger:
    orders = scene.block.orders
    refunded = np.flatnonzero(orders.refunded_at < scene.end)
    source = np.concatenate([np.arange(len(orders.time)), refunded])
    refund = np.arange(len(source)) >= len(orders.time)
    time = np.where(refund, orders.refunded_at[source], orders.time[source])
    by_time = np.lexsort((time, orders.customer[source]))
    source, refund, time = source[by_time], refund[by_time], time[by_time]
    # First orders are known at once, so that every customer of the truth is a customer of the history.
    # A late order is known within a day, before it can be refunded.
    late = np.where(orders.first[source], time, scene.known(time, 0.005, 1.0))
    return _Ledger(
        ids=scene.ids("orders", "o", len(source)),
        source=source,
        refund=refund,
        customer=orders.customer[source],
        time=time,
        known=np.where(refund, scene.known(time, 0.1, 3.0), late),
        cents=np.where(refund, -orders.refund_cents[source], orders.cents[source]),
    )


def _orders(scene: Scene, ledger: _Ledger) -> pa.Table:
    promotion, given = _promotions(scene, ledger)
    channel = scene.channels(scene.block.orders.customer)[ledger.source]
    return _table(
        "orders",
        _who(scene, ledger.customer, ledger.time, ledger.known)
        | {
            "order_id": ledger.ids,
            "amount": ledger.cents / 100,
            "discount": np.rint(ledger.cents * given) / 100,
            "channel": _words(channel, CHANNELS),
            "promotion": promotion,
        },
    )


def _promotions(scene: Scene, ledger: _Ledger) -> tuple[pa.DictionaryArray, Floats]:
    """Promotion codes, and the discount as a share of what was paid; a refund has neither."""
    sends, people, customer = scene.calendar.sends, scene.block.people, ledger.customer
    campaign = np.searchsorted(sends, ledger.time, side="right") - 1
    sent_at = sends[np.maximum(campaign, 0)]
    mailed = (people.consent & people.treated)[customer] & (sent_at >= people.first_order[customer])
    mailed &= (campaign >= 0) & (ledger.time < sent_at + CAMPAIGN_DAYS)
    drawn, first = scene.rng.random(len(customer)), scene.block.orders.first[ledger.source]
    names = [name.replace("mail", "code") for name in _campaign_names(scene.calendar)]
    code = np.where(drawn < SALE_CODE_SHARE, len(names), -1)
    code = np.where(first & (drawn < WELCOME_CODE_SHARE), len(names) + 1, code)
    code = np.where(mailed & (drawn < CAMPAIGN_CODE_SHARE), campaign, code)
    code = np.where(ledger.refund, -1, code)
    # By code; the last, for the code -1, is that of orders without one.
    given = np.array([0.15] * len(names) + [0.25, 0.10, 0.0])[code]
    return _words(code, [*names, "sale", "welcome"], code < 0), given


def _campaign_names(calendar: Calendar) -> list[str]:
    days = (START + np.floor(calendar.sends).astype(np.int64)).astype("datetime64[M]")
    return [f"mail-{month}" for month in days]


def _order_lines(scene: Scene, ledger: _Ledger) -> pa.Table:
    rng, paid = scene.rng, np.flatnonzero(~ledger.refund)
    lines = 1 + np.minimum(rng.poisson(0.6, len(paid)), 4)
    row = np.repeat(paid, lines)
    begins = np.cumsum(lines) - lines
    reached = np.cumsum(scene.block.people.affinity, axis=1)[:, :-1][ledger.customer[row]]
    category = (rng.random(len(row))[:, None] > reached).sum(axis=1)
    # The square makes the first products of a category the popular ones.
    in_category = (rng.random(len(row)) ** 2 * PRODUCTS_PER_CATEGORY).astype(np.int64)
    weight = CATEGORY_PRICE[category] * rng.uniform(0.5, 1.5, len(row))
    names = [f"{word}-{number:03d}" for word in CATEGORIES for number in range(1, PRODUCTS_PER_CATEGORY + 1)]
    return _table(
        "order_lines",
        _who(scene, ledger.customer[row], ledger.time[row], ledger.known[row])
        | {
            "line_id": scene.ids("order_lines", "l", len(row)),
            "order_id": ledger.ids.take(pa.array(row)),
            "product_id": _words(category * PRODUCTS_PER_CATEGORY + in_category, names),
            "category": _words(category, CATEGORIES),
            "quantity": 1 + (rng.random(len(row)) < 0.15).astype(np.int32),
            "amount": _shared_out(ledger.cents[paid], begins, lines, weight) / 100,
        },
    )


def _shared_out(cents: Ints, begins: Ints, lines: Ints, weight: Floats) -> Ints:
    """Each order's cents over its lines by weight; the first line takes what rounding leaves."""
    if not len(cents):
        return np.zeros(0, np.int64)
    shares = np.repeat(cents / np.add.reduceat(weight, begins), lines) * weight
    whole = np.floor(shares).astype(np.int64)
    whole[begins] += cents - np.add.reduceat(whole, begins)
    return whole


def _events(scene: Scene) -> pa.Table:
    happened = [*_sessions(scene), *_mail_events(scene)]
    customer, time, channel, session, seconds = (
        np.concatenate([getattr(events, name) for events in happened])
        for name in ("customer", "time", "channel", "session", "seconds")
    )
    kind = np.repeat([EVENT_TYPES.index(events.type) for events in happened], [len(events.time) for events in happened])
    rows = np.flatnonzero(time < scene.end)
    rows = rows[np.lexsort((time[rows], customer[rows]))]
    in_session, timed = session[rows] >= 0, seconds[rows] >= 0
    sessions = numbered("s", scene.counted["sessions"] + session[rows])
    return _table(
        "events",
        _who(scene, customer[rows], time[rows], scene.known(time[rows], 0.03, 3.0))
        | {
            "event_id": scene.ids("events", "e", len(rows)),
            "type": _words(kind[rows], EVENT_TYPES),
            "channel": _words(channel[rows], EVENT_CHANNELS),
            "session_id": pc.if_else(pa.array(in_session), sessions, pa.scalar(None, pa.string())),
            "duration_seconds": pa.array(seconds[rows], pa.int32(), mask=~timed),
        },
    )


def _sessions(scene: Scene) -> Iterator[_Happened]:
    """The visit of each signup and all later ones, with the products looked at and the carts."""
    people, visits, rng = scene.block.people, scene.block.visits, scene.rng
    n = len(people.numbers)
    signup_cart = rng.random(n) < np.where(people.lead, CART_IF_NOT, CART_IF_CONVERTING)
    customer = np.concatenate([np.arange(n), visits.customer])
    time = np.concatenate([people.signup, visits.time])
    cart = np.concatenate([signup_cart, visits.cart])
    view = rng.random(len(time)) < VIEW_SHARE
    channel, session = scene.channels(customer), np.arange(len(time))
    seconds = np.rint(rng.lognormal(4.3, 0.7, len(time)) + 90 * view + 300 * cart).astype(np.int64)
    yield _Happened("visit", customer, time, channel, session, seconds)
    for kind, rows, begin, end in (("product_view", view, 10, 90), ("cart", cart, 91, 300)):
        later = time[rows] + rng.uniform(begin, end, rows.sum()) / 86400
        yield _Happened(kind, customer[rows], later, channel[rows], session[rows], np.full(len(later), -1))


def _mail_events(scene: Scene) -> Iterator[_Happened]:
    mails = scene.block.mails
    for kind, rows in (("email_open", np.isfinite(mails.opened_at)), ("email_click", mails.clicked)):
        none = np.full(int(rows.sum()), -1)
        # A click follows its opening at once, with no moment between them at which the data could end.
        yield _Happened(kind, mails.customer[rows], mails.opened_at[rows], np.full(len(none), 3), none, none)


def _feedback(scene: Scene) -> pa.Table:
    orders, rng = scene.block.orders, scene.rng
    rated = np.flatnonzero(orders.rated_at < scene.end)
    cross = rated[(orders.satisfaction[rated] <= 2) & (rng.random(len(rated)) < COMPLAINT_SHARE)]
    source = np.concatenate([rated, cross])
    time = np.concatenate([orders.rated_at[rated], orders.rated_at[cross] + rng.uniform(0.02, 2.0, len(cross))])
    complaint = np.arange(len(source)) >= len(rated)
    rows = np.flatnonzero(time < scene.end)
    rows = rows[np.lexsort((time[rows], orders.customer[source[rows]]))]
    source, time, complaint = source[rows], time[rows], complaint[rows]
    return _table(
        "feedback",
        _who(scene, orders.customer[source], time, scene.known(time, 0.1, 3.0))
        | {
            "feedback_id": scene.ids("feedback", "f", len(source)),
            "kind": _words(complaint.astype(np.int32), ["rating", "complaint"]),
            "score": pa.array(orders.satisfaction[source], pa.int32(), mask=complaint),
        },
    )


def _exposures(scene: Scene) -> pa.Table:
    mails = scene.block.mails
    time, treated = scene.calendar.sends[mails.send], scene.block.people.treated[mails.customer]
    return _table(
        "exposures",
        _who(scene, mails.customer, time, time)
        | {
            "exposure_id": scene.ids("exposures", "x", len(time)),
            "campaign": _words(mails.send, _campaign_names(scene.calendar)),
            "channel": _words(np.zeros(len(time), np.int32), ["email"]),
            "arm": _words(treated.astype(np.int32), ["control", "treated"]),
        },
    )


def _truth(scene: Scene) -> pa.Table:
    truth, people = truth_at(scene.calendar, scene.block, scene.calendar.days), scene.block.people
    who = truth.customer
    arm = np.where(people.consent, np.where(people.treated, 2, 1), 0)[who]
    return _table(
        "truth",
        {f"p_repurchase_{h}d": truth.p_repurchase[:, k] for k, h in enumerate(HORIZONS)}
        | {f"value_{h}d": truth.value[:, k] for k, h in enumerate(HORIZONS)}
        | {
            "customer_id": scene.customer_ids(who),
            "cutoff": _stamps(np.full(len(who), scene.end)),
            "p_alive": truth.p_alive,
            "episode_rate": people.episode_rate[who],
            "conversion_probability": people.conversion[who],
            "dropout_probability": truth.dropout_mean,
            "order_value_mean": people.order_value[who],
            "campaign_effect": people.campaign_effect[who],
            "arm": _words(arm, ["none", "control", "treated"]),
        },
    )
