"""A page of runs: reads their metrics, lays the panels out, writes PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.baselines import BASELINES
from nanoegg_mlx.show.curves import POINTS, RunCurves, open_run
from nanoegg_mlx.show.panels import MOST_MAPS, Panel, Scene, draw, panels
from nanoegg_mlx.show.style import MUTED, STYLE
from nanoegg_mlx.show.text import describe
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.checkpoint import outside_checkpoints
from nanoegg_mlx.store.durable import write_file
from nanoegg_mlx.store.tokens import fingerprint, load_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_runs(folders: Sequence[str | Path], output: Path, force: bool = False) -> Scene:
    """Draws runs on one page and writes it; returns the scene, which has the notes to the page.

    Args:
        folders: the folders of the runs.
        output: image to write, .png or .svg.
        force: overwrite the image if it exists.

    Raises:
        InputError: a run cannot be read, the output has another ending or exists, or matplotlib is not installed;
            nothing is written.
    """
    check_output(output, (".png", ".svg"), force)
    need_matplotlib()
    import matplotlib

    scene = compose(folders)
    content = io.BytesIO()
    kind = output.suffix.lower()[1:]
    with matplotlib.rc_context(STYLE):
        # Without a date, the same runs give the same SVG.
        page(scene).savefig(content, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    write_file(output, content.getvalue())
    return scene


def compose(folders: Sequence[str | Path], points: int = POINTS) -> Scene:
    """Reads runs, as curves of fewer than 2 `points`, and their baselines. Raises InputError as `open_run` does."""
    runs = [open_run(folder, points) for folder in folders]
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]
    baselines, notes = shared_baselines(runs)
    width = max(run.curves.width for run in runs)
    if width > 1:
        notes.append(f"Each point is the mean of up to {width:,} epochs; the band spans their minimum and maximum.")
    if len(runs) > MOST_MAPS and any(len(run.curves.weights) for run in runs):
        notes.append(f"Weight histograms are drawn for {MOST_MAPS} runs at most; plot fewer runs to see them.")
    return Scene(runs, labels, baselines, notes)


def shared_baselines(runs: Sequence[RunCurves]) -> tuple[dict[str, float], list[str]]:
    """Returns the baselines of the validation cache that the runs share, and notes on those that are missing.

    The baselines are the unigram and bigram entropy and gzip, in bits per byte; empty if the runs share no cache.
    """
    notes, found = [], {}
    for run in runs:
        path = run.config.get("data", {}).get("valid")
        if path is None:
            continue
        try:
            tokens = load_tokens(path)
        except InputError as error:
            notes.append(f"{run.name} has no baselines: {str(error).rstrip('.')}.")
            continue
        identity = fingerprint(tokens)
        recorded = [about for _, about in checkpoint.describe(run.folder) if about and "data" in about]
        if recorded and recorded[-1]["data"].get("valid") != identity:
            notes.append(f"{run.name} has no baselines: the content of {path} has changed since the run was trained.")
        else:
            found[identity["sha256"]] = tokens
    if len(found) > 1:
        return {}, [*notes, "There are no baselines: the runs were validated on different texts."]
    if not found:
        return {}, notes or ["There are no baselines: no config.toml names a validation cache."]
    tokens = next(iter(found.values()))
    return {name: BASELINES[name](tokens) for name in ("unigram", "bigram", "gzip")}, notes


def page(scene: Scene) -> Figure:
    """Draws all panels on one page, two side by side. The caller sets the style."""
    from matplotlib.figure import Figure

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
    _head(figure, scene)
    if scene.notes:
        figure.supxlabel("\n".join(scene.notes), x=0.012, ha="left", fontsize=9, color=MUTED)
    return figure


def _head(figure: Figure, scene: Scene) -> None:
    """Adds the name of the run as a title, or a legend of several runs."""
    from matplotlib.lines import Line2D

    if len(scene.runs) == 1:
        title = f"{scene.labels[0]}: {describe(scene.runs[0])}"
        figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
        return
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


def need_matplotlib() -> None:
    """Raises InputError, with the name of the extra, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("matplotlib is not installed; drawing needs it: `pip install 'nanoegg-mlx[plot]'`.") from error


def check_output(path: Path, endings: Sequence[str], force: bool) -> None:
    """Raises InputError if the name has none of the endings, or if the file exists and `force` is not set."""
    if path.suffix.lower() not in endings:
        raise InputError(f"The output is {path}; its name must end with {' or '.join(endings)}.")
    outside_checkpoints(path)
    if path.exists() and not force:
        raise InputError(f"The output {path} exists; it must be a new file, or --force overwrites it.")
