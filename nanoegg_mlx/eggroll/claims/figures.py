"""A figure for each result, on a light or a dark background."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nanoegg_mlx.eggroll.claims.report import Result
from nanoegg_mlx.eggroll.claims.runs import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]
_BACKGROUND = {"light": "#ffffff", "dark": "#0d1117"}
_INK = {"light": "#24292f", "dark": "#d0d7de"}
_FAINT = {"light": "#d8dee4", "dark": "#30363d"}
# Distinct on either background and for the colour-blind: after Okabe and Ito, none too pale or too dark.
_COLOURS = ["#0f8fd6", "#e66a00", "#12a37a", "#c965a8", "#8a72e0", "#b58900", "#d1495b", "#6b7f8e"]


def draw(name: str, result: Result, theme: Theme = "light") -> Figure:
    """Draws the figure of an experiment.

    Args:
        name: of the experiment, one of `claims.EXPERIMENTS`.
        result: of this experiment.
    """
    cycler, matplotlib, figures = (optional(name) for name in ("cycler", "matplotlib", "matplotlib.figure"))
    ink, background = _INK[theme], _BACKGROUND[theme]
    style: Any = {
        "figure.facecolor": background, "savefig.facecolor": background, "axes.facecolor": background,
        "legend.facecolor": background,
        "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "axes.titlecolor": ink, "xtick.color": ink,
        "ytick.color": ink, "legend.edgecolor": _FAINT[theme], "grid.color": _FAINT[theme], "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9,
        "axes.titlesize": 10, "legend.fontsize": 8, "lines.linewidth": 1.6,
        "axes.prop_cycle": cycler.cycler(color=_COLOURS),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure: Figure = figures.Figure(figsize=(9, 3.6), layout="constrained")
        _DRAW[name](figure, result.series)
    return figure


def png(name: str, result: Result, theme: Theme = "light") -> bytes:
    """The figure as a PNG file of 256 colours: enough here, and a third of the bytes."""
    Image = optional("PIL.Image")
    drawn, file = io.BytesIO(), io.BytesIO()
    draw(name, result, theme).savefig(drawn, format="png", dpi=120)
    every = Image.open(drawn).convert("RGB")
    few = every.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    # Quantising may change the background by a bit; the figure would then stand out from its page.
    palette, background = few.getpalette(), few.getpixel((0, 0))
    palette[3 * background : 3 * background + 3] = every.getpixel((0, 0))
    few.putpalette(palette)
    few.save(file, format="png", optimize=True)
    return file.getvalue()


def band(axes: Axes, x: Sequence[float] | np.ndarray, curves: Any, label: str, colour: str, **line: Any) -> None:
    """Draws the mean over seeds and, shaded, the standard deviation. curves: (seeds, points)."""
    values = np.asarray(curves, np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    axes.plot(x, mean, label=label, color=colour, **line)
    axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)


def population_band(axes: Axes, reports: Any, label: str) -> None:
    """Draws mean, spread and maximum of the members' fitness over the steps of one run. reports: (steps, 3)."""
    mean, std, top = np.asarray(reports, np.float64).T
    steps = np.arange(len(mean))
    axes.plot(steps, mean, color=_COLOURS[0], label="mean")
    axes.fill_between(
        steps, mean - std, mean + std, color=_COLOURS[0], alpha=0.25, linewidth=0, label="± standard deviation"
    )
    axes.plot(steps, top, color=_COLOURS[1], linewidth=1, label="best member")
    axes.set(title="Spread of the population, first seed", xlabel="step", ylabel=label)
    axes.legend()


def _quadratic(figure: Figure, series: dict[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3, sharey=True)
    curves: dict[str, np.ndarray] = series["curves"]
    steps = np.arange(series["steps"] + 1)
    # The run of rank 1 is also that of the middle population, and is stored under the name of the rank only.
    by_rank = {name: curves[name] for name in curves if name.startswith("rank")}
    by_population = {name: curves[name if name in curves else "rank 1"] for name in series["populations"]}

    def line(axes: Axes, x: np.ndarray, name: str, loss: np.ndarray, number: int) -> None:
        style = "--" if name == "SGD" else "-"
        axes.plot(x, (loss / loss[:, :1]).mean(axis=0), style, label=name, color=_COLOURS[number], alpha=0.9)

    for axes, chosen, title in (
        (left, by_rank, "Rank (population 64)"),
        (middle, by_population, "Population (rank 1)"),
    ):
        for number, (name, loss) in enumerate([*chosen.items(), ("SGD", curves["SGD"])], 1):
            line(axes, steps, name, loss, number % (len(chosen) + 1))
        axes.set(title=title, xlabel="step", yscale="log")
        axes.legend()
    for number, (name, loss) in enumerate(by_population.items(), 1):
        line(right, np.maximum(steps * series["populations"][name], 1), name, loss, number)
    line(right, np.maximum(steps, 1), "SGD", curves["SGD"], 0)
    right.set(title="By evaluations", xlabel="evaluations", xscale="log")
    left.set_ylabel("loss, of the initial one")


def _stability(figure: Figure, series: dict[str, Any]) -> None:
    maps, rates = series["maps"], series["rates"]
    methods = list(dict.fromkeys(method for method, _ in maps))
    conditions = list(dict.fromkeys(condition for _, condition in maps))
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        values = np.stack([maps[(method, condition)] for condition in conditions])
        image = axes.pcolormesh(
            np.arange(len(rates) + 1), np.arange(len(conditions) + 1), values, vmin=0, vmax=1, cmap="cividis"
        )
        ticks = np.arange(0, len(rates), max(1, len(rates) // 5))
        axes.set_xticks(ticks + 0.5, [f"{rates[i]:.2g}" for i in ticks])
        axes.set_yticks(np.arange(len(conditions)) + 0.5, [f"{condition:g}" for condition in conditions])
        axes.grid(False)
        axes.set(title=method, xlabel="learning rate")
    panels[0].set_ylabel("condition number")
    figure.colorbar(image, ax=list(panels), label="share of stable runs")


def _step_reward(figure: Figure, series: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    curves = series["curves"]
    band(left, series["steps"], curves, "EGGROLL", _COLOURS[0])
    left.axhline(
        np.mean([curve[0] for curve in curves]),
        color=_COLOURS[1],
        linestyle="--",
        label="gradient ascent (zero gradient)",
    )
    left.set(title="Test accuracy", xlabel="step", ylabel="share of right answers")
    left.legend()
    population_band(right, series["population"][0], "reward")


def _two_moons(figure: Figure, series: dict[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3)
    sigma = series["sigmas"][len(series["sigmas"]) // 2]
    shown = [n for n in series["fitness"] if n.endswith(f"sigma {sigma}") or n == "backpropagation"]
    for number, name in enumerate(shown):
        curves = np.asarray(series["fitness"][name])
        each = 1 if name == "backpropagation" else int(name.split("population ")[1].split(",")[0])
        label = "backpropagation" if each == 1 else f"population {each}"
        band(left, np.arange(curves.shape[1]), curves, label, _COLOURS[number])
        band(middle, (np.arange(curves.shape[1]) + 1) * each, curves, label, _COLOURS[number])
    left.set(title=f"Fitness (sigma {sigma})", xlabel="step", ylabel="log-likelihood, nats")
    middle.set(title="By evaluations", xlabel="evaluations", xscale="log")
    left.legend(loc="lower right")
    heat(right, series["grid"], series["sigmas"], series["populations"])
    right.set(title="Test accuracy", xlabel="population", ylabel="sigma")


def heat(axes: Axes, grid: dict[tuple[float, int], float], rows: Sequence[float], columns: Sequence[int]) -> None:
    """Draws a map with its numbers in the cells."""
    values = np.array([[grid[(row, column)] for column in columns] for row in rows])
    axes.pcolormesh(np.arange(len(columns) + 1), np.arange(len(rows) + 1), values, cmap="cividis")
    middle = (values.min() + values.max()) / 2
    for i in range(len(rows)):
        for j in range(len(columns)):
            axes.text(
                j + 0.5,
                i + 0.5,
                f"{values[i, j]:.3f}",
                ha="center",
                va="center",
                color="black" if values[i, j] > middle else "white",
            )
    axes.set_xticks(np.arange(len(columns)) + 0.5, [str(column) for column in columns])
    axes.set_yticks(np.arange(len(rows)) + 0.5, [str(row) for row in rows])
    axes.grid(False)


def _low_rank(figure: Figure, series: dict[str, Any]) -> None:
    axes = figure.subplots()
    ranks, bias = np.array(series["ranks"]), np.array(series["bias"])
    mean = bias.mean(axis=1)
    axes.fill_between(
        ranks, bias.min(axis=1), bias.max(axis=1), color=_COLOURS[0], alpha=0.18, linewidth=0, label="all layers"
    )
    axes.plot(
        ranks, mean, "o-", color=_COLOURS[0], label=f"bias of the expected update, exact (slope {series['slope']:.2f})"
    )
    axes.plot(ranks, mean[-1] * ranks[-1] / ranks, "--", color=_COLOURS[1], label="1 / r")
    for number, (rank, (value, error)) in enumerate(series["sampled"].items()):
        axes.errorbar(
            rank,
            value,
            2 * error,
            fmt="s",
            color=_COLOURS[2],
            capsize=3,
            label="sampled, ± 2 standard errors" if not number else None,
        )
    axes.plot(
        ranks, series["noise"], "^:", color=_COLOURS[3], label=f"noise of a single update, N = {series['population']}"
    )
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set(
        title="Low-rank against full-rank update",
        xlabel="rank r",
        ylabel="relative to the full-rank update",
        xscale="log",
        yscale="log",
    )
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.set_xticks([], minor=True)
    axes.legend()


def _aggregate_rank(figure: Figure, series: dict[str, Any]) -> None:
    spectra = series["spectra"]
    populations = list(dict.fromkeys(population for _, population in spectra))
    chosen = sorted({populations[len(populations) // 3], populations[2 * len(populations) // 3], populations[-1]})
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, population in zip(panels, chosen, strict=True):
        for rank, of in spectra:
            if of == population:
                values = spectra[(rank, of)]
                shown = values > 1e-5 * values[0]
                style = "--" if rank == "full" else "-"
                index = list(dict.fromkeys(rank for rank, _ in spectra)).index(rank)
                axes.plot(
                    np.arange(1, len(values) + 1)[shown],
                    values[shown],
                    style,
                    marker=".",
                    label=f"rank {rank}",
                    color=_COLOURS[index],
                )
        axes.set(title=f"N = {population} members", xlabel="singular value", yscale="log")
    panels[0].set_ylabel("value / sqrt(N)")
    panels[-1].legend()


def _throughput(figure: Figure, series: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    cells = series["cells"]
    widths = sorted({cell[1] for cell in cells})
    populations = sorted({cell[2] for cell in cells})
    each = sorted({cell[0] for cell in cells})
    for number, population in enumerate(populations):
        for b, style in zip(each, ("o-", "s--", "^:"), strict=False):
            chosen = sorted((cell[1], cell[3], cell[4]) for cell in cells if cell[0] == b and cell[2] == population)
            if chosen:
                x, kept, faster = zip(*chosen, strict=True)
                label = f"N = {population}, {b} row{'s' if b > 1 else ''}"
                left.plot(x, kept, style, color=_COLOURS[number], label=label, markersize=4)
                right.plot(x, faster, style, color=_COLOURS[number], markersize=4)
    for axes, claim in ((left, 0.91), (right, 100)):
        axes.axhline(claim, color=_COLOURS[6], linewidth=1)
        place = {"ha": "right", "va": "top", "xytext": (0, -3), "textcoords": "offset points"}
        axes.annotate(f"paper: {claim}", (widths[-1], claim), color=_COLOURS[6], fontsize=8, **place)
    for axes in (left, right):
        axes.set(xlabel="width", xscale="log")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.set_xticks([], minor=True)
    left.set(title="Share of pure inference speed", ylim=(0, 1.25))
    right.set(title="Times as fast as naive", yscale="log")
    left.legend(ncols=2, loc="lower right", fontsize=7)


def _cartpole(figure: Figure, series: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    x = np.arange(len(series["curves"][0])) * series["each"]
    for curve in series["curves"]:
        left.plot(x, curve, color=_COLOURS[0], alpha=0.3, linewidth=1)
    left.plot(x, np.mean(series["curves"], axis=0), color=_COLOURS[0], label="mean of the seeds")
    left.axhline(series["mark"], color=_COLOURS[1], linestyle="--", label="mark")
    left.set(title="Return of the mean policy", xlabel="episodes", ylabel="steps before the fall")
    left.legend(loc="lower right")
    population_band(right, series["population"][0], "return")


def _digits(figure: Figure, series: dict[str, Any]) -> None:
    axes = figure.subplots()
    for number, (name, x) in enumerate((("EGGROLL", "ES evaluations"), ("backpropagation", "backprop evaluations"))):
        # A logarithmic axis has no zero: the start is left out.
        first = int(series[x][0] == 0)
        band(axes, series[x][first:], np.array(series["curves"][name])[:, first:], name, _COLOURS[number])
    axes.set(
        title="Digits: test accuracy",
        xlabel="evaluations (a backward pass counts two)",
        xscale="log",
        ylabel="accuracy",
    )
    axes.legend()


def _update_variance(figure: Figure, series: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    keys = list(series["variance"])[::-1]
    names = [f"{'pairs' if a else 'single'}, baseline {b}, {s}" for a, b, s in keys]
    medians = [float(np.median(series["variance"][key])) for key in keys]
    largest = max(value for value in medians if np.isfinite(value))
    for row, (key, value) in enumerate(zip(keys, medians, strict=True)):
        colour = _COLOURS[0] if key[0] else _COLOURS[1]
        if np.isfinite(value):
            left.barh(row, value, color=colour)
        else:
            left.text(1.2, row, "no signal", va="center", fontsize=8)
        right.barh(
            row, np.mean(series["cosine"][key]), xerr=np.std(series["cosine"][key]), color=colour, ecolor=_COLOURS[7]
        )
    left.set_yticks(range(len(keys)), names)
    left.set(title="Variance / signal², by medians", xscale="log", xlim=(1, 3 * largest))
    right.set(title="Cosine to the gradient")


_DRAW = {
    "quadratic": _quadratic,
    "stability": _stability,
    "step_reward": _step_reward,
    "two_moons": _two_moons,
    "low_rank": _low_rank,
    "aggregate_rank": _aggregate_rank,
    "throughput": _throughput,
    "cartpole": _cartpole,
    "digits": _digits,
    "update_variance": _update_variance,
}
