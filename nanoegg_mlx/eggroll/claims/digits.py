"""Small images, scikit-learn's 8 x 8 digits: ES and backpropagation at equal time and at equal evaluations."""

from __future__ import annotations

import time
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import accuracy, evolve, minus_cross_entropy, multilayer, optional, scalar


def images() -> tuple[tuple[mx.array, mx.array], tuple[mx.array, mx.array]]:
    """(1437, 64) images in [0, 1] and their digits to learn from, and 360 to test with."""
    x, y = optional("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = mx.array(x[order] / 16, mx.float32), mx.array(y[order])
    return (x[:-360], y[:-360]), (x[-360:], y[-360:])


def digits(
    seeds: int = 10, steps: int = 300, population: int = 128, batch: int = 64, hidden: int = 32, rate: float = 0.01
) -> Result:
    """Test accuracy of a network of 64 - hidden - 10.

    An evaluation is one image through the network forward; a backward pass counts as two more. The budgets are those of
    the ES run: backpropagation is stopped, and measured, when it has used the same time and the same evaluations.
    """
    train, test = images()
    size = len(train[0])
    table: dict[str, list[float]] = {name: [] for name in ("ES", "time", "evaluations")}
    used: dict[str, list[float]] = {"ES": [], "backpropagation": []}
    curves: dict[str, list[list[float]]] = {"EGGROLL": [], "backpropagation": []}
    measured_at = np.unique(np.geomspace(1, steps, 20).astype(int)).tolist()
    per_step, backprop_batch = population * batch, 256
    budget = steps * per_step
    backprop_steps = budget // (3 * backprop_batch)
    marks = np.unique(np.geomspace(1, backprop_steps, 25).astype(int)).tolist()
    for seed in range(seeds):
        random = np.random.default_rng(seed)

        def draw_batch(count: int, random: np.random.Generator = random) -> tuple[mx.array, mx.array]:
            chosen = mx.array(random.integers(0, size, count))
            return train[0][chosen], train[1][chosen]

        model = multilayer((64, hidden, 10), seed)
        eggroll = EggRoll(model, population, 0.05, optimizer=optim.Adam(rate), seed=seed, fitness_shaping="zscore")
        test_accuracy = partial(accuracy, model, *test)
        curve = evolve(eggroll, minus_cross_entropy, partial(draw_batch, batch), steps, test_accuracy, measured_at)
        curves["EGGROLL"].append(curve.values)
        table["ES"].append(curve.values[-1])

        model = multilayer((64, hidden, 10), seed)
        test_accuracy = partial(accuracy, model, *test)
        optimizer = optim.Adam(rate)
        gradient = nn.value_and_grad(model, lambda model, x, y: -minus_cross_entropy(model, x, y))
        values: list[float] = []
        at_time: float | None = None
        seconds, step = 0.0, 0
        while at_time is None or step < backprop_steps:
            step += 1
            started = time.perf_counter()
            _, grads = gradient(model, *draw_batch(backprop_batch))
            optimizer.update(model, grads)
            mx.eval(model.parameters(), optimizer.state)
            seconds += time.perf_counter() - started
            if at_time is None and seconds >= curve.seconds[-1]:
                at_time = scalar(test_accuracy())
            if step in marks:  # the last of them is all evaluations
                values.append(scalar(test_accuracy()))
                seconds_used = seconds
        table["time"].append(at_time)
        table["evaluations"].append(values[-1])
        used["ES"].append(curve.seconds[-1])
        used["backpropagation"].append(seconds_used)
        curves["backpropagation"].append(values)

    evolved, at_time_, at_evaluations = (Spread.of(table[name]) for name in ("ES", "time", "evaluations"))
    # How many evaluations backpropagation needs to be where ES ends.
    mean_curve = np.mean(curves["backpropagation"], axis=0)
    reach = next((mark for mark, value in zip(marks, mean_curve, strict=True) if value >= evolved.mean), None)
    ratio = f"{budget / (reach * 3 * backprop_batch):.0f} times" if reach else "less than once"
    return Result(
        title="Digits: ES and backpropagation at equal time and at equal evaluations",
        rows=[
            {"method": f"EGGROLL, rank 1, population {population}", "test accuracy": evolved, "evaluations": budget,
             "seconds": Spread.of(used["ES"])},
            {"method": "backpropagation, equal time", "test accuracy": at_time_, "evaluations": "-",
             "seconds": Spread.of(used["ES"])},
            {"method": "backpropagation, equal evaluations", "test accuracy": at_evaluations,
             "evaluations": backprop_steps * 3 * backprop_batch, "seconds": Spread.of(used["backpropagation"])},
        ],
        claim="The expectation is that on a differentiable task backpropagation stays ahead of ES at equal time and at "
        "equal evaluations",
        measured=f"ES reaches {evolved.mean:.1%}, backpropagation {at_time_.mean:.1%} in the same time and "
        f"{at_evaluations.mean:.1%} with the same evaluations, and ES uses {ratio} the evaluations that "
        "backpropagation needs to get where ES ends",
        holds=bool(at_time_.mean > evolved.mean and at_evaluations.mean > evolved.mean),
        notes=f"64 - {hidden} - 10, Adam at {rate} for both, 1,437 images to learn from and 360 to test; ES with "
        f"batches of {batch} shared by all members, z-scores, {steps} steps; backpropagation with batches of "
        f"{backprop_batch}; {seeds} seeds.",
        series={
            "curves": curves,
            "ES evaluations": [step * per_step for step in curve.steps],
            "backprop evaluations": [mark * 3 * backprop_batch for mark in marks],
        },
    )  # fmt: skip
