"""Runs that the experiments share: many small ones at once for one matrix, and one of a module with its curve."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll, LowRank, Report, dense, draw, draw_keys, weighted_sum

Objective = Callable[[mx.array], mx.array]
"""From a matrix (m, n) to its fitness, a scalar."""


def optional(module: str) -> Any:
    """Imports a module of the extra `notebook`; the ImportError names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"{module} is not installed; it must be installed: pip install 'nanoegg-mlx[notebook]'."
        raise ImportError(problem) from error


def rank_name(rank: int | None) -> str:
    return "full" if rank is None else str(rank)


def estimates(
    objective: Objective, W: mx.array, keys: mx.array, sigma: float, rank: int | None
) -> tuple[mx.array, mx.array]:
    """The EGGROLL estimate of the gradient for many independent runs at once, with antithetic pairs.

    Args:
        W: (S, m, n), a matrix for each run.
        keys: uint32 (S, P, 2), of P pairs for each run (see `draw_keys`).
        sigma: standard deviation of the perturbation.
        rank: of the noise, None for full.

    Returns:
        The estimates (S, m, n), and the fitness of the members (S, P, 2), plus and minus.
    """
    runs, m, n = W.shape
    E = draw(keys.reshape(-1, 2), (m, n), rank)
    scale = sigma / (1 if rank is None else rank**0.5)
    deltas = scale * dense(E, (runs, -1, m, n))
    members = mx.stack([W[:, None] + deltas, W[:, None] - deltas], axis=2)
    fitness = mx.vmap(objective)(members.reshape(-1, m, n)).reshape(runs, -1, 2)
    weights = (fitness[..., 0] - fitness[..., 1]) / (2 * fitness.shape[1] * sigma)

    def per_run(x: mx.array) -> mx.array:
        return x.reshape(runs, -1, *x.shape[1:])

    E = LowRank(per_run(E.A), per_run(E.B)) if isinstance(E, LowRank) else per_run(E)
    return mx.vmap(lambda noise, w: weighted_sum(noise, w, (m, n)))(E, weights), fitness


def climb(
    objective: Objective,
    start: mx.array,
    rates: Sequence[float],
    steps: int,
    population: int = 0,
    sigma: float = 0.05,
    rank: int | None = 1,
    seed: int = 0,
) -> np.ndarray:
    """Gradient ascent on one matrix, many runs at once, with EGGROLL's estimate or with the gradient itself.

    Args:
        start: (S, m, n).
        rates: the learning rate of each of the S runs.
        population: N, even; 0 for the gradient itself (SGD).

    Returns:
        Fitness of each run before each step and after the last one: float64 (S, steps + 1).
    """
    W, rate = start, mx.array(list(rates))[:, None, None]
    curve = [mx.vmap(objective)(W)]
    for step in range(steps):
        if population:
            keys = draw_keys(seed, step, 0, range(len(start) * population // 2)).reshape(len(start), -1, 2)
            gradient, _ = estimates(objective, W, keys, sigma, rank)
        else:
            gradient = mx.vmap(mx.grad(objective))(W)
        W = W + rate * gradient
        curve.append(mx.vmap(objective)(W))
        mx.eval(W, curve[-1])
    return np.array(mx.stack(curve, axis=1), np.float64)


def multilayer(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """Linear layers with tanh between them, initialised from a seed."""
    mx.random.seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    mx.eval(model.parameters())
    return model


def scalar(x: mx.array) -> float:
    """The number in an array of one entry."""
    return float(np.array(x))


def accuracy(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """The share of rows of x (B, n) whose largest output belongs to their class y (B,)."""
    return mx.mean(mx.argmax(model(x), axis=-1) == y)


def minus_cross_entropy(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """A fitness: the mean log-likelihood of the classes y (B,), in nats."""
    return -mx.mean(nn.losses.cross_entropy(model(x), y))


@dataclass(frozen=True)
class Curve:
    """The reports of a run, and a number measured at some of its steps."""

    reports: list[Report]
    steps: list[int]
    values: list[float]
    seconds: list[float]
    """Since the start, without the time of measuring; one for each of `values`."""

    @property
    def population(self) -> list[tuple[float, float, float]]:
        """`fitness_spread` of the reports."""
        return fitness_spread(self.reports)


def fitness_spread(reports: Sequence[Report]) -> list[tuple[float, float, float]]:
    """Mean, standard deviation and maximum of the members' fitness in each step."""
    return [(report.fitness_mean, report.fitness_std, report.fitness_max) for report in reports]


def evolve(
    eggroll: EggRoll,
    objective: Callable[..., mx.array],
    batches: tuple[mx.array, ...] | Callable[[], tuple[mx.array, ...]],
    steps: int,
    measure: Callable[[], mx.array],
    at: Sequence[int] = (),
) -> Curve:
    """Runs EGGROLL, with a measurement before the first step, after the steps `at`, and after the last one.

    Args:
        batches: the objective's inputs, the same in all steps, or a function that returns those of the next step.
        measure: returns the number to follow, for example the test accuracy.
        at: the steps after which to measure it, counted from 1.
    """
    curve = Curve([], [0], [scalar(measure())], [0.0])
    seconds = 0.0
    for step in range(steps):
        report = eggroll.step(objective, *(batches() if callable(batches) else batches))
        seconds += report.evaluations / report.evaluations_per_second
        curve.reports.append(report)
        if step + 1 in at or step + 1 == steps:
            curve.steps.append(step + 1)
            curve.values.append(scalar(measure()))
            curve.seconds.append(seconds)
    return curve
