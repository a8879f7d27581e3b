"""Speed of a population's forward pass, as a share of pure inference and as a multiple of naive evolution strategies.

One linear layer of width by width, N members, b rows of input each (tokens that a member reads with the same noise):

    pure         one product of all N b rows with W: all members are alike, an upper bound
    EGGROLL      the library's own product for the population, x W^T + (x B) A^T; the time includes drawing the noise
    naive        dense noise drawn, each member's own W + sigma E formed, and its rows multiplied with it

All three are measured in turn, several times, and only ratios are reported: medians of ratios within a turn. On a CPU
they are ratios of processor time, so that other load on the machine counts little.

Two bounds limit the run time, and the table shows where they apply. A cell whose pure product would take more than
`time_bound` seconds by the machine's own measured rate is skipped. Naive weights are formed for as many members as fit
into `memory_bound` bytes (one at least), and the time is scaled up to N: all naive members cost the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll import LowRank, draw, draw_keys, members_of, perturbed_product
from nanoegg_mlx.eggroll.claims.report import Result, Spread


class Ratios(NamedTuple):
    """One cell, a value for each turn."""

    kept: list[float]
    """Pure time over EGGROLL's."""
    kept_ready: list[float]
    """The same with the noise drawn before."""
    faster: list[float]
    """Naive time over EGGROLL's."""


class Cell(NamedTuple):
    """One cell that was measured, by medians."""

    rows_each: int
    width: int
    population: int
    kept: float
    faster: float

    def __str__(self) -> str:
        return f"width {self.width}, population {self.population}, rows a member {self.rows_each}"


def seconds(work: Callable[[], mx.array]) -> float:
    """Processor time of this process if MLX runs on the CPU, unaffected by other processes; else wall-clock time."""
    clock = time.process_time if mx.default_device().type == mx.cpu else time.perf_counter
    started = clock()
    mx.eval(work())
    return clock() - started


def multiply_adds_per_second() -> float:
    """The machine's rate, by one product of middling size."""
    x, W = mx.random.normal((256, 512)), mx.random.normal((512, 512))
    mx.eval(x, W)
    return 256 * 512 * 512 / min(seconds(lambda: x @ W.T) for _ in range(5))


def ratios(x: mx.array, W: mx.array, turns: int, together: int, sigma: float) -> Ratios:
    """Measures one cell `turns` times.

    Args:
        x: (N, b, width), each member's rows.
        W: (width, width).
        together: naive members formed at once.
    """
    population, width = len(x), W.shape[0]

    def pure() -> mx.array:
        return x.reshape(-1, width) @ W.T

    def noise(turn: int) -> LowRank:
        # Pairs: half as many draws as members.
        E = draw(draw_keys(0, turn, 0, range(population // 2)), W.shape, 1)
        return cast(LowRank, members_of(E, sigma, antithetic=True))

    def eggroll(E: LowRank) -> mx.array:
        return mx.vmap(perturbed_product, in_axes=(0, None, 0, 0))(x, W, E.A, E.B)

    def naive(turn: int) -> mx.array:
        E = draw(draw_keys(0, turn, 1, range(-(-together // 2))), W.shape, None)
        weights = W + cast(mx.array, members_of(E, sigma, antithetic=True))[:together]
        return x[:together] @ weights.swapaxes(1, 2)

    ready = noise(0)
    # One turn to warm up: allocations, and compilation on a GPU.
    mx.eval(x, W, ready, pure(), eggroll(ready), naive(0))
    measured = Ratios([], [], [])
    for turn in range(turns):
        of_pure = seconds(pure)
        whole = seconds(lambda turn=turn: eggroll(noise(turn)))  # type: ignore[misc]
        product = seconds(lambda: eggroll(ready))
        of_naive = seconds(lambda turn=turn: naive(turn)) * population / together  # type: ignore[misc]
        measured.kept.append(of_pure / whole)
        measured.kept_ready.append(of_pure / product)
        measured.faster.append(of_naive / whole)
    return measured


def row(width: int, population: int, b: int, outcome: Ratios | str, naive: str = "-") -> dict[str, Any]:
    """The table's row of a cell: what was measured, or why it was skipped."""
    columns = ("kept of pure", "with the noise drawn before", "faster than naive")
    shown = (outcome, "-", "-") if isinstance(outcome, str) else (Spread.of(values) for values in outcome)
    return {
        "width": width,
        "population": population,
        "rows a member": b,
        **dict(zip(columns, shown, strict=True)),
        "naive measured on": naive,
        "turns": 0 if isinstance(outcome, str) else len(outcome.kept),
    }


def verdict(cells: Sequence[Cell]) -> tuple[str, bool]:
    """The sentence about the cells, and whether both halves of the claim hold."""
    if not cells:
        return "nothing, since each cell would take longer than the bound", False
    kept, faster = (np.array([getattr(cell, name) for cell in cells]) for name in ("kept", "faster"))
    reach = int((kept >= 0.91).sum())
    first, second = bool(reach >= len(cells) / 2), bool(faster.max() >= 100)
    measured = (
        f"by medians EGGROLL keeps {kept.min():.0%} to {kept.max():.0%} (most at {cells[int(kept.argmax())]}; 91 % or "
        f"more in {reach} of {len(cells)} cells) and is {faster.min():.1f} to {faster.max():.0f} times as fast as "
        f"naive (most at {cells[int(faster.argmax())]}), so the first half {'holds' if first else 'does not hold'}, "
        f"the second {'holds' if second else 'does not'}; as a whole"
    )
    return measured, first and second


def throughput(
    widths: Sequence[int] = (256, 512, 1024, 2048),
    populations: Sequence[int] = (64, 256, 1024, 4096),
    rows_each: Sequence[int] = (1, 8),
    repeats: int = 10,
    few: int = 5,
    time_bound: float = 2.0,
    memory_bound: int = 64 << 20,
    sigma: float = 0.05,
) -> Result:
    """Ratios of speed over width, population and rows a member.

    Args:
        rows_each: b, rows of input for each member.
        repeats: turns of each cell, or `few` if the pure product takes more than a tenth of the time bound.
        time_bound: seconds of the pure product, beyond which a cell is skipped.
        memory_bound: bytes of naive members' weights formed at once.
    """
    rate = multiply_adds_per_second()
    rows, cells = [], []
    for b, width, population in product(rows_each, widths, populations):
        expected = population * b * width * width / rate
        if expected > time_bound:
            rows.append(row(width, population, b, f"skipped: {expected:.1f} s for one pure product"))
            continue
        together = min(population, max(1, memory_bound // (4 * width * width)))
        turns = repeats if expected < time_bound / 10 else few
        x, W = mx.random.normal((population, b, width)), mx.random.normal((width, width))
        found = ratios(x, W, turns, together, sigma)
        cells.append(Cell(b, width, population, float(np.median(found.kept)), float(np.median(found.faster))))
        rows.append(row(width, population, b, found, f"{together} members"))
    measured, holds = verdict(cells)
    return Result(
        title="Throughput of a population's forward pass",
        rows=rows,
        claim="The paper claims 91 % of the throughput of pure batch inference, and 100 times that of naive "
        "evolution strategies",
        measured=measured,
        holds=holds,
        notes="One linear layer on this machine's default device, float32, rank 1, antithetic pairs, by processor "
        "time if the device is the CPU; kept is the pure product's time over EGGROLL's with its noise drawn, in the "
        "same turn. The first half of the claim is taken to hold if half of the cells reach 91 %, the second if one "
        "cell reaches 100 times. Naive pays for drawing, forming and reading a whole matrix for each member; the "
        "cheaper these are compared with a product of one row, the less there is to gain. Cells beyond "
        f"{time_bound:g} s for one pure product are skipped; naive is measured on the members whose weights fit into "
        f"{memory_bound >> 20} MiB and scaled up.",
        series={"cells": cells},
    )
