"""The pictures that a reviewer reads in the MLflow UI, one question each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from training.baselines import Baseline
from training.bundle import Bundle, Head
from training.evaluate import MODEL, Evaluation
from training.metrics import calibration_table, decile_table, gain_table

# Distinct to colour-blind eyes too, after Okabe and Ito.
COLOURS = {
    MODEL: "#0b5394",
    "last_window": "#e69f00",
    "rfm": "#009e73",
    "bg_nbd": "#cc79a7",
    "lightgbm_defaults": "#d55e00",
}
OTHER, QUIET, ACTUAL = "#56b4e9", "#9aa1a9", "#e69f00"


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
    figure, axes = _canvas(
        "Do as many buy again as the probabilities say?",
        f"tenths of {_customers(evaluation)}",
        f"predicted probability of buying within {evaluation.horizon_days} days",
        "share that bought",
    )
    highest = 0.0
    for entry in _drawn(evaluation):
        if entry.p is None:
            continue
        table = calibration_table(evaluation.outcomes.repurchased, entry.p)
        gap = evaluation.comparison["expected_calibration_error"][entry.name]
        line = _draw(axes, entry.name, table["predicted"], table["observed"], f"mean gap {gap:.3f}")
        line.set_marker("o")
        highest = max(highest, table["predicted"].max(), table["observed"].max())
    end = min(1.0, highest * 1.05)
    axes.plot([0, end], [0, end], color=QUIET, linewidth=1, linestyle="--", zorder=1, label="exactly right")
    axes.set(xlim=(0, end), ylim=(0, end))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return _with_legend(figure, axes)


def gain(evaluation: Evaluation) -> Figure:
    """How much of the money do the best customers hold? The order of each predictor, and the perfect one."""
    figure, axes = _canvas(
        "How much of the money is held by the customers ranked highest?",
        _customers(evaluation),
        "share of customers, highest ranked first",
        f"share of the revenue of {evaluation.horizon_days} days",
    )
    value = evaluation.outcomes.value
    for entry in _drawn(evaluation):
        if entry.value is None:
            continue
        table = gain_table(value, entry.value)
        gini = evaluation.comparison["normalized_gini"][entry.name]
        _draw(axes, entry.name, table["customers_share"], table["value_share"], f"Gini {gini:.3f}")
    perfect = gain_table(value, value)
    axes.plot(perfect["customers_share"], perfect["value_share"], color=QUIET, linestyle=":", label="perfect order")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--", label="no order")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return _with_legend(figure, axes)


def deciles(evaluation: Evaluation, currency: str) -> Figure:
    """Is the money right in every tenth? Mean predicted beside mean actual, best tenth first."""
    figure, axes = _canvas(
        "Is the money right in every tenth of the customers?",
        _customers(evaluation),
        "tenth of the customers by predicted value, 1 the highest",
        f"mean {currency} per customer in {evaluation.horizon_days} days",
    )
    predicted = evaluation.predictions[MODEL].value
    table = decile_table(evaluation.outcomes.value, np.zeros(0) if predicted is None else predicted)
    for shift, column, colour in ((-0.2, "predicted", COLOURS[MODEL]), (0.2, "actual", ACTUAL)):
        bars = axes.bar(table["decile"] + shift, table[column], width=0.4, color=colour, label=column)
        axes.bar_label(bars, [_short(amount) for amount in table[column]], fontsize=7, padding=1, color="#333333")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(table["decile"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda amount, _: _short(amount)))
    return _with_legend(figure, axes)


def importance(bundle: Bundle, top: int = 15) -> Figure:
    """What do the models look at? Share of the total gain, the leading features of both primary models."""
    heads = [head for head in bundle.heads if head.horizon_days == bundle.primary_horizon_days]
    figure = Figure(figsize=(5.4 * len(heads), 5.2), layout="constrained")
    figure.suptitle("What do the models look at?", x=0.01, ha="left", fontsize=12, fontweight="bold")
    for axes, head in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads, strict=True):
        _draw_importance(axes, head, bundle.spec.names, top)
    return figure


def _draw_importance(axes: Axes, head: Head, names: tuple[str, ...], top: int) -> None:
    gains = head.booster.feature_importance("gain")
    shares = gains / (gains.sum() or 1.0)
    leading = np.argsort(-shares, kind="stable")[:top][::-1]
    bars = axes.barh([names[place] for place in leading], shares[leading], color=COLOURS[MODEL])
    axes.bar_label(bars, [f"{share:.0%}" for share in shares[leading]], fontsize=8, padding=3)
    axes.set_title(head.column, loc="left", fontsize=10)
    axes.set_xlabel("share of the total gain of the trees' splits")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.12, y=0.02)
    _plain(axes)


def _drawn(evaluation: Evaluation) -> Iterator[Baseline]:
    """The predictors with something to show, the model last and so on top; the mean orders nobody."""
    names = [name for name in evaluation.predictions if name not in (MODEL, "mean")]
    return (evaluation.predictions[name] for name in (*names, MODEL))


def _draw(axes: Axes, name: str, x: pd.Series[float], y: pd.Series[float], note: str) -> Line2D:
    """One predictor's line, the model's in front of the others."""
    width, order = (2.4, 3) if name == MODEL else (1.2, 2)
    label = f"{name} ({note})"
    drawn = axes.plot(x, y, color=COLOURS.get(name, OTHER), linewidth=width, zorder=order, label=label, clip_on=False)
    drawn[0].set_markersize(2 * width)
    return drawn[0]


def _canvas(title: str, subtitle: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes.set_title(subtitle, loc="left", fontsize=9, color="#555555")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _plain(axes)
    return figure, axes


def _with_legend(figure: Figure, axes: Axes) -> Figure:
    """The legend below the axes, where it covers no line; the model first."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda place: not labels[place].startswith(MODEL))
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside lower center",
        ncols=min(3, len(labels)),
        frameon=False,
        fontsize=8,
    )
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)


def _customers(evaluation: Evaluation) -> str:
    return f"{evaluation.customers:,} customers, {evaluation.horizon_days} days from {evaluation.cutoff:%Y-%m-%d}"


def _short(amount: float) -> str:
    """1234567 as 1.2M, three digits at most: a bar has little room."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(amount) >= size:
            return f"{amount / size:.3g}{letter}"
    return f"{amount:.2g}" if abs(amount) < 10 else f"{amount:.0f}"
