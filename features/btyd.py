"""How often customers still buy, and for how much, by maximum likelihood from three numbers each.

BG/NBD (Fader, Hardie and Lee 2005, "Counting Your Customers" the Easy Way, Marketing Science 24(2)): while
alive a customer buys at rate lambda ~ gamma(r, rate alpha) and after each repeat purchase leaves with p ~
beta(a, b). Gamma-Gamma (Fader and Hardie 2013, The Gamma-Gamma Model of Monetary Value): order values of a
customer are gamma(p, rate nu) with nu ~ gamma(q, rate v), independent of how often the customer buys.

The words of the papers: `x` repeat purchases (the first is not counted), `t_x` age at the last purchase (0
when x = 0), `T` age now, ages since the first purchase. Any unit of time serves as long as all times share
it: `alpha` carries that unit (a fit in days has 7 times the alpha of a fit in weeks), r, a and b have none.
`v` carries the currency. Methods take lists or single numbers and return an array with an entry per customer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import betaincinv, betaln, expit, gammaln, hyp2f1, psi, xlogy

from features.errors import Refused

Floats = npt.NDArray[np.float64]
Objective = Callable[[Floats], tuple[float, Floats]]

MINIMUM_CUSTOMERS = 10

# Likelihoods flatten towards 0 and infinity; within these a fit ends at a usable model, not in the distance.
_SMALLEST, _LARGEST = 1e-4, 1e3
# The value of a customer without a repeat order is p v / (q - 1): q stays off 1 so that it stays finite.
_SMALLEST_Q_ABOVE_1 = 0.05
# The expected count has removable poles at a = 1 and a + b + x = 1; this far off it has 5 good digits.
_POLE_DISTANCE = 1e-6
_MAXIMUM_SLOPE = 1e-4


class BtydNotFitted(Refused):
    """A purchase history from which no BG/NBD or Gamma-Gamma model can be learned, with the reason."""


@dataclass(frozen=True)
class BgNbd:
    """The purchase process; `alpha` in the unit of time of the fit."""

    r: float
    alpha: float
    a: float
    b: float

    def p_alive(self, x: npt.ArrayLike, t_x: npt.ArrayLike, T: npt.ArrayLike) -> Floats:
        """P(the customer has not left at age T), 0 to 1; 1 when x = 0: only repeat purchases drive away."""
        x, t_x, T = _floats(x, t_x, T)
        return np.asarray(expit(-self._log_odds_left(x, t_x, T)))

    def expected_orders(self, x: npt.ArrayLike, t_x: npt.ArrayLike, T: npt.ArrayLike, horizon: npt.ArrayLike) -> Floats:
        """Expected purchases in (T, T + horizon], equation 10 of the 2005 paper.

        The paper's hypergeometric term overflows for frequent buyers. Euler's transformation moves x out of
        its upper parameters and cancels the power in front of it, so nothing large is left to multiply.
        """
        x, t_x, T, horizon = _floats(x, t_x, T, horizon)
        a, b = self._off_the_poles()
        z = horizon / (self.alpha + T + horizon)
        with np.errstate(over="ignore", invalid="ignore"):
            kept = np.exp((a - 1) * np.log1p(-z)) * hyp2f1(a + b - 1 - self.r, a - 1, a + b + x - 1, z)
            if_alive = (a + b + x - 1) / (a - 1) * (1 - kept)
        # No customer is expected to buy more often than one who never leaves.
        forever = (self.r + x) * horizon / (self.alpha + T)
        doubtful = ~np.isfinite(if_alive) | (if_alive < 0) | (if_alive > forever * (1 + 1e-4))
        if doubtful.any():
            if_alive[doubtful] = self._orders_if_alive_summed(x[doubtful], T[doubtful], horizon[doubtful])
        return np.asarray(self.p_alive(x, t_x, T) * if_alive)

    def p_repurchase(self, x: npt.ArrayLike, t_x: npt.ArrayLike, T: npt.ArrayLike, horizon: npt.ArrayLike) -> Floats:
        """P(at least one purchase in (T, T + horizon]), 0 to 1.

        Alive at T, lambda is gamma(r + x, rate alpha + T) and the next purchase comes before any chance to
        leave, so that none comes with probability E[exp(-lambda horizon)], which is
        ((alpha + T) / (alpha + T + horizon)) ** (r + x).
        """
        x, t_x, T, horizon = _floats(x, t_x, T, horizon)
        return -np.expm1(-(self.r + x) * np.log1p(horizon / (self.alpha + T))) * self.p_alive(x, t_x, T)

    def to_json(self) -> dict[str, float]:
        """The parameters by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, parameters: Mapping[str, float]) -> Self:
        """The model with these parameters; `ValueError` when one is missing, unknown or not above 0."""
        return cls(**_positive(parameters, ("r", "alpha", "a", "b")))

    def _log_odds_left(self, x: Floats, t_x: Floats, T: Floats) -> Floats:
        grown = (self.r + x) * np.log((self.alpha + T) / (self.alpha + t_x))
        repeated = x > 0
        # Without a repeat purchase nobody leaves; the placeholder only keeps the logarithm defined.
        leaving = np.log(self.a / np.where(repeated, self.b + x - 1, 1.0))
        return np.where(repeated, leaving + grown, -np.inf)

    def _off_the_poles(self) -> tuple[float, float]:
        a = 1 + _POLE_DISTANCE if abs(self.a - 1) < _POLE_DISTANCE else self.a
        near = abs(a + self.b - 1) < _POLE_DISTANCE
        return a, self.b + (2 * _POLE_DISTANCE if near else 0.0)

    def _orders_if_alive_summed(self, x: Floats, T: Floats, horizon: Floats) -> Floats:
        """The mean of (1 - E[exp(-lambda p horizon)]) / p over p ~ beta(a, b + x), by its quantiles."""
        nodes, weights = np.polynomial.legendre.leggauss(200)
        p = np.maximum(betaincinv(self.a, self.b + x[:, None], (nodes + 1) / 2), 1e-12)
        grown = (self.r + x[:, None]) * np.log1p(p * (horizon / (self.alpha + T))[:, None])
        return np.asarray((-np.expm1(-grown) / p) @ (weights / 2))


@dataclass(frozen=True)
class GammaGamma:
    """The value of an order; `v` in currency."""

    p: float
    q: float
    v: float

    def expected_order_value(self, x: npt.ArrayLike, mean_value: npt.ArrayLike) -> Floats:
        """Expected value of a further order of a customer whose `x` orders averaged `mean_value`, currency.

        Equation 5 of the 2013 note: between the customer's own mean and the mean of all, nearer to the
        customer's the more orders there are. `mean_value` is not read where x = 0 and may be missing there.
        """
        x, mean_value = _floats(x, mean_value)
        spent = np.where(x > 0, x * mean_value, 0.0)
        return np.asarray(self.p * (self.v + spent) / (self.p * x + self.q - 1))

    def to_json(self) -> dict[str, float]:
        """The parameters by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, parameters: Mapping[str, float]) -> Self:
        """The model with these parameters; `ValueError` when one is missing, unknown or not above 0."""
        return cls(**_positive(parameters, ("p", "q", "v")))


def fit_bg_nbd(
    frequency: npt.ArrayLike, recency: npt.ArrayLike, age: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> BgNbd:
    """The most likely BG/NBD model of these customers.

    frequency (x), recency (t_x), age (T), one entry a customer, times in one unit; `weights` are numbers of
    equal customers. `BtydNotFitted` on fewer than ten customers, no repeat buyer, or no convergence;
    `ValueError` on histories that cannot be (they must have 0 <= t_x <= T, and t_x = 0 when x = 0).
    """
    x, t_x, T, count = _bg_nbd_input(frequency, recency, age, weights)
    if count.sum() < MINIMUM_CUSTOMERS:
        raise BtydNotFitted(f"{count.sum():g} customers; a BG/NBD model needs {MINIMUM_CUSTOMERS} or more")
    if not (x[count > 0] > 0).any():
        raise BtydNotFitted(f"none of {count.sum():g} customers bought again; a BG/NBD model needs some")
    # In units of the typical age, the same starts and bounds fit hours and weeks.
    unit = float(np.average(T, weights=count)) or 1.0
    rows, indices = np.unique(np.column_stack([x, t_x / unit, T / unit]), axis=0, return_inverse=True)
    share = np.bincount(indices.ravel(), weights=count) / count.sum()
    objective = _bg_nbd_objective(rows[:, 0], rows[:, 1], rows[:, 2], share)
    starts = [(0.5, 0.3, 1.0, 2.5), (1.0, 1.0, 0.2, 2.0), (0.2, 0.1, 3.0, 10.0)]
    r, alpha, a, b = _minimum(objective, starts, [(_SMALLEST, _LARGEST)] * 4, "BG/NBD")
    return BgNbd(r, alpha * unit, a, b)


def fit_gamma_gamma(frequency: npt.ArrayLike, mean_value: npt.ArrayLike) -> GammaGamma:
    """The most likely Gamma-Gamma model of these customers.

    frequency (the number of orders that the mean is over), mean_value (currency), one entry a customer;
    customers without an order or with a mean that is not above 0 are left out. q is kept at 1.05 or more, so
    that the value of an order of an unknown customer is finite. `BtydNotFitted` on fewer than ten customers
    or no convergence.
    """
    x, mean = _floats(frequency, mean_value)
    usable = (x > 0) & (mean > 0) & np.isfinite(mean)
    x, mean = x[usable], mean[usable]
    if x.size < MINIMUM_CUSTOMERS:
        needed = f"a Gamma-Gamma model needs {MINIMUM_CUSTOMERS} or more"
        raise BtydNotFitted(f"{x.size} customers with orders of a positive value; {needed}")
    unit = float(np.average(mean, weights=x))
    bounds = [(1e-3, 1e4), (_SMALLEST_Q_ABOVE_1, 1e4), (_SMALLEST, 1e6)]
    starts = [(4.0, 2.5, 1.0), (1.0, 1.0, 1.0), (20.0, 10.0, 1.0)]
    p, excess, v = _minimum(_gamma_gamma_objective(x, mean / unit), starts, bounds, "Gamma-Gamma")
    return GammaGamma(p, 1 + excess, v * unit)


def _bg_nbd_input(
    frequency: npt.ArrayLike, recency: npt.ArrayLike, age: npt.ArrayLike, weights: npt.ArrayLike | None
) -> tuple[Floats, Floats, Floats, Floats]:
    x, t_x, T = _floats(frequency, recency, age)
    count = np.ones_like(x) if weights is None else _floats(weights)[0]
    if not x.shape == t_x.shape == T.shape == count.shape or x.ndim != 1:
        raise ValueError(f"lists of different lengths: {x.shape}, {t_x.shape}, {T.shape}, {count.shape}")
    possible = np.isfinite(T) & (x >= 0) & (t_x >= 0) & (t_x <= T) & ((x > 0) | (t_x == 0)) & (count >= 0)
    if not possible.all():
        wrong = f"{(~possible).sum()} of {x.size} histories"
        raise ValueError(f"{wrong} are not 0 <= t_x <= T with t_x = 0 when x = 0")
    return x, t_x, T, count


def _bg_nbd_objective(x: Floats, t_x: Floats, T: Floats, share: Floats) -> Objective:
    """Mean negative log-likelihood (equation 6 of the paper) and its slope in the logs of r, alpha, a, b."""

    def objective(logs: Floats) -> tuple[float, Floats]:
        model = BgNbd(*np.exp(logs).tolist())
        r, alpha, a, b = model.r, model.alpha, model.a, model.b
        log_odds_left = model._log_odds_left(x, t_x, T)
        log_likelihood = (
            gammaln(r + x) - gammaln(r) + r * np.log(alpha) - (r + x) * np.log(alpha + T)
            + betaln(a, b + x) - betaln(a, b) + np.logaddexp(0.0, log_odds_left)
        )  # fmt: skip
        left = expit(log_odds_left)
        alive = 1 - left
        last = np.where(x > 0, b + x - 1, 1.0)
        slopes = np.column_stack(
            [
                psi(r + x) - psi(r) + np.log(alpha) - alive * np.log(alpha + T) - left * np.log(alpha + t_x),
                r / alpha - (r + x) * (alive / (alpha + T) + left / (alpha + t_x)),
                psi(a + b) - psi(a + b + x) + left / a,
                psi(b + x) - psi(b) + psi(a + b) - psi(a + b + x) - left / last,
            ]
        )
        return float(-(share @ log_likelihood)), -(share @ slopes) * np.exp(logs)

    return objective


def _gamma_gamma_objective(x: Floats, mean: Floats) -> Objective:
    """Mean negative log-likelihood (equation 1a of the note) and its slope in the logs of p, q - 1 and v."""
    total = x * mean

    def objective(logs: Floats) -> tuple[float, Floats]:
        p, excess, v = np.exp(logs)
        q, shape = 1 + excess, p * x
        log_total = np.log(v + total)
        log_likelihood = (
            gammaln(shape + q) - gammaln(shape) - gammaln(q) + q * np.log(v)
            + xlogy(shape, total) - np.log(mean) - (shape + q) * log_total
        )  # fmt: skip
        slopes = np.array(
            [
                np.mean(x * (psi(shape + q) - psi(shape) + np.log(total) - log_total)),
                np.mean(psi(shape + q) - psi(q) + np.log(v) - log_total),
                np.mean(q / v - (shape + q) / (v + total)),
            ]
        )
        return float(-np.mean(log_likelihood)), -slopes * np.exp(logs)

    return objective


def _minimum(
    objective: Objective, starts: Sequence[Sequence[float]], bounds: Sequence[tuple[float, float]], model: str
) -> tuple[float, ...]:
    """The best end of the starts, as positive parameters; `BtydNotFitted` when it is not flat there."""
    log_bounds = np.log(bounds)
    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-8}
    ends = [
        minimize(objective, np.log(start), jac=True, method="L-BFGS-B", bounds=log_bounds, options=options)
        for start in starts
    ]
    best = min((end for end in ends if np.isfinite(end.fun)), key=lambda end: end.fun, default=None)
    if best is None:
        raise BtydNotFitted(f"the likelihood of the {model} model is not finite on these customers")
    # At a bound the slope may point outwards; only what a step inside could still gain counts.
    stepped = np.clip(best.x - best.jac, log_bounds[:, 0], log_bounds[:, 1])
    if np.abs(stepped - best.x).max() > _MAXIMUM_SLOPE:
        raise BtydNotFitted(f"the {model} model did not converge from {len(starts)} starts: {best.message}")
    return tuple(np.exp(best.x).tolist())


def _floats(*values: npt.ArrayLike) -> list[Floats]:
    """Float arrays, broadcast to one shape of at least one dimension."""
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values))
    return list(arrays)


def _positive(parameters: Mapping[str, float], names: tuple[str, ...]) -> dict[str, float]:
    if set(parameters) != set(names):
        raise ValueError(f"parameters {sorted(parameters)}; expected {sorted(names)}")
    values = {name: float(parameters[name]) for name in names}
    wrong = [name for name, value in values.items() if not (np.isfinite(value) and value > 0)]
    if wrong:
        raise ValueError(f"parameters must be positive numbers: {', '.join(wrong)}")
    return values
