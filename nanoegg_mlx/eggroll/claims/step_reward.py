"""A reward in steps: the right answers of a network of hard thresholds. Its gradient is zero wherever it exists."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll, flat
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import evolve, scalar


class Threshold(nn.Module):
    """Inputs -> hidden units that are on or off -> two classes."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(mx.where(self.hidden(x) > 0, 1.0, 0.0))


def reward(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """The share of right answers: a step function of every parameter."""
    logits = model(x)
    return mx.mean(mx.where(logits[..., 1] > logits[..., 0], 1, 0) == y)


def step_reward(
    seeds: int = 10, steps: int = 150, population: int = 64, inputs: int = 8, hidden: int = 16, examples: int = 512
) -> Result:
    """ES and gradient ascent on the reward itself, for a teacher of the same kind as the student."""
    started, evolved, climbed, norms = [], [], [], []
    curves, spreads = [], []
    for seed in range(seeds):
        x = mx.random.normal((2 * examples, inputs), key=mx.random.key(seed))
        # Right are the points of the larger half space and of a quadratic form.
        y = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] > 0).astype(mx.int32)
        train, test = (x[:examples], y[:examples]), (x[examples:], y[examples:])
        mx.random.seed(seed)
        model = Threshold(inputs, hidden)

        gradient = nn.value_and_grad(model, reward)(model, *train)[1]
        norms.append(max(scalar(mx.max(mx.abs(leaf))) for leaf in flat(gradient).values()))
        started.append(scalar(reward(model, *test)))
        # Gradient ascent with any rate stays where it is, since no entry of the gradient differs from zero.
        climbed.append(started[-1] if norms[-1] == 0 else float("nan"))

        eggroll = EggRoll(model, population, 0.1, 0.5, fitness_shaping="centered-rank", seed=seed)
        curve = evolve(eggroll, reward, train, steps, partial(reward, model, *test), range(0, steps, 10))
        evolved.append(curve.values[-1])
        curves.append(curve.values)
        spreads.append([(r.fitness_mean, r.fitness_std, r.fitness_max) for r in curve.reports])
    gain = np.array(evolved) - np.array(started)
    return Result(
        title="A reward in steps: ES learns where the gradient is zero",
        rows=[
            {"method": "start", "test accuracy": Spread.of(started), "largest gradient entry": "-", "evaluations": 0},
            {
                "method": "gradient ascent",
                "test accuracy": Spread.of(climbed),
                "largest gradient entry": max(norms),
                "evaluations": steps,
            },
            {
                "method": f"EGGROLL, rank 1, population {population}",
                "test accuracy": Spread.of(evolved),
                "largest gradient entry": "-",
                "evaluations": steps * population,
            },
        ],
        claim="The expectation is that ES learns from a reward whose gradient is zero",
        measured=f"the largest gradient entry is {max(norms):g}, and ES takes test accuracy from "
        f"{np.mean(started):.2f} to {np.mean(evolved):.2f}, by {gain.min():.2f} at least in {seeds} seeds",
        holds=bool(max(norms) == 0 and gain.min() > 0.1),
        notes=f"{inputs} inputs, {hidden} hidden units of hard thresholds, {examples} examples to learn from and as "
        f"many to test; the fitness is the share of right answers, ranked, {steps} steps, {seeds} seeds.",
        series={"curves": curves, "steps": curve.steps, "population": spreads},
    )
