"""Runs drawn: loss and validation beside the yardsticks, what the updates did, the weights over time, throughput.

A panel is a function that draws one thing of one or several runs into matplotlib axes. `nanoegg plot` puts all that
have something to show on one page; report.py takes them one by one. A run has one colour everywhere (a palette that
colour-blind readers can tell apart), a quantity has one line style, and bands span what a point stands for where a long
file is thinned.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.show.curves import POINTS, RunCurves, open_run
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import write_file
from nanoegg_mlx.store.metrics import WEIGHT_EDGES
from nanoegg_mlx.store.tokens import fingerprint, load_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#656d76", "#d9dde1"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "nanoegg",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
_TIMES = ((86400.0 * 2, 86400.0, "days"), (3600.0 * 2, 3600.0, "hours"), (60.0 * 3, 60.0, "minutes"))
_MOST_MAPS = 6
_STRIP = 7.0
"""Height of the heat map's two strips for the weights at -127 and 127, in units of its value axis."""


@dataclass(frozen=True)
class Scene:
    """What is drawn."""

    runs: Sequence[RunCurves]
    labels: Sequence[str]
    yardsticks: dict[str, float]
    """Bits per byte of the validation bytes under other models."""
    notes: Sequence[str]
    """What the reader has to know: what was left out and why, what was thinned."""

    def coloured(self) -> list[tuple[RunCurves, str, Any]]:
        """Each run with its colour and, since there are more runs than colours, its marker."""
        markers = [marker for marker in "os^Dv" for _ in COLOURS]
        return list(zip(self.runs, itertools.cycle(COLOURS), itertools.cycle(markers)))

    def has(self, *keys: str) -> bool:
        """Whether any run has any of these numbers."""
        return any(run.curves.has(key) for run in self.runs for key in keys)


@dataclass(frozen=True)
class Panel:
    """One thing to draw: it is left out where no run has any of the numbers that it `needs`."""

    title: str
    needs: tuple[str, ...]
    draw: Callable[[Axes, Scene], None]
    wide: bool = False


def compose(folders: Sequence[str | Path], points: int = POINTS) -> Scene:
    """Reads the runs, as curves of fewer than 2 `points`, and their yardsticks; raises InputError like `open_run`."""
    runs = [open_run(folder, points) for folder in folders]
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]
    figures, notes = yardsticks(runs)
    thinned = max(runs, key=lambda run: run.curves.width).curves.width
    if thinned > 1:
        notes.append(f"A point stands for up to {thinned:,} epochs: their mean, in a band from the least to the most.")
    if len(runs) > _MOST_MAPS and any(len(run.curves.weights) for run in runs):
        notes.append(f"Weight histograms are drawn for {_MOST_MAPS} runs at most; plot fewer runs to see them.")
    return Scene(runs, labels, figures, notes)


def yardsticks(runs: Sequence[RunCurves]) -> tuple[dict[str, float], list[str]]:
    """Unigram and bigram entropy and gzip of the validation cache that the runs share, and why there are none."""
    notes, found = [], {}
    for run in runs:
        path = run.config.get("data", {}).get("valid")
        if path is None:
            continue
        try:
            tokens = load_tokens(path)
        except InputError as error:
            notes.append(f"{run.name} has no yardsticks: {str(error).rstrip('.')}.")
            continue
        identity = fingerprint(tokens)
        recorded = [about for _, about in checkpoint.describe(run.folder) if about and "data" in about]
        if recorded and recorded[-1]["data"].get("valid") != identity:
            notes.append(f"{run.name} has no yardsticks: the content of {path} has changed since it was trained.")
        else:
            found[identity["sha256"]] = tokens
    if len(found) > 1:
        return {}, [*notes, "There are no yardsticks, since the runs were validated on different texts."]
    if not found:
        return {}, notes or ["There are no yardsticks, since no config.toml names a validation cache."]
    tokens = next(iter(found.values()))
    return {name: baselines.BASELINES[name](tokens) for name in ("unigram", "bigram", "gzip")}, notes


def panels(scene: Scene) -> list[Panel]:
    """The panels that have something to show, in the order of the page."""
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
        *(maps if len(maps) <= _MOST_MAPS else []),
        *([Panel("Matrix entries at the limits", (), _limits)] if maps else []),
        Panel(
            "Ties",
            ("ties",),
            partial(_over_epochs, key="ties", label="share of pairs without a vote", numbers=_percent),
        ),
        Panel(
            "Throughput",
            ("tokens_per_second",),
            partial(_over_epochs, key="tokens_per_second", label="tokens per second", numbers=_large_numbers),
        ),
        Panel("Resident memory", ("rss_mb",), _memory),
    ]
    return [panel for panel in candidates if not panel.needs or scene.has(*panel.needs)]


def page(scene: Scene) -> Figure:
    """All panels on one page, two side by side."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows: list[list[Panel]] = []
    for panel in panels(scene):
        if panel.wide or not rows or len(rows[-1]) == 2 or rows[-1][0].wide:
            rows.append([])
        rows[-1].append(panel)
    figure = Figure(figsize=(12.5, 2.95 * len(rows) + 1.1))
    figure.set_layout_engine("constrained", w_pad=0.13, h_pad=0.13)
    grid = figure.add_gridspec(len(rows), 2)
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            draw(figure.add_subplot(grid[number, :] if panel.wide else grid[number, column]), panel, scene)
    if len(scene.runs) == 1:
        title = f"{scene.labels[0]}: {describe(scene.runs[0])}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    else:
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=2.2, label=f"{label}: {describe(run)}")
            for (run, colour, marker), label in zip(scene.coloured(), scene.labels, strict=True)
        ]
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=1 if len(handles) < 4 else 2,
            fontsize=10,
            title=f"{len(handles)} runs",
            title_fontproperties={"size": 14, "weight": "bold"},
            alignment="left",
        )
    if scene.notes:
        figure.supxlabel("\n".join(scene.notes), x=0.012, ha="left", fontsize=9, color=MUTED)
    return figure


def draw(axes: Axes, panel: Panel, scene: Scene) -> None:
    """Draws a panel with its title."""
    axes.set_title(panel.title)
    panel.draw(axes, scene)


def describe(run: RunCurves) -> str:
    """A run in half a line: its model, population and length."""
    model, evolution = run.config.get("model", {}), run.config.get("evolution", {})
    parts = []
    if "n_layer" in model:
        parts.append(f"{model['n_layer']} layer{'s' * (model['n_layer'] != 1)}")
    if "n_embd" in model:
        parts.append(f"{model['n_embd']} wide")
    if "population" in evolution:
        parts.append(f"population {evolution['population']:,}")
    parts.append(f"{int(run.curves.last['epoch']):,} epochs")
    parts.append(f"{quantity(run.curves.last['tokens'])} tokens")
    return ", ".join(parts)


def quantity(number: float) -> str:
    """A number with three digits and the letter of its thousands: 61.4M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which a time is well read, in seconds, and its name."""
    return next(((size, name) for least, size, name in _TIMES if seconds >= least), (1.0, "seconds"))


def _line(axes: Axes, run: RunCurves, x: np.ndarray, key: str, colour: str, **style: Any) -> None:
    """A key of a run over x, where it has numbers, with the band of the lines that each point stands for."""
    y = run.curves.mean[key]
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return
    if run.curves.width > 1:
        band = run.curves.low[key][there], run.curves.high[key][there]
        axes.fill_between(x[there], *band, color=colour, alpha=0.18, linewidth=0, zorder=1)
    if there.sum() == 1:
        style = {"marker": "o", "markersize": 4, **style}
    axes.plot(x[there], y[there], color=colour, **style)


def _key(axes: Axes, scene: Scene, styles: dict[str, dict[str, Any]], **options: Any) -> None:
    """The legend of line styles: in the run's colour, or in ink where several runs share them."""
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
        _line(axes, run, x, "loss_mean", colour, linewidth=1.1, alpha=0.6)
        few = np.isfinite(run.curves.mean["validation"]).sum() <= 40
        _line(axes, run, x, "validation", colour, linewidth=2.0, marker=marker if few else "", markersize=3.6)
    axes.margins(x=0.015)
    _yardsticks(axes, scene.yardsticks)
    if against == "tokens":
        _large_numbers(axes.xaxis)
        axes.set_xlabel("tokens read by the population")
    else:
        axes.set_xlabel(f"training time in {unit}")
    axes.set_ylabel("bits per byte")
    styles = {"training": {"linewidth": 1.1, "alpha": 0.6}, "validation": {"linewidth": 2.0}}
    if scene.has("loss_mean") and scene.has("validation"):
        _key(axes, scene, styles)


def _yardsticks(axes: Axes, figures: dict[str, float]) -> None:
    """A line for each figure, named at its right end; the names keep their distance where the lines are close."""
    for figure in figures.values():
        axes.axhline(figure, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
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
        few = np.isfinite(run.curves.mean["validation"]).sum() <= 40
        _line(axes, run, x, "validation", colour, marker=marker if few else "", markersize=3.6)
        _line(axes, run, x, "validation_exact", colour, linestyle=(0, (1.5, 1.5)), linewidth=1.3)
    _epochs(axes)
    # The first tenth of a run is a steep descent, which the panels above show; here is what came after.
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
        _key(axes, scene, {"the reference's figure": {}, "exact code length": {"linestyle": (0, (1.5, 1.5))}})


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
        for key, style in _MOVED_STYLES.items():
            x, y = run.curves.mean["epoch"], run.curves.mean[key]
            there = y > 0  # a logarithm has no place for an update that moved nothing
            if run.curves.width > 1 and key != "alpha":
                low = np.where(run.curves.low[key] > 0, run.curves.low[key], y)
                axes.fill_between(x, low, run.curves.high[key], where=there, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x[there], y[there], color=colour, marker="o" if there.sum() == 1 else "", **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    _percent(axes.yaxis)
    _epochs(axes)
    axes.set_ylabel("share of entries")
    labels = ("matrices", "vectors", "expected of pure noise (alpha)")
    _key(axes, scene, dict(zip(labels, _MOVED_STYLES.values(), strict=True)))


_MOVED_STYLES: dict[str, dict[str, Any]] = {
    "moved_matrix": {"linewidth": 1.6},
    "moved_vector": {"linewidth": 1.0, "alpha": 0.55},
    "alpha": {"linewidth": 1.3, "linestyle": (0, (4, 2))},
}


def _threshold(axes: Axes, scene: Scene) -> None:
    for run, colour, _ in scene.coloured():
        x, y = run.curves.mean["epoch"], run.curves.mean["threshold"] / 16
        axes.plot(x, y, color=colour, marker="o" if np.isfinite(y).sum() == 1 else "", drawstyle="steps-post")
    _epochs(axes)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("standard deviations")


def _weights(axes: Axes, scene: Scene, run: RunCurves) -> None:
    from matplotlib.colors import LogNorm

    there = np.isfinite(run.curves.weights).all(axis=1)
    epochs, shares = run.curves.mean["epoch"][there], run.curves.weights[there]
    density = shares / np.diff(WEIGHT_EDGES)
    # The weights at -127 and at 127 get strips of their own, set off by a gap; between them the axis is true.
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
    # The colours are explained beside the title, so that the panel is as wide as two others.
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
        there = np.isfinite(shares)
        few = there.sum() <= 40
        axes.plot(
            run.curves.mean["epoch"][there], shares[there], color=colour, marker=marker if few else "", markersize=3.6
        )
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


def need_matplotlib() -> None:
    """Raises InputError, naming the extra, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("Drawing needs matplotlib: `pip install 'nanoegg-mlx[plot]'`.") from error


def check_output(path: Path, endings: Sequence[str], force: bool) -> None:
    """Raises InputError where the name has another ending, or the file exists and may not be overwritten."""
    if path.suffix.lower() not in endings:
        raise InputError(f"{path} is not allowed; its name has to end with {' or '.join(endings)}.")
    if path.exists() and not force:
        raise InputError(f"{path} exists already; --force overwrites it.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = (
        "Draws one run or several on one page: loss and validation against tokens and training time beside unigram, "
        "bigram and gzip figures of the validation cache, updates, weight histograms, throughput. A run may be in "
        "progress."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="image to write, .png or .svg")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Draws the page. Raises InputError for runs or an output that are not allowed; nothing is written then."""
    output = Path(options.output)
    check_output(output, (".png", ".svg"), options.force)
    need_matplotlib()
    import matplotlib

    scene = compose(options.runs)
    content = io.BytesIO()
    kind = output.suffix.lower()[1:]
    with matplotlib.rc_context(STYLE):
        figure = page(scene)
        figure.savefig(content, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    write_file(output, content.getvalue())
    for note in scene.notes:
        print(note, file=sys.stderr)
    print(f"{output}: {', '.join(scene.labels)}")
    return 0
