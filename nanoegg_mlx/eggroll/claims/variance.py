"""What antithetic pairs, baselines and fitness shaping do to the variance of the update."""

from __future__ import annotations

from typing import Literal, get_args

import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll, Shaping, flat, shape_fitness
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import minus_cross_entropy, multilayer
from nanoegg_mlx.eggroll.claims.two_moons import SIZES, moons

BASELINES: tuple[Literal["none", "mean"], ...] = ("none", "mean")


def update_variance(seeds: int = 10, updates: int = 60, population: int = 64, sigma: float = 0.05) -> Result:
    """Relative variance and cosine to the gradient of many updates at one point, for each combination.

    Args:
        seeds: networks and data sets.
        updates: estimates for each, with noise of their own; all combinations see the same noise.
    """
    combinations: list[tuple[bool, Literal["none", "mean"], Shaping]] = [
        (antithetic, baseline, shaping)
        for antithetic in (False, True)
        for shaping in get_args(Shaping)
        for baseline in BASELINES[0 if shaping in ("none", "sign") else 1 :]
    ]
    spread: dict[tuple, list[float]] = {key: [] for key in combinations}
    cosine: dict[tuple, list[float]] = {key: [] for key in combinations}
    for seed in range(seeds):
        x, y = moons(128, 0.1, seed)
        model = multilayer(SIZES, seed)
        gradient = entries(nn.value_and_grad(model, minus_cross_entropy)(model, x, y)[1])
        found: dict[tuple, list[np.ndarray]] = {key: [] for key in combinations}
        for antithetic in (False, True):
            eggroll = EggRoll(model, population, sigma, 1.0, antithetic=antithetic, seed=seed)
            for step in range(updates):
                eggroll.steps = step
                fitness = np.array(eggroll.evaluate(minus_cross_entropy, x, y), np.float64)
                for key in combinations:
                    if key[0] == antithetic:
                        weights, _ = shape_fitness(fitness, key[2], key[1], antithetic)
                        found[key].append(entries(eggroll.estimate(weights)))
        for key, samples in found.items():
            values = np.stack(samples)
            # Shapings change the length of an update, so its variance counts relative to its signal: the gradient
            # itself where nothing is shaped, else what of the mean lies along it (nothing, if that is but noise).
            along = values @ gradient / np.linalg.norm(gradient)
            signal = np.linalg.norm(gradient) if key[2] == "none" else along.mean()
            heard = signal > 3 * along.std(ddof=1) / updates**0.5 or key[2] == "none"
            spread[key].append(values.var(axis=0, ddof=1).sum() / signal**2 if heard else np.inf)
            norms = np.linalg.norm(values, axis=1) * np.linalg.norm(gradient)
            cosine[key].append(float((values @ gradient / norms).mean()))
    rows = [
        {
            "antithetic": "yes" if antithetic else "no",
            "baseline": baseline,
            "shaping": shaping,
            "variance / signal^2": Spread.of(spread[(antithetic, baseline, shaping)])
            if np.isfinite(spread[(antithetic, baseline, shaping)]).all()
            else "no signal",
            "cosine to the gradient": Spread.of(cosine[(antithetic, baseline, shaping)]),
        }
        for antithetic, baseline, shaping in combinations
    ]
    plain, centred, pairs = (
        float(np.median(spread[key]))
        for key in ((False, "none", "none"), (False, "mean", "none"), (True, "none", "none"))
    )
    best_shaping = min(get_args(Shaping), key=lambda shaping: np.median(spread[(True, "mean", shaping)]))
    both = np.median(spread[(True, "mean", "none")]) / pairs
    return Result(
        title="Antithetic pairs, baselines and fitness shaping: the variance of the update",
        rows=rows,
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
        series={"variance": {key: spread[key] for key in combinations}, "cosine": cosine},
    )


def entries(tree: object) -> np.ndarray:
    """All entries of a parameter tree, in the order of the names: float64."""
    return np.concatenate([np.array(leaf, np.float64).ravel() for _, leaf in sorted(flat(tree).items())])
