"""Quadratic fitness, where everything can be predicted: EGGROLL against SGD, and where either is stable.

With f(W) = -1/2 |W - W*|^2 an antithetic difference is exact, f(W + sigma E) - f(W - sigma E) = 2 sigma <G, E> with
G = W* - W, so sigma cancels and the estimate from P pairs is (1/P) sum <G, E_i> E_i. Its mean is G, for any rank. Its
second moment needs one number, K_r = E[<G, E>^2 |E|^2] / |G|^2, by counting the non-zero moments of A and B

    K_r = m n + 2 + (2 m + 2 n + 2) / r        (full rank: m n + 2)

and with it the expected loss shrinks in each step by the factor 1 - 2 eta + eta^2 (1 + (K_r - 1) / P). That is what the
tables call predicted. The price of rank 1 is (m + 2)(n + 2) in the place of m n + 2: little, in large matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import climb, rank_name


def second_moment(m: int, n: int, rank: int | None) -> float:
    """K_r, see above."""
    return m * n + 2 + (0 if rank is None else (2 * m + 2 * n + 2) / rank)


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
        seeds: runs of each setting, each with a start of its own.
        shape: of the matrix.
        rate: eta, of all runs.
    """
    start = mx.random.normal((seeds, *shape), key=mx.random.key(1))

    def objective(W: mx.array) -> mx.array:
        return -0.5 * mx.sum(W * W)

    rates = [rate] * seeds
    sgd = -climb(objective, start, rates, steps)
    curves = {"SGD": sgd}
    base = (1, 0.05, 64)
    settings: dict[tuple[int | None, float, int], str] = {}
    for rank in ranks:
        settings[(rank, base[1], base[2])] = f"rank {rank_name(rank)}"
    for sigma in sigmas:
        settings.setdefault((base[0], sigma, base[2]), f"sigma {sigma}")
    for population in populations:
        settings.setdefault((base[0], base[1], population), f"population {population}")

    def row(what: str, rank: str, sigma: float, population: int, loss: np.ndarray, predicted: float) -> dict:
        ends = loss[:, -1] / loss[:, 0]
        return {
            "run": what, "rank": rank, "sigma": sigma or "-", "population": population or "-",
            "loss, of the initial one": Spread.of(ends), "predicted": predicted,
            "evaluations": steps * max(population, 1),
        }  # fmt: skip

    rows = [row("SGD", "-", 0, 0, sgd, (1 - rate) ** (2 * steps))]
    ends: dict[tuple[int | None, float, int], Spread] = {}
    for (rank, sigma, population), what in settings.items():
        loss = -climb(objective, start, rates, steps, population, sigma, rank, seed=2)
        factor = 1 - 2 * rate + rate**2 * (1 + (second_moment(*shape, rank) - 1) / (population / 2))
        rows.append(row(what, rank_name(rank), sigma, population, loss, factor**steps))
        curves[what] = loss
        ends[(rank, sigma, population)] = rows[-1]["loss, of the initial one"]

    of_rank = [ends[(rank, base[1], base[2])].mean for rank in (ranks[0], ranks[-1])]
    of_sigma = [ends[key].mean for key in settings if key[0] == base[0] and key[2] == base[2]]
    largest = ends[(base[0], base[1], max(populations))]
    off = max(abs(np.log(r["loss, of the initial one"].mean / r["predicted"])) for r in rows[1:])
    to_sgd = largest.mean / rows[0]["loss, of the initial one"].mean
    return Result(
        title="Quadratic: EGGROLL against SGD",
        rows=rows,
        claim="The expectation is that rank 1 learns about as fast as full rank, that sigma cancels, and that a "
        "growing population comes near SGD",
        measured=f"after {steps} steps rank {rank_name(ranks[0])} is at {of_rank[0] / of_rank[1]:.2f} times the loss "
        f"of rank {rank_name(ranks[-1])}, the losses over sigma differ by {max(of_sigma) / min(of_sigma) - 1:.1%}, "
        f"population {max(populations)} is at {to_sgd:.2f} times SGD's loss, and no mean is further than a factor of "
        f"{np.exp(off):.2f} from the predicted one",
        holds=bool(of_rank[0] / of_rank[1] < 1.5 and max(of_sigma) / min(of_sigma) < 1.05 and 1 / 1.5 < to_sgd < 1.5),
        notes=f"f(W) = -1/2 |W|^2 for W of {shape[0]} x {shape[1]}, learning rate {rate} for all, {steps} steps, "
        f"{seeds} seeds. Predicted is the expectation by the second moment of the noise (see the module's docstring).",
        series={"curves": curves, "populations": {f"population {p}": p for p in populations}, "steps": steps},
    )


def stability(
    seeds: int = 10,
    steps: int = 100,
    shape: tuple[int, int] = (8, 8),
    conditions: Sequence[float] = (1, 10, 100),
    populations: Sequence[int] = (32, 256),
    rates: Sequence[float] = tuple(np.round(np.geomspace(0.05, 3.2, 25), 3).tolist()),
) -> Result:
    """Where ES and SGD are stable: f(W) = -1/2 sum lambda_ij W_ij^2, curvatures log-spaced from 1/condition to 1.

    SGD is stable below a rate of 2, whatever the condition. ES sees each direction's curvature through noise of all of
    them: its limit falls with the sum of the curvatures over the population, so it is least where all are equal.

    Args:
        seeds: starts of each setting. A run is stable if it ends below where it began.
    """
    m, n = shape
    methods: dict[str, int] = {
        "SGD": 0,
        **{f"EGGROLL, population {population}": population for population in populations},
    }
    start = mx.random.normal((seeds, m, n), key=mx.random.key(3))
    many = mx.concatenate([start] * len(rates))
    rows, maps = [], {}
    limits: dict[tuple[str, float], float] = {}
    for method, population in methods.items():
        for condition in conditions:
            curvature = mx.array(np.geomspace(1 / condition, 1, m * n).reshape(shape), mx.float32)

            def objective(W: mx.array, curvature: mx.array = curvature) -> mx.array:
                return -0.5 * mx.sum(curvature * W * W)

            of_run = [rate for rate in rates for _ in range(seeds)]
            loss = -climb(objective, many, of_run, steps, population, 0.05, 1, seed=4)
            with np.errstate(invalid="ignore", over="ignore"):
                ratio = (loss[:, -1] / loss[:, 0]).reshape(len(rates), seeds)
            stable = np.isfinite(ratio) & (ratio < 1)
            maps[(method, condition)] = stable.mean(axis=1)
            # Of each seed, the largest rate up to which all were stable.
            of_seed = [rates[int(np.argmin(column)) - 1] if not column.all() else rates[-1] for column in stable.T]
            of_seed = [limit if column[0] else 0.0 for limit, column in zip(of_seed, stable.T, strict=True)]
            limit = Spread.of(of_seed)
            limits[(method, condition)] = limit.mean
            best = np.nanmin(np.where(np.isfinite(ratio), ratio, np.inf).mean(axis=1))
            rows.append(
                {
                    "method": method,
                    "condition": condition,
                    "largest stable rate": limit,
                    "of SGD's": limit.mean / limits[("SGD", condition)],
                    "best loss, of the initial one": float(best),
                }
            )
    shares = {key: limits[key] / limits[("SGD", key[1])] for key in limits}
    names = list(methods)[1:]
    grows = all(shares[(small, c)] <= shares[(large, c)] for small, large in pairwise(names) for c in conditions)
    return Result(
        title="Ill-conditioned quadratics: where ES and SGD are stable",
        rows=rows,
        claim="The expectation is that ES is stable up to smaller rates than SGD, that the region grows with the "
        "population, and that ill-conditioning, which leaves fewer directions of high curvature, does not shrink it",
        measured="of SGD's limit "
        + ", ".join(
            f"{shares[(name, conditions[0])]:.2f} (condition {conditions[0]:g}) to "
            f"{shares[(name, conditions[-1])]:.2f} (condition {conditions[-1]:g}) for {name}"
            for name in names
        ),
        holds=bool(
            grows
            and max(shares[(name, c)] for name in names for c in conditions) <= 1
            and all(shares[(name, conditions[0])] <= shares[(name, conditions[-1])] for name in names)
        ),
        notes=f"f(W) = -1/2 sum lambda W^2 for W of {m} x {n}, lambda from 1/condition to 1, rank 1, {steps} steps, "
        f"{seeds} seeds and {len(rates)} rates from {rates[0]:g} to {rates[-1]:g}; a run is stable if it ends below "
        "its start, and the limit is the largest rate of the grid up to which all are.",
        series={"maps": maps, "rates": list(rates)},
    )
