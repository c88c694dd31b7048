"""Engagement: what customers do between orders (visits, carts, opened e-mails), and how often we contact them."""

from __future__ import annotations

import ibis.expr.types as ir

from features.naming import Feature, as_word
from features.tables import DAY_US, History

FAMILY = "engagement"
TABLES = ("events", "exposures")
WINDOWS_DAYS = (7, 28, 90)
MAX_EVENT_TYPES = 16
TAKEN_WORDS = ("orders", "contact", "contacts")


def learn_event_types(history: History) -> tuple[str, ...]:
    """The most frequent event types of the history, alphabetical; the vocabulary that a FeatureSpec freezes."""
    events = history.events.group_by("type").aggregate(rows=history.events.count())
    top = events.order_by(events.rows.desc(), events.type).limit(MAX_EVENT_TYPES)
    return tuple(sorted(top.to_pyarrow()["type"].to_pylist()))


def _word(event_type: str) -> str:
    """The event type in a feature's name; never one that makes the name of another family's feature."""
    word = as_word(event_type)
    return f"{word}_event" if word in TAKEN_WORDS else word


def events_block(history: History, event_types: tuple[str, ...]) -> tuple[ir.Table, tuple[Feature, ...]]:
    """events -> customer_id and counts and recency per event type, for every customer with an event."""
    events = history.events
    features: dict[Feature, ir.Value] = {}
    for word in sorted(set(map(_word, event_types))):
        of_type = events.type.isin([event_type for event_type in event_types if _word(event_type) == word])
        features[Feature(word, "recency_days", f"days since the last {word} event; missing without one")] = (
            events.age_us.min(where=of_type).cast("float64") / float(DAY_US)
        )
        for window in WINDOWS_DAYS:
            meaning = f"{word} events in the last {window} days"
            inside = of_type & (events.age_us <= window * DAY_US)
            features[Feature(word, "count", meaning, window_days=window)] = inside.sum().cast("float64")
    return _aggregate(events, features)


def exposures_block(history: History) -> tuple[ir.Table, tuple[Feature, ...]]:
    """exposures -> customer_id, contacts received (the control arm receives none) and days since the last."""
    exposures = history.exposures
    sent = (exposures.arm != "control").fill_null(True)
    last = Feature("contact", "recency_days", "days since the last contact; missing without one")
    features: dict[Feature, ir.Value] = {last: exposures.age_us.min(where=sent).cast("float64") / float(DAY_US)}
    for window in WINDOWS_DAYS:
        meaning = f"contacts received in the last {window} days"
        inside = sent & (exposures.age_us <= window * DAY_US)
        features[Feature("contacts", "count", meaning, window_days=window)] = inside.sum().cast("float64")
    return _aggregate(exposures, features)


def add_rates(snapshot: ir.Table) -> tuple[ir.Table, tuple[Feature, ...]]:
    """Opens and clicks per contact received, where the snapshot has both; missing without a contact."""
    features: dict[Feature, ir.Value] = {}
    for word in ("email_open", "email_click"):
        if f"{word}_count_90d" in snapshot.columns and "contacts_count_90d" in snapshot.columns:
            rate = snapshot[f"{word}_count_90d"] / snapshot.contacts_count_90d.nullif(0)
            features[Feature(word, "rate", f"{word} per contact received", window_days=90)] = rate
    return snapshot.mutate(**{f.name: value for f, value in features.items()}), tuple(features)


def _aggregate(table: ir.Table, features: dict[Feature, ir.Value]) -> tuple[ir.Table, tuple[Feature, ...]]:
    named = {feature.name: value for feature, value in features.items()}
    return table.group_by("customer_id").aggregate(**named), tuple(features)
