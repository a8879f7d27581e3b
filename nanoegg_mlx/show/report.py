"""A run as one self-contained HTML page: no network, no script, no second file; light and dark.

The figures are the panels as inline SVG with real text. Variables of the style sheet replace the colours in the SVG, so
that one drawing serves both colour schemes.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoegg_mlx.config import TABLES, Config
from nanoegg_mlx.show.curves import RunCurves, Validation
from nanoegg_mlx.show.page import check_output, compose, need_matplotlib
from nanoegg_mlx.show.panels import Panel, Scene, draw, panels
from nanoegg_mlx.show.style import COLOURS, GRID, INK, MUTED, STYLE
from nanoegg_mlx.show.text import describe, duration, quantity
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_POINTS = 400
"""A curve has fewer than twice as many points, so the page of a long run stays small."""
_LIGHT = {"ink": INK, "muted": MUTED, "grid": GRID, "run": COLOURS[0]}
"""The colours of a drawing of one run, by their names in the style sheet."""
_LIGHT_RULE = f":root {{ {' '.join(f'--{name}: {colour};' for name, colour in _LIGHT.items())} }}"

_SHEET = """
:root { color-scheme: light dark; --page: #f6f7f8; --card: #ffffff; --note: #eef4f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --muted: #9aa4ae; --grid: #343b43; --run: #56b4e9;
          --page: #0e1116; --card: #161b22; --note: #182635; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.9rem; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; }
p { margin: .3rem 0; }
.muted { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin-top: 1.4rem; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--grid); border-radius: 10px; }
.tile { padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap;
}
.tile span { color: var(--muted); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .9rem; }
figure { margin: 0; padding: .7rem .8rem .4rem; overflow-x: auto; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; }
.card { padding: .3rem 1rem; overflow-x: auto; }
.note { background: var(--note); border-radius: 8px; padding: .5rem .9rem; margin: .8rem 0 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-top: 1px solid var(--grid); vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; } thead th, .group { color: var(--muted); font-size: .85rem; font-weight: 600; }
td.name { white-space: nowrap; }
td.number, th.number { text-align: right; }
td.bar { width: 38%; } td.bar i { display: block; height: .75rem; margin-top: .38rem; border-radius: 3px;
         background: var(--muted); opacity: .55; } tr.own td.bar i { background: var(--run); opacity: 1; }
code { font: .87em ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.changed code { font-weight: 700; color: var(--run); }
@media (max-width: 52rem) { .figures { grid-template-columns: 1fr; } .help { display: none; } }
@media print { figure, tr { break-inside: avoid; } }
"""


def write_report(folder: Path, output: Path, force: bool = False) -> None:
    """Writes the report of a run.

    Args:
        folder: the folder of the run.
        output: page to write, .html.
        force: overwrite the page if it exists.

    Raises:
        InputError: the run cannot be read, the output has another ending or exists, or matplotlib is not installed;
            nothing is written.
    """
    check_output(output, (".html",), force)
    need_matplotlib()
    write_file(output, page(folder).encode())


def page(folder: Path) -> str:
    """Returns the report of a run as an HTML document. Raises InputError as `open_run` does."""
    scene = compose([folder], _POINTS)
    run = scene.runs[0]
    stored = checkpoint.describe(folder)
    whole = [about for _, about in stored if about]
    newest = whole[-1] if whole else {}
    body = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="muted">{escape(describe(run))}; {_progress(run)}</p>',
        _tiles(run),
        *(f'<p class="note">{escape(note)}</p>' for note in scene.notes),
        "<h2>Bits per byte of the validation set</h2>",
        _comparison(run, scene.baselines),
        "<h2>Course of the run</h2>",
        f'<div class="figures">{"".join(_figure(panel, scene) for panel in panels(scene))}</div>',
        "<h2>Config</h2>",
        _config(run.config),
        "<h2>Data and machine</h2>",
        _origin(run, newest),
        "<h2>Checkpoints</h2>",
        _checkpoints(folder, stored),
    ]
    return document(f"{run.name} - nanoegg run", body)


def document(title: str, body: Iterable[str]) -> str:
    """Returns an HTML document with the style sheet; `title` is plain text, `body` HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_LIGHT_RULE}{_SHEET}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _progress(run: RunCurves) -> str:
    """Returns the progress of the run and the time of its last line."""
    epochs, planned = int(run.curves.last["epoch"]), run.config.get("run", {}).get("num_epochs")
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime((run.folder / "metrics.jsonl").stat().st_mtime))
    if planned is None:
        return f"last line of the metrics {written}"
    state = "finished" if epochs >= planned else f"at epoch {epochs:,} of {planned:,}"
    return f"{state}, last line of the metrics {written}"


def _tiles(run: RunCurves) -> str:
    curves = run.curves
    tiles = [(f"{int(curves.last['epoch']):,}", "epochs"), (quantity(curves.last["tokens"]), "tokens read")]
    if curves.has("seconds"):
        tiles.append((duration(curves.last["seconds"]), "of training"))
    if curves.last_validation:
        tiles.append((f"{curves.last_validation.figure:.4f}", "bits per byte, last validation"))
    if curves.best_validation:
        tiles.append((f"{curves.best_validation.figure:.4f}", f"best, after {curves.best_validation.epoch:,} epochs"))
    if curves.has("tokens_per_second"):
        rates = curves.mean["tokens_per_second"]
        tiles.append((quantity(sorted(rates[rates > 0])[int((rates > 0).sum()) // 2]), "tokens/s, median epoch"))
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{b}</b><span>{s}</span></div>' for b, s in tiles)
        + "</div>"
    )


def _comparison(run: RunCurves, baselines: dict[str, float]) -> str:
    """Returns a table of the first, last and best validation and the baselines, with bars."""
    curves = run.curves
    validations: dict[int, tuple[str, Validation]] = {}
    for name, validation in (
        ("first", curves.first_validation),
        ("last", curves.last_validation),
        ("best", curves.best_validation),
    ):
        if validation:
            before = validations.get(validation.epoch)
            validations[validation.epoch] = (f"{before[0]} and {name}" if before else name, validation)
    rows: list[tuple[float, float | None, str, str]] = [
        (validation.figure, validation.exact, f"{name} validation, after {validation.epoch:,} epochs", "own")
        for name, validation in validations.values()
    ]
    rows += [(figure, None, f"{name} of the same bytes", "") for name, figure in baselines.items()]
    if not rows:
        return '<p class="muted">There was no validation yet.</p>'
    most = max(figure for figure, *_ in rows)
    lines = [
        f'<tr class="{kind}"><th>{escape(name)}</th><td class="number">{figure:.4f}</td>'
        f'<td class="number muted">{"" if exact is None or exact != exact else f"{exact:.4f}"}</td>'
        f'<td class="bar"><i style="width: {100 * figure / most:.1f}%"></i></td></tr>'
        for figure, exact, name, kind in sorted(rows, key=lambda row: -row[0])
    ]
    head = '<tr><th></th><th class="number">bits per byte</th><th class="number">exact</th><th></th></tr>'
    return f'<div class="card"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'


def _figure(panel: Panel, scene: Scene) -> str:
    return f'<figure class="{"wide" if panel.wide else ""}">{svg(panel, scene)}</figure>'


def svg(panel: Panel, scene: Scene) -> str:
    """Returns a panel as an SVG element. The HTML page must define the colours --ink, --muted, --grid and --run."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(svg_style(panel.title)):
        figure = Figure(figsize=(12.6 if panel.wide else 6.2, 3.1), layout="constrained")
        draw(figure.add_subplot(), panel, scene)
        return inline(figure, panel.title)


def svg_style(title: str) -> dict[Any, Any]:
    """Returns the rcParams of a drawing for a page; the titles of a page's drawings must differ."""
    return {**STYLE, "svg.fonttype": "none", "svg.hashsalt": title}


def inline(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG element with the colours of the page. The caller sets `svg_style`."""
    content = io.BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, dpi=120, metadata=no_metadata)
    drawn = content.getvalue().decode()
    drawn = drawn[drawn.index("<svg") :]
    # Inline SVG needs no namespaces. Element names must be unique in the page, and these repeat in each drawing.
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn).replace("xlink:href", "href")
    drawn = re.sub(
        r' id="(figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|\w*Collection|QuadMesh)_\d+"',
        "",
        drawn,
    )
    drawn = re.sub(r'<svg width="[^"]*" height="[^"]*"', f'<svg role="img" aria-label="{escape(title)}"', drawn)
    for name, colour in _LIGHT.items():
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn.replace("'DejaVu Sans', ", "")


def _config(config: dict[str, dict[str, Any]]) -> str:
    """Returns a table of all keys with their meaning; values other than the reference's defaults stand out."""
    if not config:
        return '<p class="muted">The run has no config.toml.</p>'
    rows = []
    for table in [*TABLES, *(name for name in config if name not in TABLES)]:
        entries = config.get(table, {})
        if entries:
            rows.append(f'<tr><td class="group" colspan="3">[{escape(table)}]</td></tr>')
        for name, value in entries.items():
            field = _FIELDS.get(name)
            changed = field is not None and table != "run" and value != field.default
            about = field.metadata["help"] if field else ""
            rows.append(
                f'<tr class="{"changed" if changed else ""}"><td class="name"><code>{escape(name)}</code></td>'
                f"<td><code>{escape(json.dumps(value, ensure_ascii=False))}</code></td>"
                f'<td class="help muted">{escape(about)}</td></tr>'
            )
    legend = '<p class="muted">Coloured: different from the reference\'s default.</p>'
    return f'<div class="card"><table>{"".join(rows)}</table></div>{legend}'


def _origin(run: RunCurves, newest: dict[str, Any]) -> str:
    """Returns a table of the caches' fingerprints and the machine, from the newest checkpoint."""
    if not newest:
        return '<p class="muted">The run has no checkpoint yet.</p>'
    rows = []
    for name, identity in _dict(newest.get("data")).items():
        path = run.config.get("data", {}).get(name, "")
        text = f"{identity.get('tokens', 0):,} tokens, SHA-256 <code>{escape(str(identity.get('sha256')))}</code>"
        rows.append((f"{name} cache", f"<code>{escape(str(path))}</code><br>{text}"))
    rows.append(("engine", escape(str(newest.get("engine", "unknown")))))
    rows += [(name, escape(str(value))) for name, value in _dict(newest.get("machine")).items()]
    return _table(rows)


def _checkpoints(folder: Path, stored: Sequence[tuple[Path, dict[str, Any] | None]]) -> str:
    """Returns a table of the checkpoints, newest first. None is a damaged checkpoint.json."""
    if not stored:
        return '<p class="muted">None yet.</p>'
    links = {name: path.name for name, path in checkpoint.named(folder).items()}
    head = "".join(
        f"<th{kind}>{name}</th>"
        for name, kind in (
            ("checkpoint", ""), ("", ""), ("tokens", ' class="number"'), ("training", ' class="number"'),
            ("bits per byte", ' class="number"'), ("exact", ' class="number"'), ("size", ' class="number"'),
        )
    )  # fmt: skip
    rows = []
    for path, about in reversed(stored):
        names = ", ".join(name for name, target in links.items() if target == path.name)
        if about is None:
            cells = '<td colspan="4">damaged: checkpoint.json is not valid</td>'
        else:
            figures = (
                f"{about['tokens']:,}" if "tokens" in about else "",
                duration(about["seconds"]) if "seconds" in about else "",
                *("" if about.get(key) is None else f"{about[key]:.4f}" for key in ("validation", "validation_exact")),
            )
            cells = "".join(f'<td class="number">{figure}</td>' for figure in figures)
        size = sum(file.stat().st_size for file in path.iterdir())
        rows.append(
            f'<tr><td><code>{path.name}</code></td><td class="muted">{names}</td>{cells}'
            f'<td class="number">{size / 1e6:,.1f} MB</td></tr>'
        )
    return f'<div class="card"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table of names and HTML values."""
    return (
        '<div class="card"><table>'
        + "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in rows)
        + "</table></div>"
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
