"""The effect of antithetic pairs, baselines and fitness shaping on the variance of the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll, Shaping, flat, shape_fitness
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import minus_cross_entropy, multilayer
from nanoegg_mlx.eggroll.claims.two_moons import SIZES, moons

BASELINES: tuple[Literal["none", "mean"], ...] = ("none", "mean")


class Combination(NamedTuple):
    """A way to make weights of fitness."""

    antithetic: bool
    baseline: Literal["none", "mean"]
    shaping: Shaping


COMBINATIONS = [
    Combination(antithetic, baseline, shaping)
    for antithetic in (False, True)
    for shaping in get_args(Shaping)
    # Ranks and z-scores are centred anyway: a baseline has no effect on them.
    for baseline in BASELINES[0 if shaping in ("none", "sign") else 1 :]
]


def entries(tree: object) -> np.ndarray:
    """All entries of a parameter tree, in the order of the names: float64."""
    return np.concatenate([np.array(leaf, np.float64).ravel() for _, leaf in sorted(flat(tree).items())])


def estimates_at_start(
    seed: int, updates: int, population: int, sigma: float
) -> tuple[np.ndarray, dict[Combination, np.ndarray]]:
    """Many updates of one network at its start.

    Returns:
        The gradient (P,), and of each combination the estimates (updates, P), all from the same noise: float64.
    """
    x, y = moons(128, 0.1, seed)
    model = multilayer(SIZES, seed)
    gradient = entries(nn.value_and_grad(model, minus_cross_entropy)(model, x, y)[1])
    found: dict[Combination, list[np.ndarray]] = {combination: [] for combination in COMBINATIONS}
    for antithetic in (False, True):
        eggroll = EggRoll(model, population, sigma, 1.0, antithetic=antithetic, seed=seed)
        for step in range(updates):
            # Other noise in each step; the model does not move.
            eggroll.steps = step
            fitness = np.array(eggroll.evaluate(minus_cross_entropy, x, y), np.float64)
            for combination in COMBINATIONS:
                if combination.antithetic == antithetic:
                    weights, _ = shape_fitness(fitness, combination.shaping, combination.baseline, antithetic)
                    found[combination].append(entries(eggroll.estimate(weights)))
    return gradient, {combination: np.stack(samples) for combination, samples in found.items()}


def relative_variance(values: np.ndarray, gradient: np.ndarray, shaping: Shaping) -> float:
    """Variance of the estimates (updates, P) over their squared signal; infinite if there is no signal.

    A shaping changes the length of an update, so its variance counts relative to its signal: the length of the gradient
    (P,) if nothing is shaped, else the part of the mean along it.
    """
    along = values @ gradient / np.linalg.norm(gradient)
    signal = np.linalg.norm(gradient) if shaping == "none" else along.mean()
    # Below three standard errors, the mean along the gradient is taken for noise.
    significant = signal > 3 * along.std(ddof=1) / len(values) ** 0.5 or shaping == "none"
    return values.var(axis=0, ddof=1).sum() / signal**2 if significant else np.inf


def row(combination: Combination, variance: Sequence[float], cosine: Sequence[float]) -> dict[str, Any]:
    """The table's row of a combination, from one variance and one cosine for each seed."""
    return {
        "antithetic": "yes" if combination.antithetic else "no",
        "baseline": combination.baseline,
        "shaping": combination.shaping,
        "variance / signal^2": Spread.of(variance) if np.isfinite(variance).all() else "no signal",
        "cosine to the gradient": Spread.of(cosine),
    }


def update_variance(seeds: int = 10, updates: int = 60, population: int = 64, sigma: float = 0.05) -> Result:
    """Relative variance and cosine to the gradient of many updates at one point, for each combination.

    Args:
        seeds: networks and data sets.
        updates: estimates for each, with different noise; all combinations use the same noise.
    """
    variance: dict[Combination, list[float]] = {combination: [] for combination in COMBINATIONS}
    cosine: dict[Combination, list[float]] = {combination: [] for combination in COMBINATIONS}
    for seed in range(seeds):
        gradient, estimates = estimates_at_start(seed, updates, population, sigma)
        for combination, values in estimates.items():
            variance[combination].append(relative_variance(values, gradient, combination.shaping))
            norms = np.linalg.norm(values, axis=1) * np.linalg.norm(gradient)
            cosine[combination].append(float((values @ gradient / norms).mean()))

    def median(antithetic: bool, baseline: Literal["none", "mean"], shaping: Shaping) -> float:
        return float(np.median(variance[Combination(antithetic, baseline, shaping)]))

    plain, centred, pairs = median(False, "none", "none"), median(False, "mean", "none"), median(True, "none", "none")
    both = median(True, "mean", "none") / pairs
    best_shaping = min(get_args(Shaping), key=lambda shaping: median(True, "mean", shaping))
    return Result(
        title="Antithetic pairs, baselines and fitness shaping: the variance of the update",
        rows=[row(combination, variance[combination], cosine[combination]) for combination in COMBINATIONS],
        claim="The expectation is that a baseline and antithetic pairs each cut the variance of the update, and that "
        "pairs need no baseline",
        measured=f"by medians, a mean baseline divides the variance by {plain / centred:.1f}, pairs divide it by "
        f"{plain / pairs:.1f} (at equal evaluations they vary {pairs / centred:.1f} times as much as single members "
        f"with a baseline), the baseline changes that of pairs by a factor of {both:.3f}, and among the shapings of "
        f"pairs {best_shaping!r} varies least",
        holds=bool(centred < plain and pairs < plain and abs(both - 1) < 0.01),
        notes=f"The networks and data of the two moons at their start, population {population}, sigma {sigma}, rank "
        f"1, {updates} updates from the same noise for every combination, {seeds} seeds. A baseline has no effect on "
        "ranks or z-scores, which are centred anyway. Signal is the length of the update along the gradient.",
        series={"variance": dict(variance), "cosine": cosine},
    )
