"""CartPole from scratch: the dynamics in a few lines of MLX, a small policy, and learning from the return alone."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from nanoegg_mlx.eggroll import EggRoll
from nanoegg_mlx.eggroll.claims.report import Result, Spread
from nanoegg_mlx.eggroll.claims.runs import fitness_spread, multilayer, scalar

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, INTERVAL = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
"""m/s^2, kg, kg, m, N, s: the usual constants, of Barto, Sutton and Anderson (1983)."""
LIMITS = (2.4, 12 * np.pi / 180)
"""An episode ends when the cart is further than this from the middle (m) or the pole from the vertical (rad)."""
SOLVED = 195
"""The usual mark: mean return, of 200 steps."""


def move(state: mx.array, push: mx.array) -> mx.array:
    """One step of 0.02 s, by Euler's method.

    Args:
        state: (..., 4): position and speed of the cart, angle and angular speed of the pole.
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
        # The dynamics of a fallen pole may overflow, so its state is reset. `alive` stays 0: it is not counted.
        state = state * alive[..., None]
    return mx.mean(total)


def learn(
    seed: int, generations: int, population: int, episodes: int, steps: int, hidden: int
) -> tuple[list[float], list[tuple[float, float, float]]]:
    """Test return of the mean policy before and after each generation, and the spread of the population's fitness."""
    policy = multilayer((4, hidden, 1), seed)
    eggroll = EggRoll(policy, population, 0.3, 0.5, fitness_shaping="centered-rank", seed=seed)
    test = starts(50, 10_000 + seed)
    returns, reports = [scalar(mean_return(policy, test, steps))], []
    for generation in range(generations):
        begin = starts(episodes, generations * seed + generation)
        reports.append(eggroll.step(lambda policy, state: mean_return(policy, state, steps), begin))
        returns.append(scalar(mean_return(policy, test, steps)))
    return returns, fitness_spread(reports)


def cartpole(
    seeds: int = 10, generations: int = 40, population: int = 32, episodes: int = 4, steps: int = 200, hidden: int = 8
) -> Result:
    """ES on the return of a policy of 4 - hidden - 1, from random weights."""
    runs = [learn(seed, generations, population, episodes, steps, hidden) for seed in range(seeds)]
    curves = [returns for returns, _ in runs]
    mark, each = SOLVED / 200 * steps, population * episodes
    above = [[i for i, value in enumerate(curve) if value >= mark] for curve in curves]
    solved = [generations_above[0] for generations_above in above if generations_above]
    shown = sorted({0, *np.linspace(0, generations, 9).astype(int).tolist()})
    rows = [
        {
            "generation": generation,
            "episodes": generation * each,
            "return": Spread.of(curve[generation] for curve in curves),
            "seeds at the mark": sum(after <= generation for after in solved),
        }
        for generation in shown
    ]
    first, final, best = (np.mean([of(curve) for curve in curves]) for of in (lambda c: c[0], lambda c: c[-1], max))
    need = f"after {np.median(solved) * each:,.0f} episodes (median)" if solved else "none"
    return Result(
        title="CartPole: discrete control from scratch",
        rows=rows,
        claim=f"The expectation is that ES alone reaches the usual mark of {SOLVED} of 200 steps for every seed",
        measured=f"{len(solved)} of {seeds} seeds reach it, {need}; the return goes from {first:.0f} to {final:.0f} of "
        f"{steps} at the end, {best:.0f} at best",
        holds=len(solved) == seeds,
        notes=f"A policy of 4 - {hidden} - 1, a push to the left or the right by the sign of its output; population "
        f"{population}, {episodes} episodes each, the same for all members of a generation, {seeds} seeds; the return "
        f"of the mean policy is measured on 50 other episodes of {steps} steps.",
        series={"curves": curves, "each": each, "mark": mark, "population": [spread for _, spread in runs]},
    )
