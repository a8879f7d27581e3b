"""Both engines at once: MLX's device and the CPU's cores share the members of a call out, with the bits of one engine.

Each engine gets consecutive members, in proportion to its measured speed, so that both end together. MLX evaluates an
array on the thread that made it only, so MLX has the calling thread, and a second thread is inside native code alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import Nudged
from nanoegg_mlx.core.params import Params
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.engines.cpu import CPUEngine, instruction_sets
from nanoegg_mlx.engines.machine import mlx_on_cpu
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.engines.speeds import recall, shape_of
from nanoegg_mlx.engines.work import NudgeWork, ScoreWork, Work

R = TypeVar("R")

_SHARES = 64
"""Shares are multiples of 1/64, since MLX compiles its step again for each number of members."""
_PROBE_COST = 0.02
"""Share of the time that may be spent on looking whether an engine without members is still slow."""

_BALANCES: dict[tuple[str, str], Balance] = {}


class BothEngine:
    """`engines.Engine` on MLX's device and on `config.threads` threads together."""

    name = "both"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._mlx, self._cpu = MLXEngine(config), CPUEngine(config)
        # One core builds MLX's graphs and feeds its device.
        beside = config.threads or max(instruction_sets()["threads"] - (not mlx_on_cpu()), 1)
        self._cpu_beside_mlx = CPUEngine(config.replace(threads=beside))
        self._share: float | None = None

    def score(
        self,
        params: Params,
        members: range,
        epoch: int | None,
        inputs: np.ndarray,
        targets: np.ndarray,
        states: np.ndarray,
        exact: bool = False,
    ) -> Scored:
        return self._run(ScoreWork(params, members, epoch, inputs, targets, states, exact))

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._cpu.logits(params, inputs, states)

    def encode(self, params: Params, lanes: Sequence[bytes]) -> list[bytes]:
        return self._cpu.encode(params, lanes)

    def decode(self, params: Params, streams: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        return self._cpu.decode(params, streams, sizes)

    def nudge(
        self, params: Params, members: range, epoch: int, inputs: np.ndarray, targets: np.ndarray, states: np.ndarray
    ) -> Nudged:
        return self._run(NudgeWork(params, members, epoch, inputs, targets, states))

    def update(self, params: Params, fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None) -> Params:
        return self._faster().update(params, fitness, epoch, reads)

    def votes(
        self, params: Params, fitness: np.ndarray, pairs: range, epoch: int, reads: np.ndarray | None = None
    ) -> dict[str, mx.array]:
        return self._faster().votes(params, fitness, pairs, epoch, reads)

    def figures(self) -> dict[str, Any]:
        return {} if self._share is None else {"mlx_share": self._share}

    def _faster(self) -> MLXEngine | CPUEngine:
        balance = balance_of("score", self.config)
        return self._mlx if balance.mlx_speed > balance.cpu_speed else self._cpu

    def _run(self, work: Work[R]) -> R:
        balance = balance_of(work.kind, self.config)
        count = balance.mlx_members(work.members, work.tokens, work.grain)
        started = time.perf_counter()
        if count == 0:
            result, cpu_seconds = _timed(lambda: work.on(self._cpu))
            mlx_seconds = 0.0
        elif count == work.members:
            result, mlx_seconds = _timed(lambda: work.on(self._mlx))
            cpu_seconds = 0.0
        else:
            result, mlx_seconds, cpu_seconds = self._together(work, count)
        balance.record(count, work.members, work.tokens, mlx_seconds, cpu_seconds, time.perf_counter() - started)
        if work.kind != "validation":
            self._share = count / work.members
        return result

    def _together(self, work: Work[R], count: int) -> tuple[R, float, float]:
        """MLX does the first `count` members and the CPU engine the others; each one's seconds."""
        mine, others = work.part(0, count), work.part(count, work.members)
        stop = threading.Event()

        def check() -> None:
            if stop.is_set():
                raise InterruptedError

        call = others.prepared(self._cpu_beside_mlx, check)
        with ThreadPoolExecutor(1) as pool:  # its end waits for the thread
            try:
                pending = pool.submit(_timed, call)
                result, mlx_seconds = _timed(lambda: mine.on(self._mlx))
                other, cpu_seconds = pending.result()
            except BaseException:
                stop.set()  # after Ctrl-C or an error, the other engine's work is of no use
                raise
        return work.joined([result, other]), mlx_seconds, cpu_seconds


class Balance:
    """How many of a call's members MLX gets, from the speeds of the calls before.

    An engine's speed is that of its latest calls, so what does not grow with its members (MLX's launches) counts too.
    An engine gets no members if the other one does all of them in the time that it needs for the least part. It is
    then tried again now and then.
    """

    def __init__(self, mlx_speed: float = 0.0, cpu_speed: float = 0.0, start: float = 0.5) -> None:
        """Args: the speeds in tokens a second, 0 if unknown; start, MLX's share until both are known."""
        self.mlx_speed, self.cpu_speed = mlx_speed, cpu_speed
        self._start = start
        self._last = (0, 0)
        """Members of the last call, and MLX's."""
        self._compiled: set[int] = set()
        self._idle_seconds = 0.0

    def mlx_members(self, members: int, tokens: int, grain: int = 2) -> int:
        """MLX's part of a call of `members` members, each of which reads `tokens` tokens: all, or a multiple of
        `grain`."""
        least = max(members // (grain * _SHARES) * grain, grain)
        if members < 2 * least:
            return members if self.mlx_speed > self.cpu_speed else 0
        most = (members - least) // grain * grain
        if not (self.mlx_speed and self.cpu_speed):
            return min(max(round(self._start * members / least) * least, least), most)
        wanted = members * self.mlx_speed / (self.mlx_speed + self.cpu_speed)
        if wanted < least:
            count = least if least / self.mlx_speed <= members / self.cpu_speed else 0
        elif members - wanted < least:
            count = most if least / self.cpu_speed <= members / self.mlx_speed else members
        elif self._last[0] == members and abs(wanted - self._last[1]) < least and 0 < self._last[1] < members:
            return self._last[1]
        else:
            count = min(round(wanted / least) * least, most)
        if count in (0, members):
            slow = self.cpu_speed if count else self.mlx_speed
            if _PROBE_COST * self._idle_seconds >= least * tokens / slow:
                return most if count else least
        return count

    def record(
        self, mlx: int, members: int, tokens: int, mlx_seconds: float, cpu_seconds: float, seconds: float
    ) -> None:
        """Records a call: MLX's members of all, each one's seconds, and those of the whole call."""
        self._last = (members, mlx)
        self._idle_seconds = self._idle_seconds + seconds if mlx in (0, members) else 0.0
        if mlx < members:
            self.cpu_speed = _smoothed(self.cpu_speed, (members - mlx) * tokens / max(cpu_seconds, 1e-9))
        if mlx in self._compiled:
            self.mlx_speed = _smoothed(self.mlx_speed, mlx * tokens / max(mlx_seconds, 1e-9))
        elif mlx:
            self._compiled.add(mlx)  # this call has compiled MLX's step, so its time tells nothing


def balance_of(kind: str, config: Config) -> Balance:
    """The balance of one kind of call. It lives as long as the process: every validation makes a new engine."""
    key = kind, shape_of(config)
    if key not in _BALANCES:
        speeds = recall(config)
        start = 0.0 if mlx_on_cpu() else 0.5
        _BALANCES[key] = Balance(speeds.mlx, speeds.cpu) if speeds else Balance(start=start)
    return _BALANCES[key]


def _smoothed(before: float, now: float) -> float:
    return (before + now) / 2 if before else now


def _timed(compute: Callable[[], R]) -> tuple[R, float]:
    started = time.perf_counter()
    return compute(), time.perf_counter() - started
