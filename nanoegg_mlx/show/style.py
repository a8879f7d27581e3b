"""Colours and line styles that all drawings share.

A run has one colour in all panels, from a palette that colour-blind readers can distinguish. A quantity has one line
style.
"""

from __future__ import annotations

from typing import Any

INK, MUTED, GRID = "#1f2328", "#656d76", "#d9dde1"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of runs: the palette of Okabe and Ito."""
MARKERS = "os^Dv"
"""Markers of runs: one for each pass through COLOURS."""

TRAINING: dict[str, Any] = {"linewidth": 1.1, "alpha": 0.6}
VALIDATION: dict[str, Any] = {"linewidth": 2.0}
EXACT: dict[str, Any] = {"linestyle": (0, (1.5, 1.5))}
BASELINE: dict[str, Any] = {"color": MUTED, "linewidth": 1.0, "linestyle": (0, (4, 3))}
MOVED: dict[str, dict[str, Any]] = {
    "moved_matrix": {"linewidth": 1.6},
    "moved_vector": {"linewidth": 1.0, "alpha": 0.55},
    "alpha": {"linewidth": 1.3, "linestyle": (0, (4, 2))},
}

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
"""matplotlib's rcParams. The salt makes the element names of an SVG reproducible."""

LEAF_GROUPS = {
    "head": ("head",),
    "embedding": ("emb",),
    "minGRU": ("blocks.att.Uf", "blocks.att.Uh", "blocks.att.Wf", "blocks.att.Wh"),
    "MLP": ("blocks.mlp.0.weight", "blocks.mlp.1.weight"),
}
"""Leaves whose `moved` and `signal` are shown as one mean."""
LEAF_STYLES: dict[str, dict[str, Any]] = {
    "head": {"linewidth": 1.7},
    "embedding": {"linewidth": 1.3, "linestyle": (0, (5, 2))},
    "minGRU": {"linewidth": 1.3, "linestyle": (0, (1.5, 1.5))},
    "MLP": {"linewidth": 1.3, "linestyle": (0, (6, 2, 1.5, 2))},
}
"""Line styles of the groups of LEAF_GROUPS."""
