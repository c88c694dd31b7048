from __future__ import annotations

from serving.histories import rows_of


def _orders(customers):
    return rows_of(customers, ["orders"])["orders"]


def test_a_row_belongs_to_the_customer_it_is_sent_under_whatever_it_says():
    rows = _orders([{"customer_id": "a", "orders": [{"customer_id": "b", "amount": 1}]}, {"customer_id": "b"}])
    assert [row["customer_id"] for row in rows] == ["0"]


def test_no_customer_id_enters_the_rows():
    assert "secret" not in str(rows_of([{"customer_id": "secret", "orders": [{"amount": 1}]}], ["events"]))


def test_equal_order_ids_of_two_customers_stay_apart():
    rows = _orders([{"customer_id": c, "orders": [{"order_id": "1"}]} for c in "ab"])
    assert [row["order_id"] for row in rows] == ["0:1", "1:1"]


def test_lines_still_find_their_order():
    customer = {"customer_id": "a", "orders": [{"order_id": " 7 "}], "order_lines": [{"order_id": "7", "line_id": "x"}]}
    tables = rows_of([customer], [])
    assert tables["orders"][-1]["order_id"] == tables["order_lines"][0]["order_id"] == "0:7"


def test_a_blank_id_is_none():
    assert [row["order_id"] for row in _orders([{"customer_id": "a", "orders": [{"order_id": "  "}]}])] == [None]


def test_tables_that_the_release_needs_are_there_without_rows():
    assert rows_of([{"customer_id": "a"}], ["events", "orders"]).keys() == {"events", "orders"}
