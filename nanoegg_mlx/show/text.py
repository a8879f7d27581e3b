"""Numbers, times and runs as short text, for plots and reports."""

from __future__ import annotations

from nanoegg_mlx.show.curves import RunCurves

_TIMES = ((86400.0 * 2, 86400.0, "days"), (3600.0 * 2, 3600.0, "hours"), (60.0 * 3, 60.0, "minutes"))


def quantity(number: float) -> str:
    """Formats a number with three digits and a letter for its thousands: 61.4M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def time_unit(seconds: float) -> tuple[float, str]:
    """Returns a suitable unit for a time: its length in seconds and its name."""
    return next(((size, name) for least, size, name in _TIMES if seconds >= least), (1.0, "seconds"))


def duration(seconds: float) -> str:
    """Formats a time in its two largest units: 2 d 5 h, 3 min 20 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def describe(run: RunCurves) -> str:
    """Returns the model, population and length of a run in half a line."""
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
