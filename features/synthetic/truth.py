"""What an oracle knows about the customers of the simulated shop at a cutoff.

The truth is the probability, or the expected net revenue, given the customer's own latents and all that
happened to the customer before the cutoff: orders and the visit that each came from, ratings, visits, carts,
e-mails and what became of them, refunds. Rows that the shop learned of late are taken as known. Only the
moment of dropout is hidden, and it is integrated out exactly:

- `p_alive` is the posterior that the dropout coin of the last order did not fall. The odds are those of the
  coin times the likelihood ratio of what followed: (1 - q) / q times the visits that were and were not made,
  the orders that pending visits did not lead to, and the e-mails opened and clicked or not.
- Alive, orders by visits after the cutoff are Poisson with mean Lambda(t), and a pending visit j leads to its
  order by t with probability F_j(t). So P(an order before t) is
  p_alive * (1 - exp(-Lambda(t)) * prod_j (1 - F_j(t))).
- Each order ends the life with mean probability q. The chance that no order before t did so is
  A(t) = exp(-q Lambda(t)) * prod_j (1 - q F_j(t)), and the expected orders are the integral of A dLambda and,
  for each pending j, that of A / (1 - q F_j) dF_j, on a grid of days (midpoint rule).
- Every order pays the customer's mean basket; refunds of new orders and of those before the cutoff are
  subtracted when they fall into the window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.synthetic.world import (
    CART_IF_CONVERTING,
    CART_IF_NOT,
    CLICK_IF_ALIVE,
    CLICK_IF_DEAD,
    CONVERSION_DELAY_MAX,
    DEAD_OPENS,
    DEAD_VISITS,
    OPEN_DELAY,
    OPEN_DELAY_MAX,
    REFUND_MEAN_PART,
    Block,
    Calendar,
    Flags,
    Floats,
    Ints,
    People,
    campaign_lift,
    campaign_start,
    campaign_visits_until,
    delay_cdf,
    dropout_chance,
    refund_cdf,
    visits_until,
)

HORIZONS = (7, 14, 28, 90, 180, 365)
PENDING_DAYS = int(CONVERSION_DELAY_MAX)


@dataclass(frozen=True)
class Truth:
    """The oracle's answer for the buyers before a cutoff.

    `customer` is the position in the block, ascending; `p_repurchase` and `value`
    (currency) have a column for each of `HORIZONS`; `dropout_mean` is that of a repeat order.
    """

    customer: Ints
    p_alive: Floats
    p_repurchase: Floats
    value: Floats
    dropout_mean: Floats


@dataclass(frozen=True)
class _Pending:
    """Visits of the last weeks that led to no order so far: `day` columns count days after the cutoff."""

    customer: Ints
    led_by_day: Floats
    led_by_noon: Floats


@dataclass(frozen=True)
class _Future:
    """Orders (n, days) expected of visits after the cutoff if nobody dropped out, by day end and by noon."""

    by_day: Floats
    by_noon: Floats


def truth_at(calendar: Calendar, block: Block, cutoff: int) -> Truth:
    """The truth for every customer of the block with a paid order before `cutoff`, a whole number of days."""
    buyers = np.unique(block.orders.customer[block.orders.time < cutoff])
    people = block.people
    pending = _pending(block, cutoff)
    future = _future(calendar, people, cutoff)
    dropout_mean = mean_dropout(people)
    p_alive = posterior_alive(calendar, block, cutoff)
    per_day = p_alive[:, None] * _orders_per_day(future, pending, dropout_mean)
    value = _new_revenue(people, per_day) - _old_refunds(block, cutoff)
    repurchase = p_alive[:, None] * _repurchase_if_alive(future, pending)
    return Truth(buyers, p_alive[buyers], repurchase[buyers], value[buyers], dropout_mean[buyers])


def mean_dropout(people: People) -> Floats:
    """P(dropout) at a repeat order whose satisfaction is not known."""
    return _mean_dropout(people, np.zeros(len(people.numbers), bool))


def posterior_alive(calendar: Calendar, block: Block, cutoff: float) -> Floats:
    """P(alive at the cutoff | latents, all that happened before); 0 for customers without an order."""
    last = _last_orders(block, cutoff)
    customer = block.orders.customer[last]
    since = np.full(len(block.people.numbers), np.inf)
    since[customer] = block.orders.time[last]
    odds = _visits_log_odds(calendar, block, since, cutoff) + _mails_log_odds(calendar, block, since, cutoff)
    dropped = _last_dropout_chance(block, last, cutoff)
    alive = np.zeros(len(since))
    with np.errstate(over="ignore"):
        alive[customer] = 1 / (1 + dropped / (1 - dropped) * np.exp(-odds[customer]))
    return alive


def _mean_dropout(people: People, first: Flags) -> Floats:
    """Averaged over satisfaction, which is 1 + binomial(4, latent)."""
    p, ways = people.satisfaction, (1, 4, 6, 4, 1)
    chances = [dropout_chance(people.dropout, 1 + k, first) * ways[k] * p**k * (1 - p) ** (4 - k) for k in range(5)]
    mean: Floats = np.sum(chances, axis=0)
    return mean


def _last_orders(block: Block, cutoff: float) -> Ints:
    before = np.flatnonzero(block.orders.time < cutoff)
    customer = block.orders.customer[before]
    return before[np.append(customer[1:] != customer[:-1], True)] if len(before) else before


def _last_dropout_chance(block: Block, last: Ints, cutoff: float) -> Floats:
    """Of the last order's coin: with its rating where that was given before the cutoff, else the mean."""
    orders, customer = block.orders, block.orders.customer[last]
    first = np.zeros(len(block.people.numbers), bool)
    first[customer] = orders.first[last]
    rated = dropout_chance(block.people.dropout[customer], orders.satisfaction[last], orders.first[last])
    return np.where(orders.rated_at[last] < cutoff, rated, _mean_dropout(block.people, first)[customer])


def _converting(block: Block, visits: Ints) -> tuple[Floats, Floats]:
    """P(the visit was to lead to an order | cart or none), and P(cart or none) over that of other visits."""
    cart = block.visits.cart[visits]
    ratio = np.where(cart, CART_IF_CONVERTING / CART_IF_NOT, (1 - CART_IF_CONVERTING) / (1 - CART_IF_NOT))
    share = block.people.conversion[block.visits.customer[visits]]
    weight = share * ratio + 1 - share
    return share * ratio / weight, weight


def _unconverted(block: Block, cutoff: float) -> Ints:
    return np.flatnonzero((block.visits.time < cutoff) & (block.visits.ordered_at >= cutoff))


def _visits_log_odds(calendar: Calendar, block: Block, since: Floats, cutoff: float) -> Floats:
    """Log likelihood ratio, alive to dropped out, of the visits without an order since the last order."""
    visits = _unconverted(block, cutoff)
    customer, time = block.visits.customer[visits], block.visits.time[visits]
    meant, weight = _converting(block, visits)
    after = time > since[customer]
    made = np.where(after, np.log(weight / DEAD_VISITS), 0.0)
    open_now = np.log1p(-meant * delay_cdf(cutoff - time))
    open_then = np.log1p(-meant * delay_cdf(np.where(after, 0.0, np.minimum(since[customer], cutoff) - time)))
    each = np.bincount(customer, made + open_now - open_then, minlength=len(since))
    return each - (1 - DEAD_VISITS) * _expected_visits(calendar, block.people, since, cutoff)


def _expected_visits(calendar: Calendar, people: People, since: Floats, cutoff: float) -> Floats:
    end = np.full(len(since), float(cutoff))
    begin, mailed = (
        np.minimum(since, cutoff),
        np.minimum(np.maximum(since, campaign_start(calendar, people)), cutoff),
    )
    own = visits_until(calendar, end) - visits_until(calendar, begin)
    extra = campaign_visits_until(calendar, end) - campaign_visits_until(calendar, mailed)
    return people.episode_rate * (own + campaign_lift(people) * extra)


def _mails_log_odds(calendar: Calendar, block: Block, since: Floats, cutoff: float) -> Floats:
    """Log likelihood ratio, alive to dropped out, of what became of the e-mails since the last order."""
    mails, people = block.mails, block.people
    sent = calendar.sends[mails.send]
    used = people.treated[mails.customer] & (sent > since[mails.customer]) & (sent < cutoff)
    customer, clicked, opened = mails.customer[used], mails.clicked[used], mails.opened_at[used] < cutoff
    by_now = people.open_rate[customer] * delay_cdf(cutoff - sent[used], OPEN_DELAY, OPEN_DELAY_MAX)
    click = np.where(clicked, CLICK_IF_ALIVE / CLICK_IF_DEAD, (1 - CLICK_IF_ALIVE) / (1 - CLICK_IF_DEAD))
    ratio = np.where(opened, click / DEAD_OPENS, (1 - by_now) / (1 - DEAD_OPENS * by_now))
    return np.bincount(customer, np.log(ratio), minlength=len(since)).astype(float)


def _pending(block: Block, cutoff: int) -> _Pending:
    visits = _unconverted(block, cutoff)
    visits = visits[block.visits.time[visits] > cutoff - CONVERSION_DELAY_MAX]
    age = cutoff - block.visits.time[visits]
    meant, _ = _converting(block, visits)
    passed = delay_cdf(age)
    scale = (meant / (1 - meant * passed))[:, None]
    days = np.arange(PENDING_DAYS + 1)
    by_day = scale * (delay_cdf(age[:, None] + days) - passed[:, None])
    by_noon = scale * (delay_cdf(age[:, None] + days[:-1] + 0.5) - passed[:, None])
    return _Pending(block.visits.customer[visits], by_day, by_noon)


def _future(calendar: Calendar, people: People, cutoff: int) -> _Future:
    """Every customer's expected orders are a mix of three shared curves: own visits, and those by two sets of
    campaigns, as the one that runs at the cutoff was not sent to customers who came after its send.
    """
    hours, days = slice(cutoff * 24, (cutoff + HORIZONS[-1]) * 24), HORIZONS[-1]
    later = calendar.sends[calendar.sends >= cutoff]
    campaign = np.diff(calendar.campaign_visits)[hours]
    not_sent = calendar.grid[:-1][hours] < (later[0] if len(later) else np.inf)
    curves = [np.diff(calendar.visits)[hours], campaign, np.where(not_sent, 0.0, campaign)]
    led = delay_cdf((np.arange(days * 24) + 0.5) / 24)
    orders = np.array([np.convolve(curve, led)[: days * 24] for curve in curves])
    lift, running = campaign_lift(people), campaign_start(calendar, people) < cutoff
    mix = np.stack([np.ones(len(lift)), lift * running, lift * ~running], axis=1)
    mix *= (people.episode_rate * people.conversion)[:, None]
    return _Future(mix @ orders[:, 23::24], mix @ orders[:, 11::24])


def _summed(customer: Ints, weights: Floats, customers: int) -> Floats:
    """(customers, days): the sum over each customer's rows of `weights` (rows, days)."""
    sums = [np.bincount(customer, column, minlength=customers) for column in weights.T]
    return np.stack(sums, axis=1)


def _repurchase_if_alive(future: _Future, pending: _Pending) -> Floats:
    customers = len(future.by_day)
    none_led = _summed(pending.customer, np.log1p(-pending.led_by_day), customers)
    columns = [-future.by_day[:, h - 1] + none_led[:, min(h, PENDING_DAYS)] for h in HORIZONS]
    return -np.expm1(np.stack(columns, axis=1))


def _orders_per_day(future: _Future, pending: _Pending, dropout_mean: Floats) -> Floats:
    """Expected orders (n, days) if alive at the cutoff, each order ending the life with `dropout_mean`."""
    customers = len(future.by_day)
    survived = np.exp(-dropout_mean[:, None] * future.by_noon)
    steps = np.diff(future.by_day, axis=1, prepend=0.0)
    ending = dropout_mean[pending.customer][:, None]
    unhurt = 1 - ending * pending.led_by_noon
    survived[:, :PENDING_DAYS] *= np.exp(_summed(pending.customer, np.log(unhurt), customers))
    all_led = np.log1p(-ending * pending.led_by_day[:, -1:])
    survived[:, PENDING_DAYS:] *= np.exp(_summed(pending.customer, all_led, customers))
    steps[:, :PENDING_DAYS] += _summed(pending.customer, np.diff(pending.led_by_day, axis=1) / unhurt, customers)
    return survived * steps


def _new_revenue(people: People, per_day: Floats) -> Floats:
    """Expected net revenue (n, horizons) of new orders: amounts less the refunds inside the window."""
    left = np.array(HORIZONS)[None, :] - (np.arange(per_day.shape[1]) + 0.5)[:, None]
    orders, refunds = per_day @ (left > 0).astype(float), per_day @ refund_cdf(left)
    given_back = (people.refund_rate * REFUND_MEAN_PART)[:, None]
    net: Floats = people.order_value[:, None] * (orders - given_back * refunds)
    return net


def _old_refunds(block: Block, cutoff: float) -> Floats:
    """Expected refunds (n, horizons) of orders before the cutoff which were not refunded so far."""
    orders = block.orders
    rows = np.flatnonzero((orders.time < cutoff) & (orders.time > cutoff - 31) & (orders.refunded_at >= cutoff))
    age, rate = cutoff - orders.time[rows], block.people.refund_rate[orders.customer[rows]]
    passed = refund_cdf(age)
    scale = orders.cents[rows] / 100 * REFUND_MEAN_PART * rate / (1 - rate * passed)
    due = refund_cdf(age[:, None] + np.array(HORIZONS)) - passed[:, None]
    return _summed(orders.customer[rows], scale[:, None] * due, len(block.people.numbers))
