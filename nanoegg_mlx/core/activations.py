"""Learning from nudged activations: scores of tokens -> credit -> votes Z and their variances S -> step.

docs/activations.md is the exact contract. Each token's score difference between the two members of a pair is credited
to the coins that nudged the pair at that token. A vote is the sum, over pairs and tokens, of credit times coin times
the input of the weight. Since the coins are fair, S is the variance of Z if scores were unrelated to the coins; an
entry moves where the Z-test finds that they are related. All sums are exact integers, and add up over chunks and ranks.

The members whose scores are compared are a cohort: a pair, which is one sample, or with docs/lane-baseline.md a lane,
where every member but the first is a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.coins import Coins, NodeKey, NudgedActivations, coins
from nanoegg_mlx.core.fixed_point import MAX_INT8, POW2, clip, exact_matmul
from nanoegg_mlx.core.model import Tap, forward, view
from nanoegg_mlx.core.params import Leaf, Params, leaves
from nanoegg_mlx.core.score import log2_sum, log_likelihood
from nanoegg_mlx.core.update import threshold_at

MATRICES = (
    ("blocks.att.Wf", "f", "y"),
    ("blocks.att.Uf", "f", "last"),
    ("blocks.att.Wh", "c", "y"),
    ("blocks.att.Uh", "c", "g"),
    ("blocks.mlp.0.weight", "a", "z"),
    ("blocks.mlp.1.weight", "b", "hidden"),
)
"""The layers' matrices: leaf, node of its output, input (by its name in `model.forward`)."""
INPUT_OF = {leaf: name for leaf, _, name in MATRICES} | {"head": "head"}
"""Leaf -> name of its input; the head's is y after the last layer."""
CHUNK = 64
"""Inputs whose products with each other are summed, for decorrelation.py."""
BIASES = (("blocks.att.bf", "f"), ("blocks.att.bh", "c"))
_ERROR_ONE = 8192
"""1.0 in the head's errors."""
_ROWS = 1 << 16
"""Cohorts times tokens summed at a time: their products stay in int32."""


class Moments(NamedTuple):
    """Sums over cohorts and tokens; int64, by leaf. Added over chunks and ranks they are those of the population."""

    Z: dict[str, mx.array]
    """Votes, of the leaf's shape."""
    S: dict[str, mx.array]
    """Variances of Z: (L, n) or (n,) for a matrix, one for each input; (L,) for a bias; (V,) for the embedding, one for
    each row. For the head by error under `head.E` (V,) and `head.Y` (D,)."""
    C: dict[str, mx.array]
    """With config.decorrelate, by name of the input: sums of X[i] X[j] for each input i and the inputs j of its chunk,
    (L, n, CHUNK), of the head (D, CHUNK). Else empty."""


class Nudged(NamedTuple):
    """Results of members that read their tokens under nudged activations."""

    scores: np.ndarray
    """(N,) int64, sums of log-likelihoods in sixteenths of a bit."""
    states: np.ndarray
    """(N, L, D) int8, after the last token."""
    sums: Moments
    """Of these members."""


class Token(NamedTuple):
    """Results of one cohort at one token; a leading axis P for many."""

    differences: mx.array
    """d: (samples,) int32."""
    scores: mx.array
    """(cohort,) int32, of the members."""
    xi: Coins
    """(samples, size) by node."""
    inputs: dict[NodeKey, mx.array]
    """X: mean of the pair's activations, or those of the lane's baseline, by name and layer; int32."""
    error: mx.array
    """(V,) int32, mean of the pair's head errors, or the baseline's."""


def head_error(logits: mx.array, target: mx.array) -> mx.array:
    """8192 [o = target] - POW2[min(max(-q[o], 0), 255)], q[o] the score that byte o would have had.

    Args:
        logits: (V,) int32 in [-127, 127].
        target: integer scalar in [0, V).

    Returns:
        (V,) int32.
    """
    l = logits + 128
    likelihood = mx.take(mx.array(POW2, dtype=mx.int32), mx.clip(log2_sum(l) - l, 0, 255))
    return _ERROR_ONE * (mx.arange(l.shape[0]) == target).astype(mx.int32) - likelihood


@cache
def cohort_step(config: Config) -> Callable[..., tuple[Token, mx.array]]:
    """The compiled step of many cohorts.

    (params, epoch_key (2,), numbers of the cohorts (P,) uint64, t uint64, states (P, cohort, L, D), tokens (P,),
    targets (P,)) -> (Token with a leading axis P, states).
    """
    compare = _compare_pair if config.antithetic else _compare_lane

    def one_cohort(
        params: Params, epoch_key: mx.array, number: mx.array, t: mx.array, states: mx.array, token: mx.array,
        target: mx.array,
    ) -> tuple[Token, mx.array]:  # fmt: skip
        def one_member(sign: mx.array, xi: Coins, state: mx.array) -> _Read:
            inputs: dict[NodeKey, mx.array] = {}
            logits, new_state = forward(params, NudgedActivations(xi, sign, config), state, token, _keep(inputs))
            return log_likelihood(logits, target), inputs, head_error(logits, target), new_state

        def drawn(number: mx.array) -> Coins:
            return coins(config, epoch_key, number, t)

        return compare(one_member, drawn, number, states)

    return mx.compile(mx.vmap(one_cohort, in_axes=(None, None, 0, None, 0, 0, 0)))


_Read = tuple[mx.array, dict[NodeKey, mx.array], mx.array, mx.array]
"""A member's score, inputs, head errors and new state."""


def _compare_pair(
    one_member: Callable[..., _Read], drawn: Callable[[mx.array], Coins], number: mx.array, states: mx.array
) -> tuple[Token, mx.array]:
    """Both members of a pair, nudged by its coins in opposite directions."""
    xi = drawn(number)
    scores, inputs, errors, new_states = mx.vmap(one_member, in_axes=(0, None, 0))(mx.array([1, -1]), xi, states)
    means = {name: _mean(x) for name, x in inputs.items()}
    one_sample = {node: x[None] for node, x in xi.items()}
    return Token(scores[:1] - scores[1:], scores, one_sample, means, _mean(errors)), new_states


def _compare_lane(
    one_member: Callable[..., _Read], drawn: Callable[[mx.array], Coins], number: mx.array, states: mx.array
) -> tuple[Token, mx.array]:
    """The members of a lane, each nudged by its own coins, and the first not at all (docs/lane-baseline.md)."""
    size = states.shape[0]
    xi = mx.vmap(drawn)(number * mx.array(size, dtype=mx.uint64) + mx.arange(size, dtype=mx.uint64))
    signs = (mx.arange(size) > 0).astype(mx.int32)
    scores, inputs, errors, new_states = mx.vmap(one_member)(signs, xi, states)
    first = {name: view(x, 0) for name, x in inputs.items()}
    of_samples = {node: x[1:] for node, x in xi.items()}
    return Token(scores[1:] - scores[:1], scores, of_samples, first, view(errors, 0)), new_states


def _mean(both: mx.array) -> mx.array:
    """The mean of a pair's values, (2, ...) int32, rounded down."""
    return (view(both, 0) + view(both, 1)) >> 1


_INPUTS = {name for _, _, name in MATRICES}


def _keep(inputs: dict[NodeKey, mx.array]) -> Tap:
    """A tap that keeps the inputs of matrices."""

    def tap(layer: int, /, **activations: mx.array) -> None:
        inputs.update({(name, layer): x for name, x in activations.items() if name in _INPUTS})

    return tap


def credit(d: mx.array, decay: int) -> mx.array:
    """R[t] = d[t] + ((decay R[t+1]) >> 4), R[T] = 0: the score differences from each token on, discounted.

    Args:
        d: (P, T, ...) int32, score differences.
        decay: `credit_decay`, in sixteenths.

    Returns:
        The same shape, int32.
    """
    R: list[mx.array] = []
    following = mx.zeros_like(d[:, 0])
    for t in reversed(range(d.shape[1])):
        following = d[:, t] + ((decay * following) >> 4)
        R.append(following)
    return mx.stack(R[::-1], axis=1)


def moments(tokens: list[Token], inputs: mx.array, config: Config) -> Moments:
    """The votes and variances of some cohorts.

    Args:
        tokens: the T tokens' results, each with a leading axis P.
        inputs: (P, T) uint8, the bytes read.
    """

    def rows(values: list[mx.array]) -> mx.array:
        """(P, ...) of each token -> (P T, ...)."""
        return mx.flatten(mx.stack(values, axis=1), 0, 1)

    d = mx.stack([token.differences for token in tokens], axis=1)
    own, later = (mx.flatten(clip(w), 0, 1) for w in (d, credit(d, config.credit_decay)))
    own_squares, later_squares = (mx.sum(mx.square(w.astype(mx.int64)), axis=1) for w in (own, later))
    X = {name: rows([token.inputs[name] for token in tokens]) for name in tokens[0].inputs}

    def credited(node: NodeKey, w: mx.array) -> mx.array:
        """Q: the sum over samples of w xi, (K, size) int32."""
        return mx.sum(w[:, :, None] * rows([token.xi[node] for token in tokens]), axis=1)

    Z: dict[str, list[mx.array]] = {}
    S: dict[str, list[mx.array]] = {}
    for l in range(config.n_layer):
        Q, squares = {}, {}
        for name in ("f", "c", "a", "b"):
            of_own = l == config.n_layer - 1 and name in ("a", "b")
            Q[name] = credited((name, l), own if of_own else later)
            squares[name] = own_squares if of_own else later_squares
        for leaf, node, name in MATRICES:
            Z.setdefault(leaf, []).append(_vote_products(Q[node], X[name, l], config))
            S.setdefault(leaf, []).append(_squares(X[name, l], squares[node]))
        for leaf, node in BIASES:
            Z.setdefault(leaf, []).append(mx.sum(Q[node].astype(mx.int64), axis=0))
            S.setdefault(leaf, []).append(mx.sum(squares[node]))
    result = Moments({leaf: mx.stack(z) for leaf, z in Z.items()}, {leaf: mx.stack(s) for leaf, s in S.items()}, {})
    byte = inputs.reshape(-1).astype(mx.int32)
    result.Z["emb"] = _by_byte(credited(("emb", None), later), byte, config.vocab_size)
    result.S["emb"] = _by_byte(later_squares[:, None], byte, config.vocab_size)[:, 0]
    y = X["y", config.n_layer]
    if config.head_rule == "perturb":
        result.Z["head"] = _vote_products(credited(("head", None), own), y, config)
        result.S["head"] = _squares(y, own_squares)
    else:
        error = rows([token.error for token in tokens])
        result.Z["head"] = _digit_products(error, y)
        result.S["head.E"], result.S["head.Y"] = _squares(error), _squares(y)
    if config.decorrelate:
        for name in dict.fromkeys(name for _, _, name in MATRICES):
            result.C[name] = mx.stack([_chunk_products(X[name, l]) for l in range(config.n_layer)])
        result.C["head"] = _chunk_products(y)
    return result


def _vote_products(Q: mx.array, X: mx.array, config: Config) -> mx.array:
    """sum_k Q[k] X[k]^T of credited coins: one sample's fit int8."""
    return _products(Q, X) if config.samples == 1 else _digit_products(Q, X)


def _digit_products(a: mx.array, b: mx.array) -> mx.array:
    """`_products` of a up to 127 * 127, in two base-128 digits: an int8 product each, and exact in float32."""
    high = (a + 64) >> 7
    return _products(a - (high << 7), b) + (_products(high, b) << 7)


def _chunk_products(X: mx.array) -> mx.array:
    """(K, n) inputs -> (n, CHUNK) int64, zeros beyond the end of the last chunk."""
    chunks = []
    for first in range(0, X.shape[1], CHUNK):
        chunk = X[:, first : first + CHUNK]
        chunks.append(mx.pad(_products(chunk, chunk), [(0, 0), (0, CHUNK - chunk.shape[1])]))
    return mx.concatenate(chunks)


def _products(a: mx.array, b: mx.array) -> mx.array:
    """sum_k a[k] b[k]^T: (K, o) and (K, n) integers in [-127, 127] -> (o, n) int64."""
    total = mx.zeros((a.shape[1], b.shape[1]), mx.int64)
    for first in range(0, a.shape[0], _ROWS):
        part = slice(first, first + _ROWS)
        total = total + exact_matmul(a[part].T, b[part], MAX_INT8 * MAX_INT8).astype(mx.int64)
    return total


def _squares(a: mx.array, weights: mx.array | None = None) -> mx.array:
    """sum_k weights[k] a[k]^2: (K, n) int32 and (K,) int64 -> (n,) int64."""
    squares = mx.square(a.astype(mx.int64))
    return mx.sum(squares if weights is None else weights[:, None] * squares, axis=0)


def _by_byte(a: mx.array, byte: mx.array, vocab_size: int) -> mx.array:
    """Sums over the rows of each byte: (K, n) integers and (K,) -> (V, n) int64."""
    return mx.zeros((vocab_size, a.shape[1]), mx.int64).at[byte].add(a.astype(mx.int64))


def add_moments(a: Moments, b: Moments) -> Moments:
    """The moments of both."""
    return Moments(*({name: x[name] + y[name] for name in x} for x, y in zip(a, b, strict=True)))


@dataclass(frozen=True)
class Stepped:
    """The parameters after an epoch, and the strength of its votes."""

    params: Params
    """Leaf name -> int8, clipped to [-127, 127], evaluated."""
    signal: dict[str, float]
    """Leaf name -> mean of Z^2 / S over its entries: 1 where the votes are pure noise, above 1 where they have a
    signal."""


def step(params: Params, sums: Moments, config: Config, epoch: int) -> Stepped:
    """Moves each entry by sign(Z) where 16 |Z| >= threshold isqrt(S) and Z != 0.

    Args:
        params: leaf name -> int8 array; not changed. Norm weights stay at their initial value.
        sums: of the whole population.
    """
    threshold = threshold_at(config, epoch)
    moved, signal = dict(params), {}
    for leaf in leaves(config):
        if leaf.name in sums.Z:
            bound, variance = _bound(sums, leaf, config, threshold)
            moved[leaf.name], signal[leaf.name] = _move(params[leaf.name], sums.Z[leaf.name], bound, variance)
    mx.eval(moved, signal)
    return Stepped(moved, {name: float(np.array(value)) for name, value in signal.items()})


@mx.compile
def _move(parameter: mx.array, Z: mx.array, bound: mx.array, variance: mx.array) -> tuple[mx.array, mx.array]:
    """The moved entries, int8, and the mean of Z^2 / variance over the entries that have a variance."""
    direction = mx.where(mx.abs(Z) < bound, 0, mx.sign(Z)).astype(mx.int32)
    ratio = mx.mean(Z.astype(mx.float32) ** 2 / mx.maximum(variance, 1.0))
    share = mx.maximum(mx.mean((variance > 0).astype(mx.float32)), 1e-9)
    return clip(parameter.astype(mx.int32) + direction).astype(mx.int8), ratio / share


def _bound(sums: Moments, leaf: Leaf, config: Config, threshold: int) -> tuple[mx.array, mx.array]:
    """The least |Z| that moves an entry, int64, and the variance of Z, float32; both broadcast against Z."""
    if leaf.name == "head" and config.head_rule == "error":
        # Python's integers: the products could overflow int64.
        E, Y = _values(sums.S["head.E"]), _values(sums.S["head.Y"])
        count = config.population // config.cohort * config.tokens_per_update
        divisor = 16 * math.isqrt(count)
        roots = [math.isqrt(y) for y in Y]
        bound = mx.array([[-(-threshold * math.isqrt(e) * y // divisor) for y in roots] for e in E], dtype=mx.int64)
        variance = mx.array(E, dtype=mx.float32)[:, None] * mx.array(Y, dtype=mx.float32) / count
    else:
        S = sums.S[leaf.name]
        roots = [math.isqrt(value) for value in _values(S)]
        bound = mx.array([-(-threshold * root // 16) for root in roots], dtype=mx.int64).reshape(S.shape)
        # S has an entry for each input of a matrix, but for each row of the embedding and each layer of a bias.
        axis = -2 if leaf.kind == "matrix" and leaf.name != "emb" else -1
        bound, variance = mx.expand_dims(bound, axis), mx.expand_dims(S.astype(mx.float32), axis)
    return bound, variance


def _values(sums: mx.array) -> list[int]:
    return [int(value) for value in np.array(sums).reshape(-1)]


def credit_rms(sums: Moments, config: Config) -> float:
    """The root mean square of the discounted credit R, clipped, in sixteenths of a bit."""
    samples = config.population // config.cohort * config.samples * config.tokens_per_update
    return math.sqrt(_values(sums.S["blocks.att.bf"])[0] / samples)


def flatten(sums: Moments) -> mx.array:
    """All sums in one (entries,) int64 array, for adding them over ranks."""
    return mx.concatenate([value.reshape(-1) for part in sums for value in part.values()])


def unflatten(flat: mx.array, like: Moments) -> Moments:
    """The inverse of `flatten`, with the names and shapes of `like`."""
    parts, first = [], 0
    for part in like:
        named = {}
        for name, value in part.items():
            named[name] = flat[first : first + value.size].reshape(value.shape)
            first += value.size
        parts.append(named)
    return Moments(*parts)
