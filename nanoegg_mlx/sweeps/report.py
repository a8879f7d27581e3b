"""A sweep as one self-contained HTML page: no network, no script, no second file; light and dark."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.show.curves import Curves, open_run
from nanoegg_mlx.show.page import need_matplotlib
from nanoegg_mlx.show.report import document
from nanoegg_mlx.show.text import duration, quantity
from nanoegg_mlx.store.durable import write_file
from nanoegg_mlx.sweeps import figures
from nanoegg_mlx.sweeps.figures import Row, drawing
from nanoegg_mlx.sweeps.spec import Spec
from nanoegg_mlx.sweeps.study import read_study

if TYPE_CHECKING:
    import optuna

_POINTS = 400
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting"}


def write_report(spec: Spec, folder: Path, storage: str | None = None) -> Path:
    """Writes the report of a sweep, which may be in progress, and returns the page's path.

    Args:
        spec: checked.
        folder: the sweep's; the page is its report.html, which is replaced.
        storage: as for `run_sweep`.

    Raises:
        InputError: there is no such sweep, or matplotlib or Optuna is not installed.
    """
    need_matplotlib()
    study = read_study(spec, folder, storage)
    output = folder / "report.html"
    write_file(output, page(spec, folder, study).encode())
    return output


def page(spec: Spec, folder: Path, study: optuna.Study) -> str:
    """Returns the report of a sweep as an HTML document."""
    rows = _rows(spec, folder, study)
    ranked = sorted((row for row in rows if row.complete), key=lambda row: row.figure)
    drawings = _drawings(spec, study, rows, ranked) if ranked else []
    body = [
        f"<h1>{escape(spec.name)}</h1>",
        f'<p class="muted">A sweep of {spec.trials} trials of {_budget(spec)} each, {escape(spec.sampler)} sampler, '
        f"pruner: {escape(spec.pruner)}; {time.strftime('%Y-%m-%d %H:%M')}</p>",
        _tiles(spec, rows, ranked),
        *(f'<p class="note">{note}</p>' for note in _notes(spec, rows, ranked)),
        *drawings,
        "<h2>Trials</h2>",
        _table(spec, rows, ranked),
        "<h2>Sweep</h2>",
        _origin(spec),
    ]
    return document(f"{spec.name} - nanoegg sweep", body)


def _rows(spec: Spec, folder: Path, study: optuna.Study) -> list[Row]:
    rows = []
    for trial in study.get_trials(deepcopy=False):
        state = _STATES.get(trial.state.name, "refused" if "error" in trial.user_attrs else "lost")
        done = trial.intermediate_values
        figure = trial.value if state == "complete" else done[max(done)] if done else None
        try:
            curves = open_run(folder / spec.run_name(trial.number, 0), _POINTS).curves
        except InputError:
            curves = Curves()  # another machine has it, or it has no line yet
        rows.append(Row(trial.number, state, math.nan if figure is None else figure, trial.params, curves))
    return rows


def _budget(spec: Spec) -> str:
    amount = quantity(spec.amount)
    return f"{amount} {spec.budget.replace('_', '-')}" + (f" and {spec.seeds} seeds" if spec.seeds > 1 else "")


def _tiles(spec: Spec, rows: Sequence[Row], ranked: Sequence[Row]) -> str:
    count = {state: sum(row.state == state for row in rows) for state in ("complete", "pruned", "running")}
    tiles = [(str(number), f"trials {state}") for state, number in count.items()]
    if ranked:
        best = ranked[0]
        tiles = [(f"{best.figure:.4f}", f"bits per byte, best: trial {best.number}"), *tiles]
    spent = [row.curves.last["seconds"] for row in rows if row.curves.has("seconds")]
    if spent:
        tiles.append((duration(sum(spent)), "of training" + ", first seeds" * (spec.seeds > 1)))
    shown = "".join(f'<div class="tile"><b>{figure}</b><span>{what}</span></div>' for figure, what in tiles)
    return f'<div class="tiles">{shown}</div>'


def _notes(spec: Spec, rows: Sequence[Row], ranked: Sequence[Row]) -> list[str]:
    notes = []
    if not ranked:
        notes.append("No trial is complete yet.")
    if spec.seeds == 1:
        notes.append("Each trial is one seed: another seed would change its figure, and may change the order.")
    if any(row.state == "pruned" for row in rows):
        notes.append("Figures of pruned trials are those of their last validation, after less training.")
    return notes


def _drawings(spec: Spec, study: optuna.Study, rows: Sequence[Row], ranked: Sequence[Row]) -> list[str]:
    best = ranked[: figures.BEST]
    importance = _importance(spec, study, ranked)
    if importance:
        shares = drawing("Importance (PED-ANOVA)", partial(figures.draw_importance, importance=importance))
    else:
        least = _least_for_importance(spec)
        shares = f'<figure><p class="muted">Importance needs at least {least} complete trials.</p></figure>'
    slices = (drawing(one.name, partial(figures.draw_slice, one=one, rows=rows)) for one in spec.ranges)
    curves = (
        drawing(f"Validation against {key}", partial(figures.draw_curves, key=key, rows=best), height=3.6)
        for key in ("tokens", "seconds")
    )
    lines = partial(figures.draw_parallel, ranges=spec.ranges, rows=rows)
    return [
        "<h2>Course of the sweep</h2>",
        '<div class="figures">',
        drawing("Best so far", partial(figures.draw_best, rows=rows)),
        shares,
        drawing("Trials as lines; the best is bold, pruned ones are dashed", lines, wide=True, height=4.2),
        "</div>",
        f"<h2>Learning curves of the best {len(best)}</h2>",
        f'<div class="figures">{"".join(curves)}</div>',
        "<h2>Slices</h2>",
        f'<div class="figures">{"".join(slices)}</div>',
    ]


def _importance(spec: Spec, study: optuna.Study, ranked: Sequence[Row]) -> dict[str, float]:
    """Optuna's estimate, a rough one, from the complete trials; empty if they are too few or all equal."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if len(ranked) < _least_for_importance(spec):
        return {}
    # What sets the best five apart, or the better half: fewer would show the chance of one trial.
    share = min(0.5, max(0.1, 5 / len(ranked)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
            except TypeError:  # Optuna 4 has another name for it
                options: dict[str, Any] = {"baseline_quantile": share}
                evaluator = PedAnovaImportanceEvaluator(**options)
            return get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def _least_for_importance(spec: Spec) -> int:
    return max(4, 2 * len(spec.ranges))


def _table(spec: Spec, rows: Sequence[Row], ranked: Sequence[Row]) -> str:
    """Returns the table of the trials, the best first, then the others in their order."""
    numbers = ("", "trial", "bits per byte", *(one.name for one in spec.ranges), "epochs", "tokens", "training")
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in numbers)
    lines = [_line(spec, row, rank) for rank, row in enumerate(ranked, 1)]
    lines += [_line(spec, row, None) for row in rows if not row.complete]
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _line(spec: Spec, row: Row, rank: int | None) -> str:
    last = row.curves.last
    cells = [
        row.state if rank is None else str(rank),
        str(row.number),
        "" if math.isnan(row.figure) else f"{row.figure:.4f}",
        *(figures.text(row.values[one.name]) if one.name in row.values else "" for one in spec.ranges),
        f"{int(last['epoch']):,}" if last else "",
        quantity(last["tokens"]) if last else "",
        duration(last["seconds"]) if row.curves.has("seconds") else "",
    ]
    kind = "changed" if rank == 1 else "" if rank else "muted"
    shown = [f"<code>{escape(cell)}</code>" if rank == 1 else escape(cell) for cell in cells]
    return f'<tr class="{kind}">' + "".join(f'<td class="number">{cell}</td>' for cell in shown) + "</tr>"


def _origin(spec: Spec) -> str:
    """Returns a table of all that the figures depend on; the coloured rows are the ranges."""
    defaults = {f"base.{field.name}": field.default for field in dataclasses.fields(Config)}
    rows = [
        f'<tr class="{"changed" if name.startswith("ranges.") else ""}"><td class="name"><code>{escape(name)}</code>'
        f"</td><td><code>{escape(json.dumps(value))}</code></td></tr>"
        for name, value in spec.identity().items()
        if name not in defaults or value != defaults[name]
    ]
    legend = '<p class="muted">Fields of the base config with the reference\'s defaults are left out.</p>'
    return f'<div class="card"><table>{"".join(rows)}</table></div>{legend}'
