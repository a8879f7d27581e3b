"""Drawings of a sweep for its report. Complete trials have the run colour, and the best one stands out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoegg_mlx.show.curves import Curves
from nanoegg_mlx.show.report import inline, svg_style
from nanoegg_mlx.show.style import COLOURS, GRID, INK, MUTED
from nanoegg_mlx.show.text import time_unit
from nanoegg_mlx.sweeps.ranges import Range, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST = 10
"""Trials whose learning curves are drawn."""
_CURVES = COLOURS[:5]
"""Colours of learning curves; the next one is the first one's in the dark."""
_DONE: dict[str, Any] = {"color": COLOURS[0], "linestyle": "none", "marker": "o", "markersize": 6, "alpha": 0.65}
_TOP: dict[str, Any] = {"color": COLOURS[0], "linestyle": "none", "marker": "o", "markersize": 10}
_PRUNED: dict[str, Any] = {"color": MUTED, "linestyle": "none", "marker": "x", "markersize": 5, "alpha": 0.8}


@dataclass(frozen=True)
class Row:
    """A trial as the report shows it."""

    number: int
    state: str
    """complete, pruned, refused, lost or running."""
    figure: float
    """Bits per byte: of a complete trial at the end, of others at the last validation; NaN before the first."""
    values: Mapping[str, Value]
    curves: Curves = field(default_factory=Curves)
    """Of the first seed's run; empty if this machine does not have it."""

    @property
    def complete(self) -> bool:
        return self.state == "complete"


def drawing(title: str, draw: Callable[[Axes], None], wide: bool = False, height: float = 3.1) -> str:
    """Returns a figure element of HTML."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(svg_style(title)):
        figure = Figure(figsize=(12.6 if wide else 6.2, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        draw(axes)
        return f'<figure class="{"wide" if wide else ""}">{inline(figure, title)}</figure>'


def draw_best(axes: Axes, rows: Sequence[Row]) -> None:
    """The figure of each trial, and the least so far."""
    from matplotlib.ticker import MaxNLocator

    done = [row for row in rows if row.complete]
    numbers, figures = [row.number for row in done], [row.figure for row in done]
    least = np.minimum.accumulate(figures)
    axes.plot(numbers, figures, **_DONE, label="complete")
    axes.step(numbers, least, where="post", color=COLOURS[0], linewidth=2, label="best so far")
    _mark_pruned(axes, [row.number for row in rows if row.state == "pruned"])
    axes.set(xlabel="trial", ylabel="bits per byte")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)


def draw_importance(axes: Axes, importance: Mapping[str, float]) -> None:
    """A bar for each field."""
    names = list(importance)[::-1]
    shares = [100 * importance[name] for name in names]
    axes.barh(names, shares, color=COLOURS[0], height=0.55)
    for position, share in enumerate(shares):
        axes.annotate(f"{share:.0f} %", (share, position), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set(xlabel="share of the importance, %", xlim=(0, max(shares, default=1) * 1.15 or 1))
    axes.grid(axis="y", visible=False)


def draw_slice(axes: Axes, one: Range, rows: Sequence[Row]) -> None:
    """The figures of the complete trials against one field's values."""
    done = [row for row in rows if row.complete and one.name in row.values]
    at = {row.number: _place(one, row.values[one.name]) for row in rows if one.name in row.values}
    best = min(done, key=lambda row: row.figure, default=None)
    axes.plot([at[row.number] for row in done], [row.figure for row in done], **_DONE, label="complete")
    if best:
        axes.plot(at[best.number], best.figure, **_TOP, label=f"best: {text(best.values[one.name])}")
    _mark_pruned(axes, [at[row.number] for row in rows if row.state == "pruned" and row.number in at])
    positions, texts = _ticks(one)
    axes.set_xticks(positions, texts)
    label = f"{one.name}, times the epochs" if one.times_epochs else one.name
    axes.set(xlabel=label, ylabel="bits per byte", xlim=(-0.06, 1.06))
    _legend(axes)


def draw_parallel(axes: Axes, ranges: Sequence[Range], rows: Sequence[Row]) -> None:
    """A line for each trial through its values to its figure; the better, the more opaque."""
    done = sorted((row for row in rows if row.complete), key=lambda row: -row.figure)
    figures = [row.figure for row in done]
    low, high = (min(figures), max(figures)) if figures else (0.0, 1.0)
    for row in rows:
        if row.state == "pruned" and len(row.values) == len(ranges):
            places = [_place(one, row.values[one.name]) for one in ranges]
            axes.plot(places, color=MUTED, linewidth=0.9, alpha=0.45, linestyle=(0, (3, 2)))
    for rank, row in enumerate(done):
        places = [_place(one, row.values[one.name]) for one in ranges]
        places.append((row.figure - low) / (high - low) if high > low else 0.5)
        best = rank == len(done) - 1
        axes.plot(
            places, color=COLOURS[0], linewidth=3 if best else 1.4, alpha=1 if best else 0.12 + 0.5 * rank / len(done)
        )
    for column, one in enumerate(ranges):
        _scale(axes, column, *_ticks(one))
    _scale(axes, len(ranges), [0, 0.5, 1], [f"{low + share * (high - low):.3f}" for share in (0, 0.5, 1)])
    names = [f"{one.name}\n(times the epochs)" if one.times_epochs else one.name for one in ranges]
    axes.set_xticks(range(len(ranges) + 1), [*names, "bits per byte"])
    axes.set(xlim=(-0.1, len(ranges) + 0.25), ylim=(-0.05, 1.05), yticks=[])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def draw_curves(axes: Axes, key: str, rows: Sequence[Row]) -> None:
    """Validations of the best trials against `tokens` or `seconds`."""
    last = max((row.curves.last["seconds"] for row in rows if row.curves.has("seconds")), default=0.0)
    size, unit = time_unit(last) if key == "seconds" else (1e6, "million tokens")
    for number, row in enumerate(rows):
        if not (row.curves.has(key) and row.curves.has("validation")):
            continue
        x, y = row.curves.mean[key], row.curves.mean["validation"]
        known = np.isfinite(y) & (row.curves.mean["epoch"] > 0)
        style: Any = "-" if number < len(_CURVES) else (0, (4, 2))
        axes.plot(
            x[known] / size, y[known], color=_CURVES[number % len(_CURVES)], linestyle=style,
            linewidth=2.6 if number == 0 else 1.3, marker="o", markersize=3, label=f"{row.number}: {row.figure:.3f}",
        )  # fmt: skip
    axes.set(xlabel=unit if key == "tokens" else f"{unit} of training", ylabel="bits per byte")
    if axes.lines:
        axes.legend(title="trial", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)


def text(value: Value) -> str:
    """A value as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _place(one: Range, value: Value) -> float:
    """The value's place between the ends of its range, from 0 to 1."""
    if one.choices:
        values: list[Any] = list(one.choices) if one.kind in ("str", "bool") else sorted(one.choices)
        return values.index(value) / (len(values) - 1) if len(values) > 1 else 0.5
    scale: Callable[[float], float] = math.log if one.log else float
    low, high = scale(one.low), scale(one.high)
    return (scale(float(value)) - low) / (high - low)


def _ticks(one: Range) -> tuple[list[float], list[str]]:
    """Places and texts of a few values of a range."""
    if one.choices:
        values: list[Value] = list(one.choices)
    elif one.kind == "int" and one.high - one.low <= 6:
        values = [*range(int(one.low), int(one.high) + 1)]
    else:
        inner = [
            math.exp(math.log(one.low) + share * math.log(one.high / one.low))
            if one.log
            else one.low + share * (one.high - one.low)
            for share in (0.25, 0.5, 0.75)
        ]
        values = [one.low, *inner, one.high]
    return [_place(one, value) for value in values], [text(value) for value in values]


def _mark_pruned(axes: Axes, at: Sequence[float]) -> None:
    """Marks of the pruned trials at the upper edge, since their figures are of shorter training."""
    if at:
        edge = [1.0] * len(at)
        axes.plot(at, edge, **_PRUNED, transform=axes.get_xaxis_transform(), clip_on=False, label="pruned")


def _scale(axes: Axes, column: int, places: Sequence[float], texts: Sequence[str]) -> None:
    """A vertical axis of the parallel coordinates, with its values."""
    axes.axvline(column, color=MUTED, linewidth=0.9)
    for place, written in zip(places, texts, strict=True):
        axes.plot([column, column + 0.015], [place, place], color=MUTED, linewidth=0.9)
        axes.annotate(
            written, (column, place), (6, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
        )


def _legend(axes: Axes) -> None:
    axes.margins(y=0.12)
    axes.legend(loc="best", frameon=True, framealpha=0, edgecolor=GRID)
