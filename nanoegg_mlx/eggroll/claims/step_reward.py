"""A step-function reward: the accuracy of a network of hard thresholds. Its gradient is zero wherever it exists."""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll, flat
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import Curve, evolve, scalar


class Threshold(nn.Module):
    """Inputs -> hidden units that are on or off -> two classes."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, 2)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out(mx.where(self.hidden(x) > 0, 1.0, 0.0))


def reward(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    """The accuracy: a step function of every parameter."""
    logits = model(x)
    return mx.mean(mx.where(logits[..., 1] > logits[..., 0], 1, 0) == y)


def learn(seed: int, steps: int, population: int, inputs: int, hidden: int, examples: int) -> tuple[float, Curve]:
    """The largest entry of the reward's gradient at the start, and a run of EGGROLL with its test accuracy."""
    x = mx.random.normal((2 * examples, inputs), key=mx.random.key(seed))
    # The classes are a half space, bent by a quadratic term.
    y = (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] > 0).astype(mx.int32)
    train, test = (x[:examples], y[:examples]), (x[examples:], y[examples:])
    mx.random.seed(seed)
    model = Threshold(inputs, hidden)
    gradient = nn.value_and_grad(model, reward)(model, *train)[1]
    largest = max(scalar(mx.max(mx.abs(leaf))) for leaf in flat(gradient).values())
    eggroll = EggRoll(model, population, 0.1, 0.5, fitness_shaping="centered-rank", seed=seed)
    return largest, evolve(eggroll, reward, train, steps, partial(reward, model, *test), range(0, steps, 10))


def step_reward(
    seeds: int = 10, steps: int = 150, population: int = 64, inputs: int = 8, hidden: int = 16, examples: int = 512
) -> Result:
    """ES and gradient ascent on the reward itself."""
    runs = [learn(seed, steps, population, inputs, hidden, examples) for seed in range(seeds)]
    norms = [largest for largest, _ in runs]
    curves = [curve for _, curve in runs]
    started, evolved = ([curve.values[at] for curve in curves] for at in (0, -1))
    # Gradient ascent with any rate stays at its start if no entry of the gradient differs from zero.
    climbed = [value if norm == 0 else float("nan") for value, norm in zip(started, norms, strict=True)]
    gain = np.array(evolved) - np.array(started)

    def row(method: str, accuracy: list[float], largest: float | str, evaluations: int) -> dict:
        return {
            "method": method,
            "test accuracy": Spread.of(accuracy),
            "largest gradient entry": largest,
            "evaluations": evaluations,
        }

    return Result(
        title="A step-function reward: ES learns where the gradient is zero",
        rows=[
            row("start", started, "-", 0),
            row("gradient ascent", climbed, max(norms), steps),
            row(f"EGGROLL, rank 1, population {population}", evolved, "-", steps * population),
        ],
        claim="The expectation is that ES learns from a reward whose gradient is zero",
        measured=f"the largest gradient entry is {max(norms):g}, and ES raises test accuracy from "
        f"{np.mean(started):.2f} to {np.mean(evolved):.2f}, by at least {gain.min():.2f} for each of {seeds} seeds",
        holds=bool(max(norms) == 0 and gain.min() > 0.1),
        notes=f"{inputs} inputs, {hidden} hidden units of hard thresholds, {examples} training examples and as many "
        f"test examples; the fitness is the accuracy, ranked, {steps} steps, {seeds} seeds.",
        series={
            "curves": [curve.values for curve in curves],
            "steps": curves[0].steps,
            "population": [curve.population for curve in curves],
        },
    )
