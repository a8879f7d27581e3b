"""The naive twin of training by nudged activations: docs/activations.md in plain Python and NumPy integers.

Written from the specification alone, with the functions of tests/oracle.py and no code of the package. One member and
one token at a time. Arrays are int64. Section names are those of the specification.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from tests.oracle import (
    EXP2,
    MASK,
    Key,
    Params,
    clip,
    fold_in,
    init_params,
    log2,
    log_likelihood,
    make_key,
    matmul,
    member_text,
    norm,
    threefry2x32,
    threshold,
)

Node = tuple[str, int]
"""The name of a node vector and its layer; the layer of `emb` and `head` is 0."""

MATRICES = {
    "att.Wf": ("f", "y"),
    "att.Uf": ("f", "h"),
    "att.Wh": ("c", "y"),
    "att.Uh": ("c", "g"),
    "mlp.0.weight": ("a", "q"),
    "mlp.1.weight": ("b", "a"),
}
"""The node that each matrix of a layer leads to, and its input."""


# Nodes and their signs


def nodes(c: Any) -> list[tuple[Node, int]]:
    """The node vectors of a token, in order, with their sizes."""
    D = c.n_embd
    layers = [((name, l), d) for l in range(c.n_layer) for name, d in (("f", D), ("c", D), ("a", 4 * D), ("b", D))]
    return [(("emb", 0), D), *layers, (("head", 0), c.vocab_size)]


def coin_key(seed: int, epoch: int) -> Key:
    return fold_in(fold_in(make_key(seed), 2), epoch)


def coins(c: Any, pair: int, t: int, epoch: int) -> dict[Node, np.ndarray]:
    """xi of each node, +1 or -1: 64 entries a block, the first word's lowest bit first."""
    counts = [math.ceil(d / 64) for _, d in nodes(c)]
    first = (pair * c.tokens_per_update + t) * sum(counts)
    xi = {}
    for (node, d), count in zip(nodes(c), counts, strict=True):
        m = np.arange(first, first + count)
        words = np.stack(threefry2x32(coin_key(c.seed, epoch), m >> 32, m & MASK), axis=1)
        bits = (words[:, :, None] >> np.arange(32)) & 1
        xi[node] = 2 * bits.reshape(-1)[:d] - 1
        first += count
    return xi


# The network


def forward(
    c: Any, params: Params, xi: dict[Node, np.ndarray], sign: int, state: np.ndarray, token: int
) -> tuple[np.ndarray, np.ndarray, dict[Node, np.ndarray]]:
    """One token of the member with this sign: logits (V,), new state (L, D) and the inputs of the matrices."""

    def mat(name: str, x: np.ndarray, l: int) -> np.ndarray:
        return matmul(params[f"blocks.{name}"][l], x, None, 0)

    def vec(name: str, l: int) -> np.ndarray:
        return params[f"blocks.{name}"][l].astype(np.int64)

    def nudge(name: str, l: int) -> np.ndarray:
        return sign * c.nudge * xi[name, l]

    inputs: dict[Node, np.ndarray] = {}
    state = np.zeros_like(state) if token == 0 else state.copy()
    x = clip(params["emb"][token].astype(np.int64) + nudge("emb", 0))
    for l, h in enumerate(state.copy()):
        y = norm(x, vec("ln1.weight", l))
        f = clip(mat("att.Wf", y, l) + mat("att.Uf", h, l) + vec("att.bf", l) + nudge("f", l)) + 127
        g = (f * h) >> 8
        candidate = clip(mat("att.Wh", y, l) + mat("att.Uh", g, l) + vec("att.bh", l) + nudge("c", l))
        state[l] = h + ((f * (candidate - h)) >> 8)
        r = clip(x + state[l])
        q = norm(r, vec("ln2.weight", l))
        a = clip(mat("mlp.0.weight", q, l) + nudge("a", l))
        x = clip(r + mat("mlp.1.weight", a, l) + nudge("b", l))
        inputs.update({("y", l): y, ("h", l): h, ("g", l): g, ("q", l): q, ("a", l): a})
    y = norm(x, params["ln_out.weight"].astype(np.int64))
    inputs["head", 0] = y
    logits = matmul(params["head"], y, None, 0)
    if c.head_rule == "perturb":
        logits = clip(logits + sign * c.head_nudge * xi["head", 0])
    return logits, state, inputs


# Credit


def credit(c: Any, d: list[int]) -> list[int]:
    """R of each token, from the pair's differences of score."""
    R = [0] * (len(d) + 1)
    for t in reversed(range(len(d))):
        R[t] = d[t] + ((c.credit_decay * R[t + 1]) >> 4)
    return R[:-1]


def weight(c: Any, node: Node, d: int, R: int) -> int:
    """w of a node."""
    name, l = node
    own = name == "head" or (name in ("a", "b") and l == c.n_layer - 1)
    return max(-127, min(127, d if own else R))


# Votes


def pow2(k: int) -> int:
    """round(8192 * 2^(-k/16)), exactly; the only half, 0.5 at k = 224, goes to the even 0."""
    if k % 16 == 0:
        return round(Fraction(8192, 2 ** (k // 16)))
    twice = max(int(16384 * 2 ** (-k / 16)) - 1, 0)
    while (twice + 1) ** 16 * 2**k <= 16384**16:
        twice += 1
    return (twice + 1) // 2


POW2 = np.array([pow2(k) for k in range(256)])


def head_error(logits: np.ndarray, target: int) -> np.ndarray:
    l = logits + 128
    q = l - log2(int(EXP2[l].sum()))
    err = -POW2[np.minimum(np.maximum(-q, 0), 255)]
    err[target] += 8192
    return err


class Votes:
    """Z of each parameter and the sums of squares that its bound is made from."""

    def __init__(self, c: Any, params: Params) -> None:
        self.config = c
        shapes = {name: value.shape for name, value in params.items() if "ln" not in name}
        self.Z = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self.S = {name: np.zeros(self._squares(name, shape), np.int64) for name, shape in shapes.items()}
        self.E, self.Y = np.zeros(c.vocab_size, np.int64), np.zeros(c.n_embd, np.int64)
        self.C: dict[Node, np.ndarray] = {}

    @staticmethod
    def _squares(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of S: one for each input of a matrix, for each row of `emb`, for each layer of a bias."""
        if name == "head" or name[7:] in MATRICES:
            return (*shape[:-2], 1, shape[-1])
        return (*shape[:-1], 1)

    def add_token(
        self, token: int, xi: dict[Node, np.ndarray], X: dict[Node, np.ndarray], d: int, R: int, err: np.ndarray
    ) -> None:
        """One pair's token: the coins, the mean inputs, the credits and the mean error of the head."""
        c = self.config

        def add(name: str, at: Any, node: Node, x: np.ndarray) -> None:
            w = weight(c, node, d, R)
            self.Z[name][at] += np.outer(w * xi[node], x)
            self.S[name][at] += (w * x) ** 2

        for l in range(c.n_layer):
            for name, (node, x) in MATRICES.items():
                add(f"blocks.{name}", l, (node, l), X[x, l])
            for name, node in (("blocks.att.bf", ("f", l)), ("blocks.att.bh", ("c", l))):
                w = weight(c, node, d, R)
                self.Z[name][l] += w * xi[node]
                self.S[name][l] += w**2
        for node, x in X.items():
            self.C[node] = self.C.get(node, 0) + np.outer(x, x)
        w = weight(c, ("emb", 0), d, R)
        self.Z["emb"][token] += w * xi["emb", 0]
        self.S["emb"][token] += w**2
        y = X["head", 0]
        if c.head_rule == "perturb":
            add("head", ..., ("head", 0), y)
        else:
            self.Z["head"] += np.outer(err, y)
            self.E += err**2
            self.Y += y**2


# Step


def roots(squares: np.ndarray) -> np.ndarray:
    """isqrt of each entry, as Python integers."""
    return np.array([math.isqrt(int(s)) for s in squares.reshape(-1)], object).reshape(squares.shape)


def move(parameter: np.ndarray, Z: np.ndarray, scale: int, bound: np.ndarray) -> np.ndarray:
    """The parameter after the test `16 |Z| scale >= bound`, in Python integers."""
    large = (16 * np.abs(Z.astype(object)) * scale >= bound).astype(bool)
    return clip(parameter.astype(np.int64) + np.where(large, np.sign(Z), 0)).astype(np.int8)


# docs/decorrelation.md


def inverse_root(C: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """G and V of one block: Python integers, and from A on, whose entries stay below 2^27, int64."""
    n, one = len(C), 1 << 20
    C, I = C.astype(object), np.eye(len(C), dtype=np.int64)
    trace = sum(C[i, i] for i in range(n))
    excess = max(trace.bit_length() - 36, 0) if trace else 0
    A = ((C >> excess) * n * one // max(trace >> excess, 1)).astype(np.int64)
    B = A + one // 8 * I
    Y, Z = B * one // np.abs(B).sum(axis=1).max(), one * I
    for _ in range(14):
        T = (3 * one * I - (Z.dot(Y) >> 20)) >> 1
        Y, Z = Y.dot(T) >> 20, T.dot(Z) >> 20
    G = Z >> 10
    AG = A.dot(G) >> 12
    return G, [sum(int(G[j, i]) * int(AG[j, i]) for j in range(n)) for i in range(n)]


def decorrelate(c: Any, votes: Votes) -> None:
    """Replaces the votes of matrices and their variances."""

    def replace(Z: np.ndarray, S: np.ndarray, C: np.ndarray) -> None:
        for first in range(0, len(C), 64):
            part = slice(first, first + 64)
            G, V = inverse_root(C[part, part])
            low, high = Z[:, part] & (2**26 - 1), Z[:, part] >> 26
            Z[:, part] = (high.dot(G) << 14) + (low.dot(G) >> 12)
            S[part] = [(int(S[part].sum()) * v >> 32) // len(V) for v in V]

    for l in range(c.n_layer):
        for name, (_, x) in MATRICES.items():
            replace(votes.Z[f"blocks.{name}"][l], votes.S[f"blocks.{name}"][l, 0], votes.C[x, l])
    S = votes.Y if c.head_rule == "error" else votes.S["head"][0]
    replace(votes.Z["head"], S, votes.C["head", 0])


def update(c: Any, params: Params, votes: Votes, epoch: int) -> Params:
    moved = {}
    for name, parameter in params.items():
        if name not in votes.Z:
            moved[name] = parameter
        elif name == "head" and c.head_rule == "error":
            samples = c.population // 2 * c.tokens_per_update
            bound = threshold(c, epoch) * roots(votes.E)[:, None] * roots(votes.Y)
            moved[name] = move(parameter, votes.Z[name], math.isqrt(samples), bound)
        else:
            moved[name] = move(parameter, votes.Z[name], 1, threshold(c, epoch) * roots(votes.S[name]))
    return moved


def read_pair(
    c: Any, params: Params, pair: int, epoch: int, text: list[int], states: np.ndarray, votes: Votes
) -> tuple[list[list[int]], np.ndarray]:
    """Both members of a pair, from states (2, L, D), on T + 1 bytes: scores of their tokens and their new states.

    The pair's votes are added to `votes`.
    """
    T = c.tokens_per_update
    xi = [coins(c, pair, t, epoch) for t in range(T)]
    scores: list[list[int]] = [[], []]
    inputs: list[list[dict[Node, np.ndarray]]] = [[], []]
    errors: list[list[np.ndarray]] = [[], []]
    states = states.astype(np.int64)
    for k, sign in enumerate((1, -1)):
        for t in range(T):
            logits, states[k], X = forward(c, params, xi[t], sign, states[k], text[t])
            scores[k].append(log_likelihood(logits, text[t + 1]))
            inputs[k].append(X)
            errors[k].append(head_error(logits, text[t + 1]))
    d = [even - odd for even, odd in zip(*scores, strict=True)]
    R = credit(c, d)
    for t in range(T):
        X = {name: (inputs[0][t][name] + inputs[1][t][name]) >> 1 for name in inputs[0][t]}
        votes.add_token(text[t], xi[t], X, d[t], R[t], (errors[0][t] + errors[1][t]) >> 1)
    return scores, states.astype(np.int8)


class NudgedOracle:
    """A run: `params`, `states` (N, L, D) int8 and `epoch`, moved on by `step`; `votes` are those of the last step."""

    def __init__(self, c: Any, tokens: np.ndarray) -> None:
        self.config, self.tokens, self.epoch = c, tokens, 0
        self.params = init_params(c)
        self.states = np.zeros((c.population, c.n_layer, c.n_embd), np.int8)
        self.votes = Votes(c, self.params)

    def step(self) -> np.ndarray:
        """One epoch: the members' scores (N,)."""
        c, states, scores = self.config, self.states.copy(), []
        self.votes = Votes(c, self.params)
        for pair in range(c.population // 2):
            members = slice(2 * pair, 2 * pair + 2)
            text = member_text(c, self.tokens, 2 * pair, self.epoch).tolist()
            some, states[members] = read_pair(c, self.params, pair, self.epoch, text, states[members], self.votes)
            scores += [sum(some[0]), sum(some[1])]
        if c.decorrelate:
            decorrelate(c, self.votes)
        self.params = update(c, self.params, self.votes, self.epoch)
        self.states, self.epoch = states, self.epoch + 1
        return np.array(scores)
