"""Two moons: a small network, by ES and by backpropagation; sigma by population, and noise in the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import accuracy, evolve, minus_cross_entropy, multilayer, optional, scalar

SIZES = (2, 16, 16, 2)


def moons(examples: int, noise: float, seed: int) -> tuple[mx.array, mx.array]:
    """Points (examples, 2) of scikit-learn's two moons, and their class."""
    x, y = optional("sklearn.datasets").make_moons(examples, noise=noise, random_state=seed)
    return mx.array(x, mx.float32), mx.array(y)


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
    rows = []

    def one(noise: float, seed: int, sigma: float, population: int) -> tuple[float, float, list[float]]:
        """Test accuracy, seconds and the fitness of each step; population 0 is backpropagation."""
        train, test = moons(examples, noise, seed), moons(1000, noise, seed + 1000)
        model = multilayer(SIZES, seed)
        optimizer = optim.Adam(0.03)
        if population:
            eggroll = EggRoll(model, population, sigma, optimizer=optimizer, seed=seed)
            curve = evolve(eggroll, minus_cross_entropy, train, steps, partial(accuracy, model, *test))
            return curve.values[-1], curve.seconds[-1], [report.fitness_mean for report in curve.reports]
        gradient = nn.value_and_grad(model, lambda model, x, y: -minus_cross_entropy(model, x, y))
        fitness = []
        started = time.perf_counter()
        for _ in range(steps):
            loss, grads = gradient(model, *train)
            optimizer.update(model, grads)
            mx.eval(model.parameters(), optimizer.state)
            fitness.append(-scalar(loss))
        return scalar(accuracy(model, *test)), time.perf_counter() - started, fitness

    def cell(noise: float, sigma: float, population: int) -> dict:
        outcomes = [one(noise, seed, sigma, population) for seed in range(seeds)]
        name = f"EGGROLL, population {population}, sigma {sigma}" if population else "backpropagation"
        series[(name, noise)] = [fitness for _, _, fitness in outcomes]
        row = {
            "method": "EGGROLL" if population else "backpropagation",
            "noise of the data": noise,
            "sigma": sigma or "-",
            "population": population or "-",
            "test accuracy": Spread.of(a for a, _, _ in outcomes),
            "evaluations": steps * max(population, 1),
            "seconds": Spread.of(s for _, s, _ in outcomes),
        }
        rows.append(row)
        return row

    series: dict[tuple[str, float], list[list[float]]] = {}
    grid = {(sigma, population): cell(grid_noise, sigma, population) for sigma in sigmas for population in populations}
    best = max(grid, key=lambda key: grid[key]["test accuracy"].mean)
    evolved, backprop = {}, {}
    for noise in noises:
        evolved[noise] = grid[best] if noise == grid_noise else cell(noise, *best)
        backprop[noise] = cell(noise, 0.0, 0)
    gaps = {noise: backprop[noise]["test accuracy"].mean - evolved[noise]["test accuracy"].mean for noise in noises}
    cost = np.mean([evolved[noise]["seconds"].mean / backprop[noise]["seconds"].mean for noise in noises])
    return Result(
        title="Two moons: a small network by ES and by backpropagation",
        rows=rows,
        claim="The expectation is that ES comes within two points of backpropagation's test accuracy, for more "
        "evaluations",
        measured=f"with the best of the grid (sigma {best[0]}, population {best[1]}) backpropagation's accuracy less "
        "that of ES is "
        + ", ".join(f"{round(100 * gap, 1) + 0.0:.1f} points at noise {noise}" for noise, gap in gaps.items())
        + f", and ES takes {best[1]} times the evaluations and {cost:.1f} times the time",
        holds=bool(max(gaps.values()) <= 0.02),
        notes=f"A network of {' - '.join(map(str, SIZES))}, Adam at 0.03 for both, cross-entropy of {examples} "
        f"examples, {steps} steps, {seeds} seeds; test accuracy on 1,000 others. An evaluation of backpropagation is "
        "a forward and a backward pass.",
        series={
            "grid": {key: row["test accuracy"].mean for key, row in grid.items()},
            "sigmas": list(sigmas),
            "populations": list(populations),
            "fitness": {name: curves for (name, noise), curves in series.items() if noise == grid_noise},
        },
    )
