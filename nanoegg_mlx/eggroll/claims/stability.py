"""Ill-conditioned quadratics: the learning rates at which ES and SGD are stable.

SGD is stable below a rate of 2, whatever the condition. The noise of ES mixes all directions, so each direction's step
depends on the curvature of all of them: the limit falls with the sum of the curvatures over the population, and is
lowest if all curvatures are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import climb


def loss_ratios(start: mx.array, condition: float, rates: Sequence[float], steps: int, population: int) -> np.ndarray:
    """Final loss over initial loss for each rate and seed: float64 (rates, seeds), infinite or NaN if it diverged.

    f(W) = -1/2 sum lambda_ij W_ij^2, curvatures log-spaced from 1 / condition to 1.

    Args:
        start: (seeds, m, n).
        population: 0 for SGD.
    """
    seeds, m, n = start.shape
    curvature = mx.array(np.geomspace(1 / condition, 1, m * n).reshape(m, n), mx.float32)
    # All rates and seeds run at once.
    starts = mx.concatenate([start] * len(rates))
    rate_of_run = [rate for rate in rates for _ in range(seeds)]
    loss = -climb(lambda W: -0.5 * mx.sum(curvature * W * W), starts, rate_of_run, steps, population, 0.05, 1, seed=4)
    with np.errstate(invalid="ignore", over="ignore"):
        return (loss[:, -1] / loss[:, 0]).reshape(len(rates), seeds)


def largest_stable(stable: np.ndarray, rates: Sequence[float]) -> list[float]:
    """For each seed, the largest rate up to which all were stable; 0 if the first was not.

    Args:
        stable: bool (rates, seeds).
    """
    limits = []
    for column in stable.T:
        first_unstable = len(rates) if column.all() else int(np.argmin(column))
        limits.append(rates[first_unstable - 1] if first_unstable else 0.0)
    return limits


def verdict(
    shares: dict[tuple[str, float], float], evolved: Sequence[str], conditions: Sequence[float]
) -> tuple[str, bool]:
    """The sentence about the limits, and whether the claim holds.

    Args:
        shares: (method, condition) -> largest stable rate, as a share of SGD's.
        evolved: the methods except SGD, by growing population.
    """
    first, last = conditions[0], conditions[-1]
    measured = "the limits, as a share of SGD's, are " + ", ".join(
        f"{shares[(name, first)]:.2f} (condition {first:g}) to {shares[(name, last)]:.2f} (condition {last:g}) for "
        f"{name}"
        for name in evolved
    )
    below = max(shares[(name, condition)] for name in evolved for condition in conditions) <= 1
    grows = all(
        shares[(small, condition)] <= shares[(large, condition)]
        for small, large in pairwise(evolved)
        for condition in conditions
    )
    survives = all(shares[(name, first)] <= shares[(name, last)] for name in evolved)
    return measured, bool(below and grows and survives)


def stability(
    seeds: int = 10,
    steps: int = 100,
    shape: tuple[int, int] = (8, 8),
    conditions: Sequence[float] = (1, 10, 100),
    populations: Sequence[int] = (32, 256),
    rates: Sequence[float] = tuple(np.round(np.geomspace(0.05, 3.2, 25), 3).tolist()),
) -> Result:
    """The largest stable rate of SGD and of EGGROLL over condition and population.

    Args:
        seeds: starts of each setting. A run is stable if its final loss is below its initial loss.
    """
    methods = {"SGD": 0} | {f"EGGROLL, population {population}": population for population in populations}
    start = mx.random.normal((seeds, *shape), key=mx.random.key(3))
    rows, maps = [], {}
    shares: dict[tuple[str, float], float] = {}
    of_sgd: dict[float, float] = {}
    for method, population in methods.items():
        for condition in conditions:
            ratio = loss_ratios(start, condition, rates, steps, population)
            stable = np.isfinite(ratio) & (ratio < 1)
            maps[(method, condition)] = stable.mean(axis=1)
            limit = Spread.of(largest_stable(stable, rates))
            # SGD comes first.
            shares[(method, condition)] = limit.mean / of_sgd.setdefault(condition, limit.mean)
            best = np.nanmin(np.where(np.isfinite(ratio), ratio, np.inf).mean(axis=1))
            rows.append(
                {
                    "method": method,
                    "condition": condition,
                    "largest stable rate": limit,
                    "of SGD's": shares[(method, condition)],
                    "best loss, of the initial one": float(best),
                }
            )
    measured, holds = verdict(shares, list(methods)[1:], conditions)
    return Result(
        title="Ill-conditioned quadratics: where ES and SGD are stable",
        rows=rows,
        claim="The expectation is that ES is stable up to smaller rates than SGD, that the region grows with the "
        "population, and that ill-conditioning, which leaves fewer directions of high curvature, does not shrink it",
        measured=measured,
        holds=holds,
        notes=f"f(W) = -1/2 sum lambda W^2 for W of {shape[0]} x {shape[1]}, lambda from 1/condition to 1, rank 1, "
        f"{steps} steps, {seeds} seeds and {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}; a run is stable if "
        "its final loss is below its initial one, and the limit is the largest rate of the grid up to which all runs "
        "are stable.",
        series={"maps": maps, "rates": list(rates)},
    )
