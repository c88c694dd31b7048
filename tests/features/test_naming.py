"""Feature names follow one grammar, whatever a shop calls its events."""

from __future__ import annotations

import re

import pytest

from features.naming import Feature, as_word
from features.snapshot import list_features

ODD_TYPES = (
    "Email Open", "email_open", "email-open ", "Ünïcode", "đặt hàng", "訪問", "購入", "!!!", "orders", "orders_event",
    "contact", "contacts", "order", "recency", "90d", "visit",
)  # fmt: skip
GRAMMAR = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


def test_a_name_is_built_from_its_parts() -> None:
    assert Feature("orders", "count", "").name == "orders_count"
    assert Feature("orders", "count", "", window_days=90).name == "orders_count_90d"
    assert Feature("spend", "sum", "", group="category", window_days=365).name == "spend_sum_by_category_365d"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Email Open", "email_open"),
        ("email-open ", "email_open"),
        ("Ünïcode", "unicode"),
        ("đặt hàng", "dat_hang"),
        ("!!!", "unnamed"),
        ("", "unnamed"),
        ("Add2Cart", "add2cart"),
    ],
)
def test_a_word_is_plain_letters_and_digits(text: str, word: str) -> None:
    assert as_word(text) == word


def test_words_in_other_scripts_stay_apart() -> None:
    assert as_word("訪問") != as_word("購入")
    assert as_word("訪問") == as_word("訪問")
    assert GRAMMAR.fullmatch(as_word("訪問"))


def test_names_are_unique_and_follow_the_grammar_for_odd_event_types() -> None:
    names = [feature.name for feature in list_features(("orders", "events", "exposures"), ODD_TYPES)]
    print(f"{len(names)} names of {len(ODD_TYPES)} event types")
    assert len(names) > 3 * len(ODD_TYPES)
    assert sorted({name for name in names if names.count(name) > 1}) == []
    assert [name for name in names if not GRAMMAR.fullmatch(name)] == []


def test_every_feature_says_what_it_means() -> None:
    features = list_features(("orders", "events", "exposures"), ("visit", "email_open"))
    assert [feature.name for feature in features if not feature.meaning] == []
