"""The MLX engine: the definition itself, on whatever device MLX has (Metal, CUDA, CPU).

Members are scored in chunks, so memory is bounded by a chunk's noise and activations and not by the population.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.activations import Moments, Nudged, Token, add_moments, cohort_step, moments
from nanoegg_mlx.core.coins import coin_key
from nanoegg_mlx.core.noise import Noise, leaf_bases, member_noise, noise_pair, pair_noise
from nanoegg_mlx.core.params import Params, leaves, matrix_entries
from nanoegg_mlx.core.range_coder import Decoder, Encoder, cumulative
from nanoegg_mlx.core.score import Scored, code_lengths, resident_weights, score_tokens
from nanoegg_mlx.core.update import add_votes, step, vote_dtype
from nanoegg_mlx.engines.machine import mlx_on_cpu

_CPU_CHUNK_BYTES = 96 << 20
"""Budget of a chunk's noise and activations; the peak is a few times this while noise is generated."""
_GPU_CHUNK_BYTES = 4 << 30
"""The most on a GPU."""
_MOST_MEMBERS = 16384
"""More gain nothing on any device: a token's kernels are then far longer than their launch."""
_WINDOW = 128
"""Most tokens in one evaluated graph; bounds the size of the graph."""
_CPU_PRODUCTS = 2 << 30
"""Multiply-adds in one evaluated graph on a CPU, about a second: Ctrl-C takes effect between two evaluations."""


class MLXEngine:
    """`engines.Engine` in MLX."""

    name = "mlx"

    def __init__(self, config: Config) -> None:
        self.config = config
        budget = chunk_bytes({} if mlx_on_cpu() else mx.device_info(mx.default_device()))
        self.chunk = config.chunk + config.chunk % 2 or members_per_chunk(config, budget)
        self.cohorts = max(config.chunk // config.cohort, 1) if config.chunk else cohorts_per_chunk(config, budget)
        self._pair_noise = mx.compile(mx.vmap(partial(pair_noise, config), in_axes=(None, 0)))

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
        weights = resident_weights(params)
        scores = np.zeros(len(members), np.int64)
        new_states = np.empty_like(states)
        lengths = np.empty(inputs.shape) if exact else None
        bases = None if epoch is None else leaf_bases(self.config, epoch)
        for part in spans(len(members), self.chunk):
            noise: Noise = {}
            if bases is not None:
                first = (members.start + part.start) // 2
                pairs = range(first, first + (part.stop - part.start) // 2)
                noise = member_noise(self._noise(bases, pairs))
            state = mx.array(states[part])
            for window in spans(inputs.shape[1], self._window(len(state))):
                score, state, logits = score_tokens(
                    weights,
                    noise,
                    self.config.shift,
                    state,
                    mx.array(inputs[part, window]),
                    mx.array(targets[part, window]),
                )
                mx.eval(score, state, logits if exact else [])
                scores[part] += np.array(score)
                if lengths is not None:
                    for t, column in enumerate(logits, window.start):
                        lengths[part, t] = code_lengths(np.array(column), targets[part, t])
            new_states[part] = np.array(state)
        return Scored(scores, new_states, lengths)

    def logits(self, params: Params, inputs: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = resident_weights(params)
        N, T = inputs.shape
        logits = np.empty((N, T, self.config.vocab_size), np.int8)
        new_states = np.empty_like(states)
        for part in spans(N, self.chunk):
            state = mx.array(states[part])
            for window in spans(T, self._window(len(state))):
                read = mx.array(inputs[part, window])
                # The targets are arbitrary: only scores depend on them.
                _, state, columns = score_tokens(weights, {}, self.config.shift, state, read, read)
                mx.eval(state, columns)
                for t, column in enumerate(columns, window.start):
                    logits[part, t] = np.array(column)
            new_states[part] = np.array(state)
        return logits, new_states

    def encode(self, params: Params, lanes: Sequence[bytes]) -> list[bytes]:
        encoders = [Encoder() for _ in lanes]

        def put(lane: int, t: int, sums: list[int]) -> int:
            encoders[lane].put(lanes[lane][t], sums)
            return lanes[lane][t]

        self._code(params, [len(lane) for lane in lanes], put)
        return [encoder.finish() for encoder in encoders]

    def decode(self, params: Params, streams: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
        decoders = [Decoder(stream) for stream in streams]
        lanes = [bytearray() for _ in streams]

        def get(lane: int, t: int, sums: list[int]) -> int:
            lanes[lane].append(decoders[lane].get(sums))
            return lanes[lane][t]

        self._code(params, sizes, get)
        return [bytes(lane) for lane in lanes]

    def _code(self, params: Params, sizes: Sequence[int], code: Callable[[int, int, list[int]], int]) -> None:
        """Calls code(lane, t, cumulative frequencies) for byte t of every lane, in order; it returns the byte."""
        weights = resident_weights(params)
        for part in spans(len(sizes), self.chunk):
            lanes = range(len(sizes))[part]
            read = np.zeros((len(lanes), 1), np.uint8)
            states = mx.zeros((len(lanes), self.config.n_layer, self.config.n_embd), mx.int8)
            for t in range(max(sizes[part])):
                inputs = mx.array(read)
                # The targets are arbitrary, as in `logits`.
                _, states, (logits,) = score_tokens(weights, {}, self.config.shift, states, inputs, inputs)
                mx.eval(states, logits)
                for row, sums in enumerate(cumulative(np.array(logits)).tolist()):
                    if t < sizes[lanes[row]]:
                        read[row] = code(lanes[row], t, sums)

    def nudge(
        self, params: Params, members: range, epoch: int, inputs: np.ndarray, targets: np.ndarray, states: np.ndarray
    ) -> Nudged:
        weights = resident_weights(params)
        T = inputs.shape[1]
        scores = np.zeros(len(members), np.int64)
        new_states = np.empty_like(states)
        epoch_key, step, size = coin_key(self.config, epoch), cohort_step(self.config), self.config.cohort
        sums: Moments | None = None
        for part in spans(len(members) // size, self.cohorts):
            first = members.start // size
            cohorts = mx.arange(first + part.start, first + part.stop, dtype=mx.uint64)
            own = slice(size * part.start, size * part.stop)
            state = mx.array(states[own]).reshape(-1, size, *states.shape[1:])
            read, follow = mx.array(inputs[part]), mx.array(targets[part])
            tokens: list[Token] = []
            for t in range(T):
                now = mx.array(t, dtype=mx.uint64)
                token, state = step(weights, epoch_key, cohorts, now, state, read[:, t], follow[:, t])
                tokens.append(token)
                if (t + 1) % self._window(size * len(cohorts)) == 0:
                    mx.eval(token, state)
            some = moments(tokens, read, self.config)
            sums = some if sums is None else add_moments(sums, some)
            total = sum((token.scores for token in tokens), mx.zeros((len(cohorts), size), dtype=mx.int32))
            mx.eval(sums, state, total)
            scores[own], new_states[own] = np.array(total).reshape(-1), np.array(state).reshape(-1, *states.shape[1:])
        assert sums is not None
        return Nudged(scores, new_states, sums)

    def update(self, params: Params, fitness: np.ndarray, epoch: int, reads: np.ndarray | None = None) -> Params:
        Z = self.votes(params, fitness, range(self.config.pairs), epoch, reads)
        return step(params, Z, self.config, epoch, reads)

    def votes(
        self, params: Params, fitness: np.ndarray, pairs: range, epoch: int, reads: np.ndarray | None = None
    ) -> dict[str, mx.array]:
        bases = leaf_bases(self.config, epoch)
        Z: dict[str, mx.array] = {}
        for part in spans(len(pairs), max(self.chunk // 2, 1)):
            some = pairs[part]
            noise = self._noise(bases, some)
            own = None if reads is None else mx.array(reads[2 * np.arange(some.start, some.stop) // self.config.group])
            Z = add_votes(Z, noise, mx.array(fitness[some.start : some.stop]), self.config, own)
            mx.eval(Z)
        return Z or {name: mx.zeros(value.shape, vote_dtype(self.config)) for name, value in params.items()}

    def figures(self) -> dict[str, Any]:
        return {}

    def _window(self, members: int) -> int:
        if not mlx_on_cpu():
            return _WINDOW
        return max(1, min(_WINDOW, _CPU_PRODUCTS // (members * matrix_entries(self.config))))

    def _noise(self, bases: dict[str, mx.array], pairs: range) -> Noise:
        numbers = mx.arange(pairs.start, pairs.stop, dtype=mx.uint32)
        return self._pair_noise(bases, noise_pair(self.config, numbers))


def spans(size: int, width: int) -> Iterator[slice]:
    """Consecutive slices of at most `width` that cover range(size)."""
    for start in range(0, size, width):
        yield slice(start, min(start + width, size))


def chunk_bytes(device: Mapping[str, str | int]) -> int:
    """The budget of a chunk on a device.

    Each token launches the same kernels for any number of members, so a GPU gets chunks as large as its memory allows:
    a sixteenth of what a program may use, since the peak is a few times a chunk; of the memory that is free, a quarter.

    Args:
        device: `mx.device_info` of a GPU. Metal reports `max_recommended_working_set_size` and `memory_size`, CUDA
            `total_memory` and `free_memory`. Empty for a CPU.
    """
    names = "max_recommended_working_set_size", "total_memory", "memory_size"
    sizes = [int(device[name]) // 16 for name in names if name in device]
    if not sizes:
        return _CPU_CHUNK_BYTES
    free = int(device["free_memory"]) // 4 if "free_memory" in device else sizes[0]
    return max(min(sizes[0], free, _GPU_CHUNK_BYTES), _CPU_CHUNK_BYTES)


def cohorts_per_chunk(config: Config, budget: int = _CPU_CHUNK_BYTES) -> int:
    """A number of cohorts (pairs, or lanes with a baseline) whose coins and inputs fit in `budget` bytes, as int32 for
    all tokens."""
    coins = 7 * config.n_layer * config.n_embd + config.n_embd + config.vocab_size
    inputs = 8 * config.n_layer * config.n_embd + config.n_embd + config.vocab_size
    per_token = 4 * (config.samples * coins + inputs)
    return max(1, budget // (3 * per_token * config.tokens_per_update))


def members_per_chunk(config: Config, budget: int = _CPU_CHUNK_BYTES) -> int:
    """An even number of members whose noise and activations fit in `budget` bytes."""
    matrix = sum(
        sum(leaf.shape) * config.rank * max(leaf.layers, 1) for leaf in leaves(config) if leaf.kind == "matrix"
    )
    vector = sum(4 * leaf.shape[0] * max(leaf.layers, 1) for leaf in leaves(config) if leaf.kind == "vector")
    activations = 4 * 4 * (4 * config.n_embd + 2 * config.vocab_size)
    per_member = matrix + vector + activations
    return max(2, min(budget // per_member, _MOST_MEMBERS) // 2 * 2)
