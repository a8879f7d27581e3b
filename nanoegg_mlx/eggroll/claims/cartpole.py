"""CartPole from scratch: the dynamics in a few lines of MLX, a small policy, and the return alone to learn from."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import multilayer, scalar

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, INTERVAL = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""m/s^2, kg, kg, m, N, s: the constants of Barto, Sutton and Anderson (1983), as in everybody's CartPole."""
LIMITS = (2.4, 12 * np.pi / 180)
"""An episode ends when the cart is further than this from the middle (m) or the pole from the vertical (rad)."""
SOLVED = 195
"""Of 200 steps, on average: the customary mark."""


def move(state: mx.array, push: mx.array) -> mx.array:
    """One step of 0.02 s, by Euler's method.

    Args:
        state: (..., 4), cart's position and speed, pole's angle and angular speed.
        push: (...), +1 to the right, -1 to the left.
    """
    speed, angle, spin = (state[..., i] for i in (1, 2, 3))
    sine, cosine = mx.sin(angle), mx.cos(angle)
    shared = (FORCE * push + POLE * HALF_LENGTH * spin * spin * sine) / (CART + POLE)
    turning = (GRAVITY * sine - cosine * shared) / (HALF_LENGTH * (4 / 3 - POLE * cosine * cosine / (CART + POLE)))
    pushing = shared - POLE * HALF_LENGTH * turning * cosine / (CART + POLE)
    change = mx.stack([speed, pushing, spin, turning], axis=-1)
    return state + INTERVAL * change


def starts(episodes: int, seed: int) -> mx.array:
    """Starting states (episodes, 4), uniform in [-0.05, 0.05]."""
    return mx.random.uniform(-0.05, 0.05, (episodes, 4), key=mx.random.key(seed))


def mean_return(policy: nn.Module, state: mx.array, steps: int) -> mx.array:
    """Steps before the end of an episode, averaged over those that begin in state (episodes, 4)."""
    alive = mx.ones(state.shape[:-1])
    total = mx.zeros(state.shape[:-1])
    for _ in range(steps):
        push = mx.where(policy(state)[..., 0] > 0, 1.0, -1.0)
        state = move(state, push)
        within = (mx.abs(state[..., 0]) < LIMITS[0]) & (mx.abs(state[..., 2]) < LIMITS[1])
        alive = alive * within
        total = total + alive
        # A fallen pole would spin ever faster: it is put back, and counts no more.
        state = state * alive[..., None]
    return mx.mean(total)


def cartpole(
    seeds: int = 10, generations: int = 40, population: int = 32, episodes: int = 4, steps: int = 200, hidden: int = 8
) -> Result:
    """ES on the return of a policy of 4 - hidden - 1, from random weights."""
    curves, spreads, solved_after = [], [], []
    for seed in range(seeds):
        policy = multilayer((4, hidden, 1), seed)
        eggroll = EggRoll(policy, population, 0.3, 0.5, fitness_shaping="centered-rank", seed=seed)
        test = starts(50, 10_000 + seed)
        returns = [scalar(mean_return(policy, test, steps))]
        reports = []
        for generation in range(generations):
            begin = starts(episodes, generations * seed + generation)
            reports.append(eggroll.step(lambda policy, state: mean_return(policy, state, steps), begin))
            returns.append(scalar(mean_return(policy, test, steps)))
        curves.append(returns)
        spreads.append([(report.fitness_mean, report.fitness_std, report.fitness_max) for report in reports])
        above = [i for i, value in enumerate(returns) if value >= SOLVED / 200 * steps]
        solved_after.append(above[0] if above else -1)
    final = [curve[-1] for curve in curves]
    best = [max(curve) for curve in curves]
    solved = [after for after in solved_after if after >= 0]
    each = population * episodes
    rows = []
    for generation in sorted({0, *np.linspace(0, generations, 9).astype(int).tolist()}):
        rows.append(
            {
                "generation": generation,
                "episodes": generation * each,
                "return": Spread.of(curve[generation] for curve in curves),
                "seeds at the mark": sum(0 <= after <= generation for after in solved_after),
            }
        )
    need = f"after {np.median(solved) * each:,.0f} episodes (median)" if solved else "none"
    return Result(
        title="CartPole: discrete control from scratch",
        rows=rows,
        claim=f"The expectation is that ES alone reaches the customary mark of {SOLVED} of 200 steps for every seed",
        measured=f"{len(solved)} of {seeds} seeds reach it, {need}; the return goes from "
        f"{np.mean([c[0] for c in curves]):.0f} to {np.mean(final):.0f} of {steps} at the end, {np.mean(best):.0f} at "
        "best",
        holds=len(solved) == seeds,
        notes=f"A policy of 4 - {hidden} - 1, a push to the left or the right by the sign of its output; population "
        f"{population}, {episodes} episodes each, the same for all members of a generation, {seeds} seeds; the return "
        f"of the mean policy is measured on 50 other episodes of {steps} steps.",
        series={"curves": curves, "each": each, "mark": SOLVED / 200 * steps, "population": spreads},
    )
