"""The list of experiments, their smallest sizes, and functions that run them by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from nanoegg_mlx.eggroll.claims.cartpole import cartpole
from nanoegg_mlx.eggroll.claims.digits import digits
from nanoegg_mlx.eggroll.claims.low_rank import low_rank
from nanoegg_mlx.eggroll.claims.quadratic import quadratic
from nanoegg_mlx.eggroll.claims.report import Result
from nanoegg_mlx.eggroll.claims.stability import stability
from nanoegg_mlx.eggroll.claims.step_reward import step_reward
from nanoegg_mlx.eggroll.claims.sum_rank import aggregate_rank
from nanoegg_mlx.eggroll.claims.throughput import throughput
from nanoegg_mlx.eggroll.claims.two_moons import two_moons
from nanoegg_mlx.eggroll.claims.variance import update_variance

Size = Literal["smoke", "full"]

EXPERIMENTS: dict[str, Callable[..., Result]] = {
    "quadratic": quadratic,
    "stability": stability,
    "step_reward": step_reward,
    "two_moons": two_moons,
    "low_rank": low_rank,
    "aggregate_rank": aggregate_rank,
    "throughput": throughput,
    "cartpole": cartpole,
    "digits": digits,
    "update_variance": update_variance,
}
"""In the order of the page. The defaults of the functions are the full sizes."""

SMOKE: dict[str, dict[str, Any]] = {
    "quadratic": {"seeds": 3, "steps": 100, "shape": (8, 8), "rate": 0.02, "populations": (16, 64, 256)},
    "stability": {"seeds": 2, "steps": 30, "shape": (4, 4), "rates": (0.1, 0.4, 1.6, 3.2), "populations": (8, 64)},
    "step_reward": {"seeds": 2, "steps": 40, "population": 32, "examples": 128},
    "two_moons": {"seeds": 2, "steps": 30, "examples": 32, "sigmas": (0.1,), "populations": (8, 32), "noises": (0.1,)},
    "low_rank": {"seeds": 2, "ranks": (1, 2, 4, 8, 16), "sampled": (1, 4), "pairs": 20_000, "population": 64},
    "aggregate_rank": {"seeds": 2, "shape": (8, 9), "populations": (1, 4, 16), "ranks": (1, 2, None)},
    "throughput": {
        "widths": (32, 64), "populations": (8, 16), "rows_each": (1, 2), "repeats": 3, "few": 2, "time_bound": 0.5,
    },
    "cartpole": {"seeds": 2, "generations": 3, "population": 8, "episodes": 2, "steps": 20},
    "digits": {"seeds": 2, "steps": 10, "population": 16, "batch": 16, "hidden": 8},
    "update_variance": {"seeds": 2, "updates": 6, "population": 16},
}  # fmt: skip
"""Sizes at which an experiment takes a second or two: they show that it runs and decide nothing."""


def run_experiment(name: str, size: Size = "full") -> Result:
    """Runs one experiment by its name."""
    return EXPERIMENTS[name](**(SMOKE[name] if size == "smoke" else {}))


def run_all(size: Size = "full", report: Callable[[str, Result, float], None] | None = None) -> dict[str, Result]:
    """Runs all experiments in order.

    Args:
        report: called after each experiment with its name, result and seconds.
    """
    results = {}
    for name in EXPERIMENTS:
        started = time.perf_counter()
        results[name] = run_experiment(name, size)
        if report:
            report(name, results[name], time.perf_counter() - started)
    return results
