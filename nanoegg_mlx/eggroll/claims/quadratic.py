"""Quadratic fitness, where everything can be predicted: EGGROLL against SGD.

With f(W) = -1/2 |W - W*|^2 an antithetic difference is exact, f(W + sigma E) - f(W - sigma E) = 2 sigma <G, E> with
G = W* - W, so sigma cancels and the estimate from P pairs is (1/P) sum <G, E_i> E_i. Its mean is G, for any rank. Its
second moment depends on one number, K_r = E[<G, E>^2 |E|^2] / |G|^2, found by counting the non-zero moments of A and B:

    K_r = m n + 2 + (2 m + 2 n + 2) / r        (full rank: m n + 2)

With it the expected loss shrinks in each step by the factor 1 - 2 eta + eta^2 (1 + (K_r - 1) / P): the column
"predicted" of the tables. Rank 1 has (m + 2)(n + 2) in place of m n + 2: a small price in large matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import climb, rank_name

LOSS = "loss, of the initial one"


class Setting(NamedTuple):
    """A run of EGGROLL."""

    rank: int | None
    sigma: float
    population: int


BASE = Setting(1, 0.05, 64)
"""The setting from which one value at a time is varied."""


def second_moment(m: int, n: int, rank: int | None) -> float:
    """K_r, see above."""
    return m * n + 2 + (0 if rank is None else (2 * m + 2 * n + 2) / rank)


def settings(ranks: Sequence[int | None], sigmas: Sequence[float], populations: Sequence[int]) -> dict[Setting, str]:
    """Setting -> name of the run. A setting that occurs twice keeps the first name."""
    named = {BASE._replace(rank=rank): f"rank {rank_name(rank)}" for rank in ranks}
    for sigma in sigmas:
        named.setdefault(BASE._replace(sigma=sigma), f"sigma {sigma}")
    for population in populations:
        named.setdefault(BASE._replace(population=population), f"population {population}")
    return named


def row(name: str, rank: str, sigma: float, population: int, loss: np.ndarray, predicted: float) -> dict[str, Any]:
    """The table's row of one run's losses (seeds, steps + 1); population 0 is SGD."""
    return {
        "run": name,
        "rank": rank,
        "sigma": sigma or "-",
        "population": population or "-",
        LOSS: Spread.of(loss[:, -1] / loss[:, 0]),
        "predicted": predicted,
        "evaluations": (loss.shape[1] - 1) * max(population, 1),
    }


def quadratic(
    seeds: int = 10,
    steps: int = 300,
    shape: tuple[int, int] = (16, 16),
    rate: float = 0.01,
    ranks: Sequence[int | None] = (1, 2, 4, None),
    sigmas: Sequence[float] = (0.01, 0.05, 0.2),
    populations: Sequence[int] = (4, 16, 64, 256),
) -> Result:
    """EGGROLL against SGD at one learning rate; one of rank, sigma and population varied at a time.

    Args:
        seeds: runs of each setting, each from a different start.
        shape: of the matrix.
        rate: eta, of all runs.
    """
    start = mx.random.normal((seeds, *shape), key=mx.random.key(1))

    def objective(W: mx.array) -> mx.array:
        return -0.5 * mx.sum(W * W)

    rates = [rate] * seeds
    curves = {"SGD": -climb(objective, start, rates, steps)}
    rows = [row("SGD", "-", 0, 0, curves["SGD"], (1 - rate) ** (2 * steps))]
    ends: dict[Setting, float] = {}
    for setting, name in settings(ranks, sigmas, populations).items():
        rank, sigma, population = setting
        curves[name] = -climb(objective, start, rates, steps, population, sigma, rank, seed=2)
        factor = 1 - 2 * rate + rate**2 * (1 + (second_moment(*shape, rank) - 1) / (population / 2))
        rows.append(row(name, rank_name(rank), sigma, population, curves[name], factor**steps))
        ends[setting] = rows[-1][LOSS].mean

    of_rank = ends[BASE._replace(rank=ranks[0])] / ends[BASE._replace(rank=ranks[-1])]
    by_sigma = [end for setting, end in ends.items() if setting == BASE._replace(sigma=setting.sigma)]
    of_sigma = max(by_sigma) / min(by_sigma)
    to_sgd = ends[BASE._replace(population=max(populations))] / rows[0][LOSS].mean
    off = max(abs(np.log(r[LOSS].mean / r["predicted"])) for r in rows[1:])
    return Result(
        title="Quadratic: EGGROLL against SGD",
        rows=rows,
        claim="The expectation is that rank 1 learns about as fast as full rank, that sigma cancels, and that a "
        "growing population approaches SGD",
        measured=f"after {steps} steps rank {rank_name(ranks[0])} is at {of_rank:.2f} times the loss "
        f"of rank {rank_name(ranks[-1])}, the losses over sigma differ by {of_sigma - 1:.1%}, "
        f"population {max(populations)} is at {to_sgd:.2f} times SGD's loss, and no mean is further than a factor of "
        f"{np.exp(off):.2f} from the predicted one",
        holds=bool(of_rank < 1.5 and of_sigma < 1.05 and 1 / 1.5 < to_sgd < 1.5),
        notes=f"f(W) = -1/2 |W|^2 for W of {shape[0]} x {shape[1]}, learning rate {rate} for all, {steps} steps, "
        f"{seeds} seeds. Predicted is the expectation by the second moment of the noise (see the module's docstring).",
        series={"curves": curves, "populations": {f"population {p}": p for p in populations}, "steps": steps},
    )
