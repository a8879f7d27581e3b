"""The CPU engine: int8 dot-product kernels in C++, bit-identical to the MLX engine and tens of times faster on a CPU.

The kernels are in native/, built as `_native` when the package is installed; this file converts arrays and calls them.
A block of members runs through all its tokens on one core, and noise is generated inside the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import Moments, Nudged
from nanoegg_mlx.core.coins import coin_key
from nanoegg_mlx.core.noise import leaf_bases
from nanoegg_mlx.core.params import Params, leaves
from nanoegg_mlx.core.rng import key
from nanoegg_mlx.core.score import Scored
from nanoegg_mlx.core.update import embedding_bounds, vote_bound, vote_dtype
from nanoegg_mlx.engines import _native
from nanoegg_mlx.errors import InputError

Sums = dict[str, np.ndarray]
NativeNudged = tuple[np.ndarray, np.ndarray, Sums, Sums, Sums]
"""Scores, states, and the three fields of Moments."""


class CPUEngine:
    """`engines.Engine` in native code on `config.threads` threads."""

    name = "cpu"

    def __init__(self, config: Config) -> None:
        self.config = config
        self._noise: tuple[int, _native.Noise] | None = None

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
        return as_scored(self.score_call(params, members, epoch, inputs, targets, states, exact)())

    def score_call(
        self,
        params: Params,
        members: range,
        epoch: int | None,
        inputs: np.ndarray,
        targets: np.ndarray,
        states: np.ndarray,
        exact: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Callable[[], tuple[np.ndarray, ...]]:
        """The native call of `score`, for `as_scored`. It does nothing in MLX, so it may run on any thread.

        `check` is called every 50 ms; an exception that it raises ends the call.
        """
        return partial(
            _native.score,
            # Packed at every call: this takes a millisecond for the default model, and no change in place is missed.
            _native.Weights(_as_numpy(params)),
            np.ascontiguousarray(inputs),
            np.ascontiguousarray(targets),
            np.ascontiguousarray(states),
            noise=None if epoch is None else self._epoch_noise(epoch),
            first_member=members.start,
            threads=self.config.threads,
            block=self.config.chunk,
            exact=exact,
            check=check,
        )

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _native.logits(
            _native.Weights(_as_numpy(params)),
            np.ascontiguousarray(inputs),
            np.ascontiguousarray(states),
            threads=self.config.threads,
        )

    def encode(self, params: Params, lanes: Sequence[bytes]) -> list[bytes]:
        weights = _native.Weights(_as_numpy(params))
        return _native.encode(weights, list(lanes), threads=self.config.threads, block=self.config.chunk)

    def decode(self, params: Params, streams: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        weights = _native.Weights(_as_numpy(params))
        return _native.decode(weights, list(streams), list(sizes), threads=self.config.threads, block=self.config.chunk)

    def nudge(
        self, params: Params, members: range, epoch: int, inputs: np.ndarray, targets: np.ndarray, states: np.ndarray
    ) -> Nudged:
        return as_nudged(self.nudge_call(params, members, epoch, inputs, targets, states)())

    def nudge_call(
        self,
        params: Params,
        members: range,
        epoch: int,
        inputs: np.ndarray,
        targets: np.ndarray,
        states: np.ndarray,
        check: Callable[[], None] | None = None,
    ) -> Callable[[], NativeNudged]:
        """The native call of `nudge`, for `as_nudged`; otherwise like `score_call`."""
        config = self.config
        return partial(
            _native.nudge,
            _native.Weights(_as_numpy(params)),
            np.ascontiguousarray(inputs),
            np.ascontiguousarray(targets),
            np.ascontiguousarray(states),
            key=tuple(np.array(coin_key(config, epoch)).tolist()),
            first_member=members.start,
            cohort=config.cohort,
            antithetic=config.antithetic,
            nudge=config.nudge,
            head_nudge=config.head_nudge if config.head_rule == "perturb" else 0,
            credit_decay=config.credit_decay,
            input_products=config.decorrelate,
            threads=config.threads,
            block=config.chunk,
            check=check,
        )

    def update(self, params: Params, fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None) -> Params:
        updated = _native.update(
            _as_numpy(params),
            self._epoch_noise(epoch),
            fitness,
            vote_bound(self.config, epoch),
            reads=reads,
            embedding_bounds=None if reads is None else embedding_bounds(self.config, epoch, reads),
            use_clt=self.config.use_clt,
            normalised=not self.config.fast_fitness,
            threads=self.config.threads,
        )
        return {name: mx.array(updated[name]) for name in params}

    def votes(
        self, params: Params, fitness: np.ndarray, pairs: range, epoch: int, reads: np.ndarray | None = None
    ) -> dict[str, mx.array]:
        # Pairs of fitness 0 cost nothing, so setting the others to 0 restricts the sums to `pairs`.
        some = np.zeros_like(fitness)
        some[pairs.start : pairs.stop] = fitness[pairs.start : pairs.stop]
        Z = _native.votes(
            _as_numpy(params),
            self._epoch_noise(epoch),
            some,
            reads=reads,
            use_clt=self.config.use_clt,
            threads=self.config.threads,
        )
        dtype = vote_dtype(self.config)
        return {name: mx.array(Z[name]).astype(dtype) for name in params}

    def figures(self) -> dict[str, Any]:
        return {}

    def _epoch_noise(self, epoch: int) -> _native.Noise:
        if self._noise is None or self._noise[0] != epoch:
            config = self.config
            bases = leaf_bases(config, epoch)
            self._noise = (
                epoch,
                _native.Noise(
                    tuple(np.array(key(config.seed)).tolist()),
                    [np.atleast_1d(np.array(bases[leaf.name])) for leaf in leaves(config)],
                    rank=config.rank,
                    sigma_shift=config.sigma_shift,
                    num_perturbations=config.num_perturbations,
                ),
            )
        return self._noise[1]


def as_scored(returned: tuple[np.ndarray, ...]) -> Scored:
    """The result of `CPUEngine.score_call`."""
    return Scored(returned[0], returned[1], returned[2] if len(returned) == 3 else None)


def as_nudged(returned: NativeNudged) -> Nudged:
    """The result of `CPUEngine.nudge_call`, which is emptied. Nothing is evaluated, so any thread may call it."""
    scores, states, Z, S, C = returned
    return Nudged(scores, states, Moments(_as_mlx(Z), _as_mlx(S), _as_mlx(C)))


def instruction_sets() -> _native.Info:
    """The instruction set in use (`isa`), those `available` on this machine, fastest first, and `threads`.

    Raises:
        InputError: NANOEGG_ISA names none of them.
    """
    try:
        return _native.info()
    except ValueError as error:
        raise InputError(str(error)) from error


def _as_numpy(params: Params) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in params.items()}


def _as_mlx(sums: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """Empties `sums`: each array is freed when it was copied."""
    return {name: mx.array(sums.pop(name)) for name in list(sums)}
