"""The pictures that a reviewer reads in the MLflow UI, one question each."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.bundle import Bundle
from training.evaluate import MODEL, Evaluation
from training.metrics import calibration_table, decile_table, gain_table

MODEL_COLOUR, OTHERS, QUIET = "#1f5fa8", ("#d98032", "#6a9a4a", "#a05a9c", "#8a8a8a", "#c8b23c"), "#b8bec6"


def figures(bundle: Bundle, evaluation: Evaluation, currency: str) -> dict[str, Figure]:
    """File name -> figure, of the model on its evaluation window."""
    return {
        "calibration.png": calibration(evaluation),
        "gain.png": gain(evaluation),
        "deciles.png": deciles(evaluation, currency),
        "importance.png": importance(bundle),
    }


def calibration(evaluation: Evaluation) -> Figure:
    """Is a probability a probability? Tenths of the customers, predicted against observed."""
    figure, axes = _canvas("Of those given p, how many bought again?", "predicted probability", "share that bought again")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, zorder=1)
    for colour, (name, predicted) in zip((MODEL_COLOUR, *OTHERS), evaluation.predictions.items(), strict=False):
        if predicted.p is None or name == "mean":
            continue
        table = calibration_table(evaluation.outcomes.repurchased, predicted.p)
        style = {"linewidth": 2.2, "zorder": 3} if name == MODEL else {"linewidth": 1, "alpha": 0.8, "zorder": 2}
        axes.plot(table["predicted"], table["observed"], marker="o", markersize=4, color=colour, label=name, **style)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)
    return figure


def gain(evaluation: Evaluation) -> Figure:
    """How much of the money do the best customers hold? The order of each predictor, and the perfect one."""
    figure, axes = _canvas("Money held by the customers ranked highest", "share of customers", "share of the money")
    value = evaluation.outcomes.value
    perfect = gain_table(value, value)
    axes.plot(perfect["customers_share"], perfect["value_share"], color=QUIET, linestyle=":", label="perfect order")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    for colour, (name, predicted) in zip((MODEL_COLOUR, *OTHERS), evaluation.predictions.items(), strict=False):
        if predicted.value is None or name == "mean":
            continue
        table = gain_table(value, predicted.value)
        width = 2.2 if name == MODEL else 1
        axes.plot(table["customers_share"], table["value_share"], color=colour, linewidth=width, label=name)
    axes.legend(frameon=False, loc="lower right")
    return figure


def deciles(evaluation: Evaluation, currency: str) -> Figure:
    """Is the money right in every tenth? Mean predicted beside mean actual, best tenth first."""
    figure, axes = _canvas("Lifetime value by score decile", "decile of predicted value, 1 the highest",
                           f"mean {currency} per customer in {evaluation.horizon_days} days")
    model = evaluation.predictions[MODEL]
    assert model.value is not None
    table = decile_table(evaluation.outcomes.value, model.value)
    axes.bar(table["decile"] - 0.2, table["predicted"], width=0.4, color=MODEL_COLOUR, label="predicted")
    axes.bar(table["decile"] + 0.2, table["actual"], width=0.4, color=OTHERS[0], label="actual")
    axes.set_xticks(table["decile"])
    axes.legend(frameon=False)
    return figure


def importance(bundle: Bundle, top: int = 15) -> Figure:
    """What do the models look at? Share of the total gain, the leading features of both primary models."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    heads = [head for head in bundle.heads if head.horizon_days == bundle.primary_horizon_days]
    for axes, head in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads, strict=True):
        gains = head.booster.feature_importance("gain")
        leading = np.argsort(gains)[::-1][:top][::-1]
        axes.barh([bundle.spec.names[i] for i in leading], gains[leading] / max(gains.sum(), 1e-300), color=MODEL_COLOUR)
        axes.set_title(head.column, loc="left", fontsize=11)
        axes.set_xlabel("share of the gain")
        _plain(axes)
    return figure


def _canvas(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
