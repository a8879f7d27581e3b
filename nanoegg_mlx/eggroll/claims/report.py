"""The result of an experiment: a table with means and spreads, and one sentence that its numbers decide."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds (or repetitions)."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        numbers = np.asarray(list(values), np.float64)
        # Equal numbers have no spread; rounding of their mean would give them one.
        std = float(numbers.std(ddof=1)) if np.ptp(numbers) > 1e-12 * abs(numbers[0]) else 0.0
        return cls(float(numbers.mean()), std, len(numbers))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.std / self.count**0.5

    def __str__(self) -> str:
        return f"{number(self.mean)} ± {number(self.std, digits=2)}"


def number(value: float, digits: int = 3) -> str:
    """Formats a number for a table: 0.0123, 45.6, 12,300, 1.2e-07."""
    if value != value or abs(value) == float("inf"):
        return "diverged"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}"


@dataclass(frozen=True)
class Result:
    """The outcome of an experiment."""

    title: str
    rows: list[dict[str, Any]]
    """The table: column -> text, number or Spread, the same columns in each row."""
    claim: str
    """The paper's claim or the expectation: a clause without a full stop."""
    measured: str
    """The measurement: a clause made from the numbers."""
    holds: bool
    """Whether the claim holds, decided by the numbers."""
    notes: str = ""
    """The method of measurement, in a paragraph."""
    series: dict[str, Any] = field(default_factory=dict)
    """The data of the figures."""

    @property
    def verdict(self) -> str:
        return f"{self.claim}; measured: {self.measured}: it {'holds' if self.holds else 'does not hold'} here."


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""

    def cell(value: Any) -> str:
        return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([cell(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def machine() -> str:
    """The machine, its cores, MLX and its device, in words."""
    device = "CPU" if mx.default_device().type == mx.cpu else "GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, MLX {version('mlx')} on its {device}"


def page(results: dict[str, Result], opening: str, figures: Sequence[str] = (), folder: str = "") -> str:
    """Formats all results as a Markdown page.

    Args:
        results: name -> result.
        opening: the page's first paragraph.
        figures: names of the results with figures `<name>-light.png` and `<name>-dark.png`.
        folder: of the figures, relative to the page, with its slash.
    """
    parts = ["# EGGROLL's claims, measured\n", opening + "\n", "## In one sentence each\n"]
    for count, result in enumerate(results.values(), 1):
        parts.append(f"{count}. {'**holds**' if result.holds else '**does not hold**'}: {result.verdict}")
    parts[-1] += "\n"
    for count, (name, result) in enumerate(results.items(), 1):
        parts += [f"## {count}. {result.title}\n", result.notes + "\n", table(result.rows)]
        if name in figures:
            dark, light = (f"{folder}{name}-{theme}.png" for theme in ("dark", "light"))
            source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            parts.append(f'<picture>{source}<img alt="{result.title}" src="{light}"></picture>\n')
        parts.append(result.verdict + "\n")
    return "\n".join(parts)
