"""Recency, frequency and monetary value: what a customer's orders say."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from features.naming import Feature
from features.tables import DAY_US, History

FAMILY = "rfm"
TABLES = ("orders",)
WINDOWS_DAYS = (7, 14, 28, 90, 180, 365)


def block(history: History) -> tuple[ir.Table, tuple[Feature, ...]]:
    """orders -> customer_id and one column per feature, for every customer with a paid order.

    Refunds (negative amounts) lower the sums and are counted apart; free orders (amount 0) change nothing.
    A statistic of repeat orders is missing for a customer with one order.
    """
    orders = history.orders
    per_customer = orders.group_by("customer_id").aggregate(**_sums(orders))
    buyers = per_customer.filter(per_customer.paid_count > 0)
    features = _whole_life(buyers, history) | _windows(buyers, history)
    selected = {feature.name: value.cast("float64") for feature, value in features.items()}
    return buyers.select("customer_id", **selected), tuple(features)


def _sums(orders: ir.Table) -> dict[str, ir.Scalar]:
    """Whole numbers only, so that the result does not depend on the order in which rows are added up."""
    paid, refund = orders.amount > 0, orders.amount < 0
    sums = {
        "paid_count": paid.sum(),
        "paid_sum": orders.amount.sum(where=paid).fill_null(0),
        "paid_max": orders.amount.max(where=paid),
        "net_sum": orders.amount.sum(),
        "refund_count": refund.sum(),
        "refund_sum": orders.amount.sum(where=refund).fill_null(0),
        "discount_sum": orders.discount.sum(where=paid).fill_null(0),
        "first_age_us": orders.age_us.max(where=paid),
        "last_age_us": orders.age_us.min(where=paid),
        "purchase_days": (orders.age_us // DAY_US).nunique(where=paid),
    }
    for window in WINDOWS_DAYS:
        inside = orders.age_us <= window * DAY_US
        sums[f"paid_count_{window}"] = (paid & inside).sum()
        sums[f"net_sum_{window}"] = orders.amount.sum(where=inside).fill_null(0)
    return sums


def _whole_life(buyers: ir.Table, history: History) -> dict[Feature, ir.Value]:
    rhythm_us = (buyers.first_age_us - buyers.last_age_us) / (buyers.paid_count - 1).nullif(0)
    return {
        Feature("recency", "days", "days since the last order; low is good"): _days(buyers.last_age_us),
        Feature("tenure", "days", "days since the first order"): _days(buyers.first_age_us),
        Feature("orders", "count", "paid orders"): buyers.paid_count,
        Feature("repeat", "count", "paid orders after the first"): buyers.paid_count - 1,
        Feature("purchase_days", "count", "days of 24 hours before the cutoff with a paid order"): buyers.purchase_days,
        Feature("order_value", "mean", "mean paid order, currency"): history.money(buyers.paid_sum) / buyers.paid_count,
        Feature("order_value", "max", "largest paid order, currency"): history.money(buyers.paid_max),
        Feature("spend", "sum", "paid less refunded, currency"): history.money(buyers.net_sum),
        Feature("refunds", "count", "refunds"): buyers.refund_count,
        Feature("refunds", "sum", "money given back, currency, negative"): history.money(buyers.refund_sum),
        Feature("discount", "share", "discount per currency paid"): buyers.discount_sum.cast("float64")
        / buyers.paid_sum,
        Feature("interpurchase_days", "mean", "mean days between orders; missing with one order"): _days(rhythm_us),
        Feature("recency", "rhythms", "recency over the mean days between orders"): buyers.last_age_us
        / rhythm_us.nullif(0),
    }


def _windows(buyers: ir.Table, history: History) -> dict[Feature, ir.Value]:
    features: dict[Feature, ir.Value] = {}
    for window in WINDOWS_DAYS:
        count, net = buyers[f"paid_count_{window}"], buyers[f"net_sum_{window}"]
        features[Feature("orders", "count", f"paid orders in the last {window} days", window_days=window)] = count
        features[Feature("spend", "sum", f"net spend in the last {window} days, currency", window_days=window)] = (
            history.money(net)
        )
    for shorter, longer in ((28, 90), (90, 180), (180, 365)):
        share = buyers[f"paid_count_{shorter}"] / buyers[f"paid_count_{longer}"].nullif(0)
        meaning = f"share of the orders of the last {longer} days that fall in the last {shorter}; missing without any"
        features[Feature("orders", f"share_of_{longer}d", meaning, window_days=shorter)] = share
    return features


def _days(age_us: ir.Value) -> ir.Value:
    return age_us.cast("float64") / ibis.literal(float(DAY_US))
