"""How much of pure inference speed the population keeps, and what naive evolution strategies would cost.

One linear layer of width by width, N members, b rows of input each (tokens that a member reads with the same noise):

    pure         one product of all N b rows with W: no member differs from another, the most that can be reached
    EGGROLL      the library's own product for the population, x W^T + (x B) A^T, its noise drawn within the time
    naive        dense noise drawn, each member's own W + sigma E formed, and its rows multiplied with it

All three are measured in turn, several times, and only ratios are reported: medians of ratios within a turn. On a CPU
they are ratios of processor time, so that what else the machine does counts little.

Two bounds keep this feasible, and the table says where they bite. A cell whose pure product would take more than
`time_bound` seconds by the machine's own measured rate is skipped. Naive weights are formed for as many members as fit
into `memory_bound` bytes (one at least), and the time is scaled up to N: a naive member costs the same as any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast

import mlx.core as mx
import numpy as np

from nanoegg_mlx.eggroll import LowRank, draw, draw_keys, members_of, perturbed_product
from nanoegg_mlx.eggroll.claims.report import Result, Spread


def seconds(work: Callable[[], mx.array]) -> float:
    """Processor time of this process where MLX runs on the CPU, unmoved by other processes; else wall-clock time."""
    clock = time.process_time if mx.default_device().type == mx.cpu else time.perf_counter
    started = clock()
    mx.eval(work())
    return clock() - started


def ratios(
    x: mx.array, W: mx.array, turns: int, together: int, sigma: float
) -> tuple[list[float], list[float], list[float]]:
    """One cell, measured `turns` times.

    Args:
        x: (N, b, width), each member's rows.
        W: (width, width).
        together: naive members formed at once.

    Returns:
        For each turn pure time over EGGROLL's, the same with the noise at hand, and naive time over EGGROLL's.
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
    mx.eval(x, W, ready, pure(), eggroll(ready), naive(0))
    kept, kept_ready, faster = [], [], []
    for turn in range(turns):
        of_pure = seconds(pure)
        whole = seconds(lambda turn=turn: eggroll(noise(turn)))  # type: ignore[misc]
        product = seconds(lambda: eggroll(ready))
        of_naive = seconds(lambda turn=turn: naive(turn)) * population / together  # type: ignore[misc]
        kept.append(of_pure / whole)
        kept_ready.append(of_pure / product)
        faster.append(of_naive / whole)
    return kept, kept_ready, faster


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
        repeats: turns of each cell, or `few` where the pure product takes more than a tenth of the time bound.
        time_bound: seconds of the pure product, beyond which a cell is skipped.
        memory_bound: bytes of naive members' weights formed at once.
    """
    x, W = mx.random.normal((256, 512)), mx.random.normal((512, 512))
    mx.eval(x, W)
    rate = 256 * 512 * 512 / min(seconds(lambda: x @ W.T) for _ in range(5))  # multiply-adds per second

    rows, cells = [], []
    for b, width, population in product(rows_each, widths, populations):
        row: dict[str, Any] = {"width": width, "population": population, "rows a member": b}
        expected = population * b * width * width / rate
        if expected > time_bound:
            rows.append(
                {
                    **row,
                    "kept of pure": f"skipped: {expected:.1f} s for one pure product",
                    "with the noise at hand": "-",
                    "faster than naive": "-",
                    "naive measured on": "-",
                    "turns": 0,
                }
            )
            continue
        together = min(population, max(1, memory_bound // (4 * width * width)))
        turns = repeats if expected < time_bound / 10 else few
        kept, kept_ready, faster = ratios(
            mx.random.normal((population, b, width)), mx.random.normal((width, width)), turns, together, sigma
        )
        cells.append((b, width, population, float(np.median(kept)), float(np.median(faster))))
        rows.append(
            {
                **row,
                "kept of pure": Spread.of(kept),
                "with the noise at hand": Spread.of(kept_ready),
                "faster than naive": Spread.of(faster),
                "naive measured on": f"{together} members",
                "turns": turns,
            }
        )
    kept_all = np.array([cell[3] for cell in cells])
    faster_all = np.array([cell[4] for cell in cells])
    halves = False, False
    measured = "nothing, since each cell would take longer than the bound"
    if cells:
        best, fastest = cells[int(kept_all.argmax())], cells[int(faster_all.argmax())]
        reach = int((kept_all >= 0.91).sum())
        halves = bool(reach >= len(cells) / 2), bool(faster_all.max() >= 100)
        measured = (
            f"by medians EGGROLL keeps {kept_all.min():.0%} to {kept_all.max():.0%} (most at width {best[1]}, "
            f"population {best[2]}, rows a member {best[0]}; 91 % or more in {reach} of {len(cells)} cells) and is "
            f"{faster_all.min():.1f} to {faster_all.max():.0f} times as fast as naive (most at width {fastest[1]}, "
            f"population {fastest[2]}, rows a member {fastest[0]}), so the first half "
            f"{'holds' if halves[0] else 'does not hold'}, the second {'holds' if halves[1] else 'does not'}; as a "
            "whole"
        )
    return Result(
        title="Throughput of a population's forward pass",
        rows=rows,
        claim="The paper claims 91 % of the throughput of pure batch inference, and 100 times that of naive "
        "evolution strategies",
        measured=measured,
        holds=all(halves),
        notes="One linear layer on this machine's default device, float32, rank 1, antithetic pairs, by processor "
        "time if the device is the CPU; kept is the pure product's time over EGGROLL's with its noise drawn, in the "
        "same turn. The first half of the claim is taken to hold if half of the cells reach 91 %, the second if one "
        "cell reaches 100 times. Naive pays for drawing, forming and reading a whole matrix for each member; the "
        f"cheaper these are beside a product of one row, the less there is to gain. Cells beyond {time_bound:g} s for "
        f"one pure product are skipped; naive is measured on the members whose weights fit into {memory_bound >> 20} "
        "MiB and scaled up.",
        series={"cells": cells},
    )
