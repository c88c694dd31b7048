"""The simulated shop as closed-form processes: who its customers are and what happens to them.

Everything is vectorised over a block of customers. All times are float days after `START`. Each customer is
alive from the first order until a dropout coin falls at one of the orders; the rest follows from that one
hidden moment:

- visits are a Poisson process of rate `episode_rate * season`, higher in the week after an e-mail campaign
  for treated customers; a customer who dropped out makes a visit with `DEAD_VISITS` times the rate;
- a visit of an alive customer leads to an order with probability `conversion`, after a truncated exponential
  delay, if the customer is still alive then; a cart is likelier on such a visit;
- every order has a satisfaction from 1 to 5 which moves its dropout coin and is sometimes given as a rating;
- e-mails are opened and clicked more by the alive; refunds, amounts and ratings do not depend on being alive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

START = np.datetime64("2023-01-01")
FUTURE_DAYS = 400
GENDERS = ("female", "male", "diverse")
REGIONS = ("north", "east", "south", "west", "centre", "abroad")
ACQUISITION_CHANNELS = ("search", "social", "marketplace", "referral", "newsletter", "direct")
CATEGORIES = ("home", "kitchen", "beauty", "fashion", "sports", "toys", "books", "garden")

WEEKDAY = np.array([0.96, 0.92, 0.94, 0.98, 1.06, 1.14, 1.00])
HOUR = np.array([5, 3, 2, 1, 1, 2, 5, 9, 13, 15, 16, 17, 19, 18, 16, 16, 17, 19, 22, 26, 28, 25, 18, 11], float)
TREND_PER_YEAR = 0.04
SEND_DAY, SEND_HOUR, CAMPAIGN_DAYS = 5, 8, 7

CONVERSION_DELAY, CONVERSION_DELAY_MAX = 3.0, 21.0
CART_IF_CONVERTING, CART_IF_NOT = 0.45, 0.10
DEAD_VISITS = 0.30
OPEN_DELAY, OPEN_DELAY_MAX = 0.3, 2.0
DEAD_OPENS = 0.50
CLICK_IF_ALIVE, CLICK_IF_DEAD = 0.30, 0.15

DROPOUT_BY_SATISFACTION = np.array([6.0, 3.5, 1.5, 0.75, 0.45])
FIRST_ORDER_DROPOUT = 8.0
DROPOUT_MAX = 0.9
RATING_SHARE, RATING_DELAY = 0.3, (0.5, 10.0)
COMPLAINT_SHARE = 0.5

AMOUNT_SHAPE, AMOUNT_LEAST = 4.0, 100
REFUND_DELAY = (1.0, 30.0)
FULL_REFUND_SHARE, PART_REFUND = 0.6, (0.2, 0.8)
REFUND_MEAN_PART = FULL_REFUND_SHARE + (1 - FULL_REFUND_SHARE) * sum(PART_REFUND) / 2

# Mean and spread of the latents' logarithms (the conversion's log odds), before attributes shift them.
EPISODE_RATE, CONVERSION, DROPOUT, ORDER_VALUE = (-3.6, 1.25), (-0.25, 0.3), (-4.0, 0.45), (3.55, 0.45)
# A skewed rate: many customers come seldom, and a few keep the shop busy and stay.
BUSY_SHAPE, DROPOUT_OF_BUSY = 0.8, -0.6
EPISODE_RATE_MAX, CAMPAIGN_EFFECT_MAX = 0.7, 1.5

LEAD_SHARE, CONTROL_SHARE, CONSENT_SHARE = 0.04, 0.2, 0.7


@dataclass(frozen=True)
class Calendar:
    """What all share: the hourly grid (days), visits per unit of rate up to each hour, the e-mail sends."""

    days: int
    grid: Floats
    visits: Floats
    campaign_visits: Floats
    sends: Floats


@dataclass(frozen=True)
class People:
    """The customers of a block, one entry each: their numbers in the shop, attributes and latents."""

    numbers: Ints
    signup: Floats
    first_order: Floats
    lead: Flags
    birth_day: Floats
    gender: Ints
    region: Ints
    acquisition_channel: Ints
    episode_rate: Floats
    conversion: Floats
    dropout: Floats
    order_value: Floats
    satisfaction: Floats
    campaign_effect: Floats
    consent: Flags
    treated: Flags
    open_rate: Floats
    refund_rate: Floats
    app_share: Floats
    affinity: Floats


@dataclass(frozen=True)
class Visits:
    """Visits since the first order, by customer (place in the block) and time; `ordered_at` inf if never."""

    customer: Ints
    time: Floats
    cart: Flags
    ordered_at: Floats


@dataclass(frozen=True)
class Orders:
    """Paid orders by customer and time; amounts in cents; `rated_at` and `refunded_at` inf if never."""

    customer: Ints
    time: Floats
    first: Flags
    satisfaction: Ints
    cents: Ints
    rated_at: Floats
    refunded_at: Floats
    refund_cents: Ints


@dataclass(frozen=True)
class Mails:
    """Campaign e-mails by customer and send (index into `Calendar.sends`); the control arm got none."""

    customer: Ints
    send: Ints
    opened_at: Floats
    clicked: Flags


@dataclass(frozen=True)
class Block:
    """A block of customers and all that happens to them; `dropped_at` is hidden, inf while alive."""

    people: People
    visits: Visits
    orders: Orders
    mails: Mails
    dropped_at: Floats


def make_calendar(months: int) -> Calendar:
    """The calendar of a shop of `months` calendar months, with `FUTURE_DAYS` more for the truth."""
    days = int(_month_starts(months + 1)[-1])
    grid = np.arange((days + FUTURE_DAYS) * 24 + 1) / 24
    day = np.arange(days + FUTURE_DAYS)
    # The shop opens on a Sunday, the last of WEEKDAY.
    intensity = (_season(day.astype(float)) * WEEKDAY[(day + 6) % 7])[:, None] * (HOUR / HOUR.mean())
    per_hour = intensity.ravel() / 24
    sends = _sends(days + FUTURE_DAYS)
    since = np.searchsorted(sends, grid[:-1], side="right") - 1
    running = (since >= 0) & (grid[:-1] - sends[np.maximum(since, 0)] < CAMPAIGN_DAYS)
    return Calendar(days, grid, _cumulated(per_hour), _cumulated(per_hour * running), sends)


def draw_block(calendar: Calendar, numbers: Ints, rng: np.random.Generator) -> Block:
    """Everything that happens to the customers `numbers` until the shop's data end."""
    people = draw_people(calendar, numbers, rng)
    visits = _candidate_visits(calendar, people, rng)
    orders, dropped_at = _orders_until_dropout(calendar, people, visits, rng)
    visits = _thinned(visits, dropped_at, rng)
    return Block(people, visits, orders, _mails(calendar, people, dropped_at, rng), dropped_at)


def draw_people(calendar: Calendar, numbers: Ints, rng: np.random.Generator) -> People:
    """Attributes and latents; attributes carry signal because they shift the latents."""
    n = len(numbers)
    channel = rng.choice(len(ACQUISITION_CHANNELS), n, p=[0.30, 0.22, 0.16, 0.11, 0.08, 0.13])
    region = rng.choice(len(REGIONS), n, p=[0.22, 0.14, 0.25, 0.2, 0.14, 0.05])
    gender = rng.choice(len(GENDERS), n, p=[0.52, 0.45, 0.03])
    age = np.clip(rng.normal(41, 14, n), 18, 88)
    open_minded, fickle, rich = rng.normal(0, 1, (3, n))
    busy = (rng.standard_gamma(BUSY_SHAPE, n) - BUSY_SHAPE) / BUSY_SHAPE**0.5
    signup = _arrivals(calendar, n, rng)
    effect = np.where(rng.random(n) < 0.4, rng.gamma(4.0, 0.22, n), rng.gamma(1.0, 0.04, n))
    by_channel = np.array([0.0, 0.30, 0.45, -0.45, -0.25, -0.1])[channel]
    by_region = np.array([0.05, -0.2, 0.15, 0.0, -0.05, 0.3])[region]
    return People(
        numbers=numbers,
        signup=signup,
        first_order=signup + _first_order_delay(n, rng),
        lead=rng.random(n) < LEAD_SHARE,
        birth_day=-age * 365.25,
        gender=gender,
        region=region,
        acquisition_channel=channel,
        episode_rate=np.minimum(
            _lognormal(EPISODE_RATE, busy, -0.3 * by_channel - 0.006 * (age - 41)), EPISODE_RATE_MAX
        ),
        conversion=_logistic(CONVERSION[0] + 0.25 * by_region + CONVERSION[1] * open_minded),
        dropout=_lognormal(DROPOUT, fickle, by_channel + DROPOUT_OF_BUSY * busy),
        order_value=_lognormal(ORDER_VALUE, rich, by_region + 0.01 * (age - 41)),
        satisfaction=rng.beta(9.0, 3.5, n),
        campaign_effect=np.minimum(effect, CAMPAIGN_EFFECT_MAX),
        consent=rng.random(n) < CONSENT_SHARE,
        treated=rng.random(n) >= CONTROL_SHARE,
        open_rate=rng.beta(3.0, 5.0, n),
        refund_rate=rng.beta(2.0, 38.0, n),
        app_share=rng.beta(1.2, 2.0, n) * np.exp(-np.maximum(age - 30, 0) / 40),
        affinity=_affinity(gender, rng),
    )


def delay_cdf(days: Floats, mean: float = CONVERSION_DELAY, most: float = CONVERSION_DELAY_MAX) -> Floats:
    """P(delay <= days) of an exponential with `mean`, truncated at `most` days."""
    share: Floats = np.expm1(-np.clip(days, 0, most) / mean) / np.expm1(-most / mean)
    return share


def refund_cdf(days: Floats) -> Floats:
    """P(refund delay <= days), given that there is a refund: uniform over `REFUND_DELAY`."""
    return np.clip((days - REFUND_DELAY[0]) / (REFUND_DELAY[1] - REFUND_DELAY[0]), 0, 1)


def dropout_chance(dropout: Floats, satisfaction: Ints | int, first: Flags | bool) -> Floats:
    """P(dropout at an order) from the latent, the order's satisfaction and whether it is the first."""
    raised = DROPOUT_BY_SATISFACTION[np.asarray(satisfaction) - 1] * np.where(first, FIRST_ORDER_DROPOUT, 1.0)
    chance: Floats = np.minimum(dropout * raised, DROPOUT_MAX)
    return chance


def campaign_lift(people: People) -> Floats:
    """Extra visits per ordinary visit in campaign weeks: exp(effect) - 1 if treated with consent, else 0."""
    return np.where(people.consent & people.treated, np.expm1(people.campaign_effect), 0.0)


def campaign_start(calendar: Calendar, people: People) -> Floats:
    """The first send after each customer's first order: campaigns before it were not sent to them."""
    sends = np.append(calendar.sends, np.inf)
    begin: Floats = np.minimum(sends[np.searchsorted(calendar.sends, people.first_order)], calendar.grid[-1])
    return begin


def visits_until(calendar: Calendar, time: Floats) -> Floats:
    """Expected visits of a customer of rate 1 from the opening to `time`."""
    return np.interp(time, calendar.grid, calendar.visits)


def campaign_visits_until(calendar: Calendar, time: Floats) -> Floats:
    """The part of `visits_until` that lies in campaign weeks."""
    return np.interp(time, calendar.grid, calendar.campaign_visits)


def _season(day: Floats) -> Floats:
    of_year = day % 365.25
    peaks = 0.75 * _bump(of_year, 345, 14) + 0.25 * _bump(of_year, 140, 16) - 0.12 * _bump(of_year, 40, 16)
    return (1 + peaks) * (1 + TREND_PER_YEAR * day / 365.25)


def _bump(day: Floats, centre: float, width: float) -> Floats:
    apart = np.minimum(np.abs(day - centre), 365.25 - np.abs(day - centre))
    return np.exp(-0.5 * (apart / width) ** 2)


def _month_starts(months: int) -> Floats:
    firsts = START.astype("datetime64[M]") + np.arange(months)
    days: Floats = (firsts.astype("datetime64[D]") - START).astype(float)
    return days


def _sends(days: int) -> Floats:
    sends = _month_starts(days // 28 + 1) + SEND_DAY - 1 + SEND_HOUR / 24
    return sends[sends < days]


def _cumulated(per_hour: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(per_hour)])


def _lognormal(mean_and_spread: tuple[float, float], deviate: Floats, shift: Floats) -> Floats:
    return np.exp(mean_and_spread[0] + mean_and_spread[1] * deviate + shift)


def _logistic(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _arrivals(calendar: Calendar, n: int, rng: np.random.Generator) -> Floats:
    """Signup moments: the season of visits, times a growth to twice as many at the end as at the opening."""
    hours = calendar.days * 24
    reached = _cumulated(np.diff(calendar.visits[: hours + 1]) * (1 + np.arange(hours) / hours))
    signup: Floats = np.interp(rng.random(n) * reached[-1], reached, calendar.grid[: hours + 1])
    return signup


def _first_order_delay(n: int, rng: np.random.Generator) -> Floats:
    """Most order within the half hour of their signup, the others think about it like for any order."""
    return np.where(rng.random(n) < 0.7, rng.uniform(2, 30, n) / 1440, _truncated_delay(n, rng))


def _truncated_delay(
    n: int, rng: np.random.Generator, mean: float = CONVERSION_DELAY, most: float = CONVERSION_DELAY_MAX
) -> Floats:
    days: Floats = -mean * np.log1p(rng.random(n) * np.expm1(-most / mean))
    return days


def _affinity(gender: Ints, rng: np.random.Generator) -> Floats:
    weights = np.array(
        [
            [1.0, 0.9, 1.2, 1.3, 0.5, 0.7, 0.8, 0.6],
            [0.9, 0.6, 0.3, 0.7, 1.3, 0.7, 0.7, 0.9],
            [0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
        ]
    )
    drawn = rng.standard_gamma(0.8 * weights[gender]) + 1e-9
    shares: Floats = drawn / drawn.sum(axis=1, keepdims=True)
    return shares


def _candidate_visits(calendar: Calendar, people: People, rng: np.random.Generator) -> Visits:
    """All visits as though nobody dropped out, unsorted; `ordered_at` is the order each would lead to."""
    begin = np.minimum(people.first_order, calendar.days)
    own = _poisson_times(calendar.grid, calendar.visits, calendar.days, begin, people.episode_rate, rng)
    begin = np.minimum(campaign_start(calendar, people), calendar.days)
    rate = people.episode_rate * campaign_lift(people)
    extra = _poisson_times(calendar.grid, calendar.campaign_visits, calendar.days, begin, rate, rng)
    customer, time = np.concatenate([own[0], extra[0]]), np.concatenate([own[1], extra[1]])
    converts = rng.random(len(time)) < people.conversion[customer]
    ordered_at = np.full(len(time), np.inf)
    ordered_at[converts] = time[converts] + _truncated_delay(int(converts.sum()), rng)
    return Visits(customer, time, np.zeros(len(time), bool), ordered_at)


def _poisson_times(
    grid: Floats, cumulative: Floats, end: float, begin: Floats, rate: Floats, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Customer and time of every event of Poisson processes with cumulative intensity `rate * cumulative`."""
    low = np.interp(begin, grid, cumulative)
    mass = np.interp(end, grid, cumulative) - low
    customer = np.repeat(np.arange(len(rate)), rng.poisson(rate * mass))
    reached = low[customer] + rng.random(len(customer)) * mass[customer]
    return customer, np.interp(reached, cumulative, grid)


def _orders_until_dropout(
    calendar: Calendar, people: People, visits: Visits, rng: np.random.Generator
) -> tuple[Orders, Floats]:
    """The orders up to and with the one whose dropout coin falls, and each customer's moment of dropout."""
    buyers = np.flatnonzero(~people.lead & (people.first_order < calendar.days))
    led = np.flatnonzero(visits.ordered_at < calendar.days)
    led = led[~people.lead[visits.customer[led]]]
    customer = np.concatenate([buyers, visits.customer[led]])
    time = np.concatenate([people.first_order[buyers], visits.ordered_at[led]])
    first = np.arange(len(customer)) < len(buyers)
    order = np.lexsort((time, customer))
    customer, time, first = customer[order], time[order], first[order]
    satisfaction = 1 + rng.binomial(4, people.satisfaction[customer])
    falls = rng.random(len(time)) < dropout_chance(people.dropout[customer], satisfaction, first)
    dropped_at = np.where(people.lead, people.first_order, np.inf)
    who, position = np.unique(customer[falls], return_index=True)
    dropped_at[who] = time[falls][position]
    kept = time <= dropped_at[customer]
    return _priced(people, customer[kept], time[kept], first[kept], satisfaction[kept], rng), dropped_at


def _priced(
    people: People, customer: Ints, time: Floats, first: Flags, satisfaction: Ints, rng: np.random.Generator
) -> Orders:
    n = len(time)
    paid = rng.standard_gamma(AMOUNT_SHAPE, n) * (people.order_value[customer] * 100 / AMOUNT_SHAPE)
    cents = np.maximum(np.rint(paid), AMOUNT_LEAST).astype(np.int64)
    part = np.where(rng.random(n) < FULL_REFUND_SHARE, 1.0, rng.uniform(*PART_REFUND, n))
    refunded = rng.random(n) < people.refund_rate[customer]
    rated = rng.random(n) < RATING_SHARE
    return Orders(
        customer=customer,
        time=time,
        first=first,
        satisfaction=satisfaction,
        cents=cents,
        rated_at=np.where(rated, time + rng.uniform(*RATING_DELAY, n), np.inf),
        refunded_at=np.where(refunded, time + rng.uniform(*REFUND_DELAY, n), np.inf),
        refund_cents=np.maximum(np.rint(cents * part), 1).astype(np.int64),
    )


def _thinned(visits: Visits, dropped_at: Floats, rng: np.random.Generator) -> Visits:
    """The visits that are made, sorted: after the dropout few are, and none leads to an order."""
    alive = visits.time < dropped_at[visits.customer]
    kept = np.flatnonzero(alive | (rng.random(len(alive)) < DEAD_VISITS))
    kept = kept[np.lexsort((visits.time[kept], visits.customer[kept]))]
    customer, time, ordered_at = visits.customer[kept], visits.time[kept], visits.ordered_at[kept]
    meant = np.isfinite(ordered_at) & alive[kept]
    cart = rng.random(len(kept)) < np.where(meant, CART_IF_CONVERTING, CART_IF_NOT)
    return Visits(customer, time, cart, np.where(ordered_at <= dropped_at[customer], ordered_at, np.inf))


def _mails(calendar: Calendar, people: People, dropped_at: Floats, rng: np.random.Generator) -> Mails:
    sends = calendar.sends[calendar.sends < calendar.days]
    customer, send = np.nonzero(people.consent[:, None] & (sends >= people.first_order[:, None]))
    alive = sends[send] < dropped_at[customer]
    chance = people.open_rate[customer] * np.where(alive, 1.0, DEAD_OPENS) * people.treated[customer]
    opened = rng.random(len(send)) < chance
    opened_at = np.where(opened, sends[send] + _truncated_delay(len(send), rng, OPEN_DELAY, OPEN_DELAY_MAX), np.inf)
    clicked = opened & (rng.random(len(send)) < np.where(alive, CLICK_IF_ALIVE, CLICK_IF_DEAD))
    return Mails(customer, send, opened_at, clicked)
