"""The reviewer's pictures: labelled, with something in them, and drawn for awkward shops too."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from training.baselines import Baseline
from training.dataset import Outcomes
from training.evaluate import MODEL
from training.figures import calibration, deciles, figures, gain

PNG = b"\x89PNG"


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


@pytest.fixture(scope="module")
def drawn(trained):
    return figures(trained.bundle, trained.evaluation, "USD")


@pytest.mark.parametrize("name", ["calibration.png", "gain.png", "deciles.png", "importance.png"])
def test_every_figure_asks_a_question_and_has_labels_and_data(drawn, name):
    figure = drawn[name]
    assert figure.get_suptitle().endswith("?")
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_title(loc="left")
        assert axes.get_ylabel() or axes.get_yticklabels()[0].get_text()  # a bar chart names its bars
        assert axes.lines or axes.patches
    content = png(figure)
    assert content.startswith(PNG) and len(content) > 15_000


def test_exactly_the_four_figures_are_drawn(drawn):
    assert set(drawn) == {"calibration.png", "gain.png", "deciles.png", "importance.png"}


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_model_comes_first_and_every_predictor_is_named(drawn):
    assert labels(drawn["gain.png"])[0].startswith(f"{MODEL} (Gini 0.")
    assert labels(drawn["calibration.png"])[0].startswith(f"{MODEL} (mean gap 0.")
    for name in ("last_window", "rfm", "bg_nbd", "lightgbm_defaults"):
        assert any(label.startswith(name) for label in labels(drawn["gain.png"]))
    assert not [label for label in labels(drawn["calibration.png"]) if label.startswith("last_window")]


def test_the_bars_are_the_money(drawn, trained):
    bars = drawn["deciles.png"].axes[0].containers
    shown = [np.mean([bar.get_height() for bar in group]) for group in bars[:2]]
    predicted, actual = trained.evaluation.predictions[MODEL].value, trained.evaluation.outcomes.value
    assert shown == pytest.approx([predicted.mean(), actual.mean()], rel=0.05)


def test_the_currency_and_the_horizon_are_on_the_axis(trained):
    assert deciles(trained.evaluation, "VND").axes[0].get_ylabel() == "mean VND per customer in 90 days"


def awkward(evaluation, outcomes: Outcomes, p: np.ndarray, value: np.ndarray):
    predictions = {MODEL: Baseline(MODEL, p, value), "absent": Baseline("absent", None, None, "why")}
    comparison = evaluation.comparison.reindex([MODEL, "absent"])
    return replace(evaluation, outcomes=outcomes, predictions=predictions, comparison=comparison)


@pytest.mark.parametrize(
    ("repurchased", "value", "p"),
    [
        pytest.param(np.zeros(50), np.zeros(50), np.full(50, 0.1), id="nobody buys"),
        pytest.param(np.ones(50), np.full(50, 3.0), np.full(50, 1.0), id="everybody buys the same"),
        pytest.param(np.arange(3) % 2, np.arange(3.0), np.array([0.0, 0.5, 1.0]), id="three customers"),
        pytest.param(np.arange(50) % 2, -np.arange(50.0), np.linspace(0, 1, 50), id="refunds only"),
        pytest.param(np.arange(50) % 2, np.arange(50) * 3e9, np.linspace(0, 0.01, 50), id="large money, small p"),
    ],
)
def test_awkward_shops_are_drawn_without_a_warning(trained, repurchased, value, p):
    outcomes = Outcomes(np.asarray(repurchased, dtype=np.float64), value)
    found = awkward(trained.evaluation, outcomes, p, np.abs(value))
    for figure in (calibration(found), gain(found), deciles(found, "USD")):
        assert png(figure).startswith(PNG)
