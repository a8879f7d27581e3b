"""Two moons: a small network, by ES and by backpropagation; sigma by population, and noise in the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import accuracy, evolve, minus_cross_entropy, multilayer, optional, scalar

SIZES = (2, 16, 16, 2)


class Outcome(NamedTuple):
    """One run."""

    accuracy: float
    """On the test set."""
    seconds: float
    fitness: list[float]
    """Of the mean model (backpropagation) or over the population (ES), in each step."""


class Cell(NamedTuple):
    """A setting of the table; population 0 is backpropagation."""

    noise: float
    sigma: float
    population: int

    @property
    def name(self) -> str:
        return f"EGGROLL, population {self.population}, sigma {self.sigma}" if self.population else "backpropagation"


def moons(examples: int, noise: float, seed: int) -> tuple[mx.array, mx.array]:
    """Points (examples, 2) of scikit-learn's two moons, and their classes."""
    x, y = optional("sklearn.datasets").make_moons(examples, noise=noise, random_state=seed)
    return mx.array(x, mx.float32), mx.array(y)


def learn(cell: Cell, seed: int, steps: int, examples: int) -> Outcome:
    """Trains one network."""
    train, test = moons(examples, cell.noise, seed), moons(1000, cell.noise, seed + 1000)
    model = multilayer(SIZES, seed)
    optimizer = optim.Adam(0.03)
    if cell.population:
        eggroll = EggRoll(model, cell.population, cell.sigma, optimizer=optimizer, seed=seed)
        curve = evolve(eggroll, minus_cross_entropy, train, steps, partial(accuracy, model, *test))
        return Outcome(curve.values[-1], curve.seconds[-1], [report.fitness_mean for report in curve.reports])
    gradient = nn.value_and_grad(model, lambda model, x, y: -minus_cross_entropy(model, x, y))
    fitness = []
    started = time.perf_counter()
    for _ in range(steps):
        loss, grads = gradient(model, *train)
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        fitness.append(-scalar(loss))
    return Outcome(scalar(accuracy(model, *test)), time.perf_counter() - started, fitness)


def row(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The table's row of a setting."""
    return {
        "method": "EGGROLL" if cell.population else "backpropagation",
        "noise of the data": cell.noise,
        "sigma": cell.sigma or "-",
        "population": cell.population or "-",
        "test accuracy": Spread.of(outcome.accuracy for outcome in outcomes),
        "evaluations": len(outcomes[0].fitness) * max(cell.population, 1),
        "seconds": Spread.of(outcome.seconds for outcome in outcomes),
    }


def two_moons(
    seeds: int = 10,
    steps: int = 100,
    examples: int = 128,
    sigmas: Sequence[float] = (0.03, 0.1, 0.3),
    populations: Sequence[int] = (16, 64, 256),
    noises: Sequence[float] = (0.05, 0.1, 0.2),
    grid_noise: float = 0.1,
) -> Result:
    """Test accuracy of ES over sigma and population, and of ES and backpropagation over the noise of the data."""
    rows: dict[Cell, dict[str, Any]] = {}
    fitness: dict[str, list[list[float]]] = {}

    def measure(cell: Cell) -> dict[str, Any]:
        if cell not in rows:
            outcomes = [learn(cell, seed, steps, examples) for seed in range(seeds)]
            rows[cell] = row(cell, outcomes)
            if cell.noise == grid_noise:
                fitness[cell.name] = [outcome.fitness for outcome in outcomes]
        return rows[cell]

    grid = {
        (sigma, population): measure(Cell(grid_noise, sigma, population))["test accuracy"].mean
        for sigma in sigmas
        for population in populations
    }
    best = max(grid, key=lambda key: grid[key])
    gaps, costs = {}, []
    for noise in noises:
        evolved, backprop = measure(Cell(noise, *best)), measure(Cell(noise, 0.0, 0))
        gaps[noise] = backprop["test accuracy"].mean - evolved["test accuracy"].mean
        costs.append(evolved["seconds"].mean / backprop["seconds"].mean)
    return Result(
        title="Two moons: a small network by ES and by backpropagation",
        rows=list(rows.values()),
        claim="The expectation is that ES comes within two points of backpropagation's test accuracy, for more "
        "evaluations",
        measured=f"with the best of the grid (sigma {best[0]}, population {best[1]}) backpropagation's accuracy minus "
        "that of ES is "
        + ", ".join(f"{round(100 * gap, 1) + 0.0:.1f} points at noise {noise}" for noise, gap in gaps.items())
        + f", and ES takes {best[1]} times the evaluations and {np.mean(costs):.1f} times the time",
        holds=bool(max(gaps.values()) <= 0.02),
        notes=f"A network of {' - '.join(map(str, SIZES))}, Adam at 0.03 for both, cross-entropy of {examples} "
        f"examples, {steps} steps, {seeds} seeds; test accuracy on 1,000 others. An evaluation of backpropagation is "
        "a forward and a backward pass.",
        series={"grid": grid, "sigmas": list(sigmas), "populations": list(populations), "fitness": fitness},
    )
