"""Panels: each draws one quantity of one or several runs into matplotlib axes.

page.py puts all panels that have data on one page; report.py draws each of them alone. Where a long file is thinned, a
band spans the minimum and maximum of the lines in each point.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoegg_mlx.show.curves import RunCurves
from nanoegg_mlx.show.style import (
    BASELINE,
    COLOURS,
    EXACT,
    INK,
    LEAF_GROUPS,
    LEAF_STYLES,
    MARKERS,
    MOVED,
    MUTED,
    TRAINING,
    VALIDATION,
)
from nanoegg_mlx.show.text import quantity, time_unit
from nanoegg_mlx.store.metrics import WEIGHT_EDGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

MOST_MAPS = 6
"""With more runs, no weight histograms are drawn."""

_STRIP = 7.0
"""Height of the heat map's strips for the weights at -127 and 127, in units of its value axis."""
_FEW = 40
"""A curve with at most as many validations has markers."""


@dataclass(frozen=True)
class Scene:
    """The runs to draw, with their labels, baselines and notes."""

    runs: Sequence[RunCurves]
    labels: Sequence[str]
    baselines: dict[str, float]
    """Bits per byte of the validation bytes under other models."""
    notes: Sequence[str]
    """Sentences for the reader: missing baselines and panels, thinned curves."""

    def coloured(self) -> list[tuple[RunCurves, str, Any]]:
        """Returns each run with its colour and marker. The markers separate runs that share a colour."""
        markers = [marker for marker in MARKERS for _ in COLOURS]
        return list(zip(self.runs, itertools.cycle(COLOURS), itertools.cycle(markers)))

    def has(self, *keys: str) -> bool:
        """Returns whether any run has any of these numbers."""
        return any(run.curves.has(key) for run in self.runs for key in keys)


@dataclass(frozen=True)
class Panel:
    """One drawing. It is omitted if no run has any of the numbers in `needs`."""

    title: str
    needs: tuple[str, ...]
    draw: Callable[[Axes, Scene], None]
    wide: bool = False


def panels(scene: Scene) -> list[Panel]:
    """Returns the panels that have data, in the order of the page."""
    maps = [
        Panel(
            "Matrix weights over time" + (f": {label}" if len(scene.runs) > 1 else ""),
            (),
            partial(_weights, run=run),
            wide=True,
        )
        for run, label in zip(scene.runs, scene.labels, strict=True)
        if np.isfinite(run.curves.weights).any()
    ]
    candidates = [
        Panel("Loss against tokens", ("loss_mean", "validation"), partial(_loss, against="tokens")),
        Panel("Loss against training time", ("loss_mean", "validation"), partial(_loss, against="seconds")),
        Panel("Validation, close up", ("validation", "validation_exact"), _validation),
        Panel("Losses over the population", ("loss_min", "loss_max", "loss_std"), _population),
        Panel("Entries moved by an update", ("moved_matrix", "moved_vector"), _moved),
        Panel("Threshold of the vote", ("threshold",), _threshold),
        Panel("Votes over noise", ("signal.head",), partial(_by_group, figure="signal")),
        Panel("Entries moved, by group of leaves", ("moved.head",), partial(_by_group, figure="moved")),
        Panel("Credit of a token", ("credit_rms",), _credit),
        *(maps if len(maps) <= MOST_MAPS else []),
        *([Panel("Matrix entries at the limits", (), _limits)] if maps else []),
        Panel(
            "Ties",
            ("ties",),
            partial(_over_epochs, key="ties", label="share of pairs with fitness 0", numbers=_percent),
        ),
        Panel(
            "Throughput",
            ("tokens_per_second",),
            partial(_over_epochs, key="tokens_per_second", label="tokens per second", numbers=_large_numbers),
        ),
        Panel("Resident memory", ("rss_mb",), _memory),
    ]
    return [panel for panel in candidates if not panel.needs or scene.has(*panel.needs)]


def draw(axes: Axes, panel: Panel, scene: Scene) -> None:
    """Draws a panel with its title."""
    axes.set_title(panel.title)
    panel.draw(axes, scene)


def _line(axes: Axes, run: RunCurves, x: np.ndarray, key: str, colour: str, **style: Any) -> None:
    """Draws the finite values of a key over x, with the band of the lines in each point."""
    y = run.curves.mean[key]
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return
    if run.curves.width > 1:
        band = run.curves.low[key][finite], run.curves.high[key][finite]
        axes.fill_between(x[finite], *band, color=colour, alpha=0.18, linewidth=0, zorder=1)
    if finite.sum() == 1:  # a line through one point is invisible
        style = {"marker": "o", "markersize": 4, **style}
    axes.plot(x[finite], y[finite], color=colour, **style)


def _markers(values: np.ndarray, marker: str) -> dict[str, Any]:
    """Returns the style options that mark the finite values if there are few."""
    return {"marker": marker if np.isfinite(values).sum() <= _FEW else "", "markersize": 3.6}


def _key(axes: Axes, scene: Scene, styles: dict[str, dict[str, Any]], **options: Any) -> None:
    """Adds a legend of line styles: in the colour of the run, or in ink if several runs share the styles."""
    from matplotlib.lines import Line2D

    colour = COLOURS[0] if len(scene.runs) == 1 else INK
    handles = [Line2D([], [], label=label, **{"color": colour, **style}) for label, style in styles.items()]
    axes.legend(handles=handles, **{"loc": "upper right", **options})


def _epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    _large_numbers(axes.xaxis)
    axes.set_xlabel("epochs")
    axes.margins(x=0.015)


def _large_numbers(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: quantity(value))


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}\N{NARROW NO-BREAK SPACE}%")


def _loss(axes: Axes, scene: Scene, against: str) -> None:
    size, unit = 1.0, ""
    if against == "seconds":
        size, unit = time_unit(max(np.nan_to_num(run.curves.last["seconds"]) for run in scene.runs))
    for run, colour, marker in scene.coloured():
        x = run.curves.mean[against] / size
        _line(axes, run, x, "loss_mean", colour, **TRAINING)
        markers = _markers(run.curves.mean["validation"], marker)
        _line(axes, run, x, "validation", colour, **VALIDATION, **markers)
    axes.margins(x=0.015)
    _baselines(axes, scene.baselines)
    if against == "tokens":
        _large_numbers(axes.xaxis)
        axes.set_xlabel("tokens read by the population")
    else:
        axes.set_xlabel(f"training time in {unit}")
    axes.set_ylabel("bits per byte")
    if scene.has("loss_mean") and scene.has("validation"):
        _key(axes, scene, {"training": TRAINING, "validation": VALIDATION})


def _baselines(axes: Axes, figures: dict[str, float]) -> None:
    """Draws a line for each figure, named at its right end. The names keep a distance if the lines are close."""
    for figure in figures.values():
        axes.axhline(figure, **BASELINE, zorder=1)
    height = -np.inf
    for name, figure in sorted(figures.items(), key=lambda item: item[1]):
        height = max(figure, height + 0.16 * float(np.ptp(axes.get_ylim())))
        axes.annotate(
            f"{name}\n{figure:.3f}", (1, height), (5, 0), ("axes fraction", "data"), "offset points",
            va="center", fontsize=8.5, color=MUTED, annotation_clip=False, linespacing=1.1,
        )  # fmt: skip


def _validation(axes: Axes, scene: Scene) -> None:
    for run, colour, marker in scene.coloured():
        x = run.curves.mean["epoch"]
        _line(axes, run, x, "validation", colour, **_markers(run.curves.mean["validation"], marker))
        _line(axes, run, x, "validation_exact", colour, **EXACT, linewidth=1.3)
    _epochs(axes)
    # The panels above show the steep first tenth of a run. This panel is scaled to the rest.
    late = []
    for run in scene.runs:
        epochs = run.curves.mean["epoch"]
        late += [run.curves.mean[key][epochs >= epochs[-1] / 10] for key in ("validation", "validation_exact")]
    figures = np.concatenate(late)
    figures = figures[np.isfinite(figures)]
    if len(figures):
        margin = 0.08 * float(np.ptp(figures)) or 0.1
        axes.set_ylim(figures.min() - margin, figures.max() + margin)
    axes.set_ylabel("bits per byte")
    if scene.has("validation_exact"):
        _key(axes, scene, {"the reference's figure": {}, "exact code length": EXACT})


def _population(axes: Axes, scene: Scene) -> None:
    several = len(scene.runs) > 1
    for run, colour, _ in scene.coloured():
        curves = run.curves
        if not any(curves.has(key) for key in ("loss_min", "loss_max", "loss_std")):
            continue
        x, mean, deviation = curves.mean["epoch"], curves.mean["loss_mean"], curves.mean["loss_std"]
        low, high = curves.low["loss_min"], curves.high["loss_max"]
        if several:
            for extreme in (low, high):
                axes.plot(x, extreme, color=colour, linewidth=0.7, alpha=0.5)
        else:
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.3, linewidth=0)
        axes.plot(x, mean, color=colour, linewidth=1.4)
    _epochs(axes)
    axes.set_ylabel("bits per byte")
    extremes: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.5} if several else {"linewidth": 8, "alpha": 0.16}
    styles = {"mean": {"linewidth": 1.4}, "± standard deviation": {"linewidth": 8, "alpha": 0.4}}
    _key(axes, scene, {**styles, "best and worst": extremes}, ncols=3, columnspacing=1.2, handlelength=1.8)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.18 * np.ptp(axes.get_ylim()))


def _moved(axes: Axes, scene: Scene) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for run, colour, _ in scene.coloured():
        for key, style in MOVED.items():
            x, y = run.curves.mean["epoch"], run.curves.mean[key]
            positive = y > 0  # a logarithmic axis cannot show an update that moved nothing
            if run.curves.width > 1 and key != "alpha":
                low = np.where(run.curves.low[key] > 0, run.curves.low[key], y)
                axes.fill_between(x, low, run.curves.high[key], where=positive, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x[positive], y[positive], color=colour, marker="o" if positive.sum() == 1 else "", **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    _percent(axes.yaxis)
    _epochs(axes)
    axes.set_ylabel("share of entries")
    labels = ("matrices", "vectors", "expected for pure noise (alpha)")
    _key(axes, scene, dict(zip(labels, MOVED.values(), strict=True)))


def _threshold(axes: Axes, scene: Scene) -> None:
    for run, colour, _ in scene.coloured():
        x, y = run.curves.mean["epoch"], run.curves.mean["threshold"] / 16
        axes.plot(x, y, color=colour, marker="o" if np.isfinite(y).sum() == 1 else "", drawstyle="steps-post")
    _epochs(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("standard deviations")


def _by_group(axes: Axes, scene: Scene, figure: str) -> None:
    """Draws the mean of a figure over the leaves of each group, on a logarithmic axis."""
    for run, colour, _ in scene.coloured():
        epochs = run.curves.mean["epoch"]
        for group, style in LEAF_STYLES.items():
            values = np.mean([run.curves.mean[f"{figure}.{leaf}"] for leaf in LEAF_GROUPS[group]], axis=0)
            positive = values > 0
            axes.plot(epochs[positive], values[positive], color=colour, **style)
    axes.set_yscale("log")
    if figure == "signal":
        axes.axhline(1, **BASELINE, zorder=1)
        axes.set_ylabel("mean of Z\N{SUPERSCRIPT TWO} / S, 1 for pure noise")
    else:
        _percent(axes.yaxis)
        axes.set_ylabel("share of entries")
    _epochs(axes)
    _key(axes, scene, LEAF_STYLES, ncols=2)


def _credit(axes: Axes, scene: Scene) -> None:
    for run, colour, _ in scene.coloured():
        _line(axes, run, run.curves.mean["epoch"], "credit_rms", colour)
    _epochs(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("root mean square, 1/16 bit")


def _weights(axes: Axes, scene: Scene, run: RunCurves) -> None:
    """Draws a heat map: density of the weights' values (y) over epochs (x), on a logarithmic scale of colours."""
    from matplotlib.colors import LogNorm

    finite = np.isfinite(run.curves.weights).all(axis=1)
    epochs, shares = run.curves.mean["epoch"][finite], run.curves.weights[finite]
    density = shares / np.diff(WEIGHT_EDGES)
    # The weights at -127 and 127 have separate strips beyond a gap: cells one value high would be invisible.
    # The axis between the strips is linear.
    y = np.concatenate(
        [[-130 - _STRIP, -130], WEIGHT_EDGES[1:-2] - 0.5, [126.5, 130, 130 + _STRIP]],
    )
    empty = np.full((len(epochs), 1), np.nan)
    cells = np.hstack([density[:, :1], empty, density[:, 1:-1], empty, density[:, -1:]])
    half = np.diff(epochs, prepend=epochs[0] - 1, append=epochs[-1] + 1) / 2
    x = np.concatenate([epochs - half[:-1], [epochs[-1] + half[-1]]])
    least, most = density[density > 0].min(), density.max()
    mesh = axes.pcolormesh(
        x,
        y,
        np.ma.masked_where(~(cells.T > 0), cells.T),
        norm=LogNorm(max(least, most * 1e-6), most * (1 + 1e-9)),
        cmap="viridis",
        rasterized=True,
    )
    axes.grid(visible=False)
    middle = 130 + _STRIP / 2
    axes.set_yticks(
        [-middle, -100, -50, 0, 50, 100, middle],
        ["\N{MINUS SIGN}127", "\N{MINUS SIGN}100", "\N{MINUS SIGN}50", "0", "50", "100", "127"],
    )
    axes.set_ylabel("weight")
    _epochs(axes)
    axes.margins(x=0)
    _colour_key(axes, mesh)


def _colour_key(axes: Axes, mesh: QuadMesh) -> None:
    """Adds the scale of colours beside the title: the panel keeps the width of two others."""
    legend = axes.inset_axes((0.76, 1.05, 0.24, 0.05))
    colours = axes.get_figure(root=True).colorbar(mesh, cax=legend, orientation="horizontal")  # type: ignore[union-attr]
    colours.outline.set_visible(False)
    legend.minorticks_off()
    legend.xaxis.set_ticks_position("top")
    legend.tick_params(labelsize=8.5, length=2, pad=1)
    legend.set_ylabel("share of entries per weight value", rotation=0, ha="right", va="center", fontsize=9)


def _limits(axes: Axes, scene: Scene) -> None:
    for run, colour, marker in scene.coloured():
        shares = run.curves.weights[:, 0] + run.curves.weights[:, -1]
        finite = np.isfinite(shares)
        epochs = run.curves.mean["epoch"][finite]
        axes.plot(epochs, shares[finite], color=colour, **_markers(shares, marker))
    _percent(axes.yaxis)
    _epochs(axes)
    if axes.dataLim.ymax > 0:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 0.01)
        axes.annotate("none", (0.5, 0), (0, 6), "axes fraction", "offset points", ha="center", color=MUTED)
    axes.set_ylabel("share with the value ±127")


def _over_epochs(axes: Axes, scene: Scene, key: str, label: str, numbers: Callable[[Any], None]) -> None:
    for run, colour, _ in scene.coloured():
        _line(axes, run, run.curves.mean["epoch"], key, colour, linewidth=1.2)
    numbers(axes.yaxis)
    _epochs(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)


def _memory(axes: Axes, scene: Scene) -> None:
    for run, colour, _ in scene.coloured():
        _line(axes, run, run.curves.mean["epoch"], "rss_mb", colour)
    _epochs(axes)
    axes.set_ylim(0, 1.15 * axes.dataLim.ymax)
    axes.set_ylabel("MiB")
