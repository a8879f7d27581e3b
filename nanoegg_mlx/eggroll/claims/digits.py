"""Small images, scikit-learn's 8 x 8 digits: ES and backpropagation at equal time and at equal evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import Curve, accuracy, evolve, minus_cross_entropy, multilayer, optional, scalar

BATCH = 256
"""Images of a step of backpropagation."""
COST = 3
"""Evaluations of such an image: one forward, and two for the backward pass."""


def images() -> tuple[tuple[mx.array, mx.array], tuple[mx.array, mx.array]]:
    """Images in [0, 1] with their digits: (1437, 64) to train and (360, 64) to test."""
    x, y = optional("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = mx.array(x[order] / 16, mx.float32), mx.array(y[order])
    return (x[:-360], y[:-360]), (x[-360:], y[-360:])


@dataclass(frozen=True)
class Descent:
    """A run of backpropagation."""

    values: list[float]
    """Test accuracy at the marks; at the last one the evaluations are used up."""
    seconds: float
    """Used at the last mark."""
    at_time: float
    """Test accuracy when the time was used up."""


def descend(
    model: nn.Module,
    rate: float,
    draw_batch: Callable[[int], tuple[mx.array, mx.array]],
    test_accuracy: Callable[[], mx.array],
    marks: Sequence[int],
    time_budget: float,
) -> Descent:
    """Trains with Adam until both budgets are used up.

    Args:
        marks: steps after which the accuracy is measured; the last one ends the budget of evaluations.
        time_budget: in seconds.
    """
    optimizer = optim.Adam(rate)
    gradient = nn.value_and_grad(model, lambda model, x, y: -minus_cross_entropy(model, x, y))
    values: list[float] = []
    at_time: float | None = None
    seconds, seconds_used, step = 0.0, 0.0, 0
    while at_time is None or step < marks[-1]:
        step += 1
        started = time.perf_counter()
        _, grads = gradient(model, *draw_batch(BATCH))
        optimizer.update(model, grads)
        mx.eval(model.parameters(), optimizer.state)
        seconds += time.perf_counter() - started
        if at_time is None and seconds >= time_budget:
            at_time = scalar(test_accuracy())
        if step in marks:
            values.append(scalar(test_accuracy()))
            seconds_used = seconds
    return Descent(values, seconds_used, at_time)


def learn(
    seed: int, steps: int, population: int, batch: int, hidden: int, rate: float, marks: Sequence[int]
) -> tuple[Curve, Descent]:
    """The same network trained by EGGROLL and by backpropagation, with test accuracies."""
    train, test = images()
    random = np.random.default_rng(seed)

    def draw_batch(count: int) -> tuple[mx.array, mx.array]:
        chosen = mx.array(random.integers(0, len(train[0]), count))
        return train[0][chosen], train[1][chosen]

    model = multilayer((64, hidden, 10), seed)
    eggroll = EggRoll(model, population, 0.05, optimizer=optim.Adam(rate), seed=seed, fitness_shaping="zscore")
    measured_at = np.unique(np.geomspace(1, steps, 20).astype(int)).tolist()
    test_accuracy = partial(accuracy, model, *test)
    curve = evolve(eggroll, minus_cross_entropy, partial(draw_batch, batch), steps, test_accuracy, measured_at)

    model = multilayer((64, hidden, 10), seed)
    return curve, descend(model, rate, draw_batch, partial(accuracy, model, *test), marks, curve.seconds[-1])


def digits(
    seeds: int = 10, steps: int = 300, population: int = 128, batch: int = 64, hidden: int = 32, rate: float = 0.01
) -> Result:
    """Test accuracy of a network of 64 - hidden - 10.

    An evaluation is one image through the network forward; a backward pass counts as two more. The budgets are those of
    the ES run: backpropagation is measured when it has used the same time and the same evaluations.
    """
    budget = steps * population * batch
    backprop_steps = budget // (COST * BATCH)
    marks = np.unique(np.geomspace(1, backprop_steps, 25).astype(int)).tolist()
    runs = [learn(seed, steps, population, batch, hidden, rate, marks) for seed in range(seeds)]
    curves, descents = zip(*runs, strict=True)
    evolved = Spread.of(curve.values[-1] for curve in curves)
    at_time = Spread.of(descent.at_time for descent in descents)
    at_evaluations = Spread.of(descent.values[-1] for descent in descents)
    seconds = Spread.of(curve.seconds[-1] for curve in curves)
    # The evaluations that backpropagation needs to reach ES's final accuracy.
    mean_curve = np.mean([descent.values for descent in descents], axis=0)
    reach = next((mark for mark, value in zip(marks, mean_curve, strict=True) if value >= evolved.mean), None)
    ratio = f"{budget / (reach * COST * BATCH):.0f} times" if reach else "less than once"

    def row(method: str, test_accuracy: Spread, evaluations: int | str, seconds: Spread) -> dict:
        return {"method": method, "test accuracy": test_accuracy, "evaluations": evaluations, "seconds": seconds}

    used = Spread.of(descent.seconds for descent in descents)
    return Result(
        title="Digits: ES and backpropagation at equal time and at equal evaluations",
        rows=[
            row(f"EGGROLL, rank 1, population {population}", evolved, budget, seconds),
            row("backpropagation, equal time", at_time, "-", seconds),
            row("backpropagation, equal evaluations", at_evaluations, backprop_steps * COST * BATCH, used),
        ],
        claim="The expectation is that on a differentiable task backpropagation stays ahead of ES at equal time and at "
        "equal evaluations",
        measured=f"ES reaches {evolved.mean:.1%}, backpropagation {at_time.mean:.1%} in the same time and "
        f"{at_evaluations.mean:.1%} with the same evaluations, and ES uses {ratio} the evaluations that "
        "backpropagation needs to reach ES's final accuracy",
        holds=bool(at_time.mean > evolved.mean and at_evaluations.mean > evolved.mean),
        notes=f"64 - {hidden} - 10, Adam at {rate} for both, 1,437 training and 360 test images; ES with batches of "
        f"{batch} shared by all members, z-scores, {steps} steps; backpropagation with batches of {BATCH}; {seeds} "
        "seeds.",
        series={
            "curves": {
                "EGGROLL": [curve.values for curve in curves],
                "backpropagation": [descent.values for descent in descents],
            },
            "ES evaluations": [step * population * batch for step in curves[0].steps],
            "backprop evaluations": [mark * COST * BATCH for mark in marks],
        },
    )
