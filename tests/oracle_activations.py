"""The naive twin of training by nudged activations: docs/activations.md, with its options docs/decorrelation.md and
docs/lane-baseline.md, in plain Python and NumPy integers.

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


def coins(c: Any, number: int, t: int, epoch: int) -> dict[Node, np.ndarray]:
    """xi of each node, +1 or -1, of a pair, or of a member compared with its lane's first.

    64 entries a block, the first word's lowest bit first.
    """
    counts = [math.ceil(d / 64) for _, d in nodes(c)]
    first = (number * c.tokens_per_update + t) * sum(counts)
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
    """One token of the member with this sign, 0 without nudges: logits (V,), new state (L, D), inputs of matrices."""

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
    """R of each token, from two members' differences of score."""
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

    def add_sample(self, token: int, xi: dict[Node, np.ndarray], X: dict[Node, np.ndarray], d: int, R: int) -> None:
        """A difference of scores at a token: the coins that it is credited to, the inputs and the credits."""
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
        w = weight(c, ("emb", 0), d, R)
        self.Z["emb"][token] += w * xi["emb", 0]
        self.S["emb"][token] += w**2
        if c.head_rule == "perturb":
            add("head", ..., ("head", 0), X["head", 0])

    def add_inputs(self, X: dict[Node, np.ndarray], err: np.ndarray) -> None:
        """A pair's or a lane's inputs at a token, and its error of the head."""
        for node, x in X.items():
            self.C[node] = self.C.get(node, 0) + np.outer(x, x)
        if self.config.head_rule == "error":
            y = X["head", 0]
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
            samples = (c.population // 2 if c.antithetic else c.population // c.group) * c.tokens_per_update
            bound = threshold(c, epoch) * roots(votes.E)[:, None] * roots(votes.Y)
            moved[name] = move(parameter, votes.Z[name], math.isqrt(samples), bound)
        else:
            moved[name] = move(parameter, votes.Z[name], 1, threshold(c, epoch) * roots(votes.S[name]))
    return moved


Read = tuple[list[int], np.ndarray, list[dict[Node, np.ndarray]], list[np.ndarray]]
"""Of each token of a member: its score, its inputs and errors; beside them the new state."""


def read_member(
    c: Any, params: Params, xi: list[dict[Node, np.ndarray]], sign: int, text: list[int], state: np.ndarray
) -> Read:
    """A member through T + 1 bytes from its state (L, D): scores, new state, inputs and errors of the head."""
    state, scores, inputs, errors = state.astype(np.int64), [], [], []
    for t in range(c.tokens_per_update):
        logits, state, X = forward(c, params, xi[t], sign, state, text[t])
        scores.append(log_likelihood(logits, text[t + 1]))
        inputs.append(X)
        errors.append(head_error(logits, text[t + 1]))
    return scores, state.astype(np.int8), inputs, errors


def differences(scores: list[int], others: list[int]) -> list[int]:
    return [score - other for score, other in zip(scores, others, strict=True)]


def read_pair(
    c: Any, params: Params, pair: int, epoch: int, text: list[int], states: np.ndarray, votes: Votes
) -> tuple[list[list[int]], np.ndarray]:
    """Both members of a pair, from states (2, L, D), on T + 1 bytes: scores of their tokens and their new states.

    The pair's votes are added to `votes`.
    """
    T = c.tokens_per_update
    xi = [coins(c, pair, t, epoch) for t in range(T)]
    even, odd = (read_member(c, params, xi, sign, text, state) for sign, state in zip((1, -1), states, strict=True))
    d = differences(even[0], odd[0])
    R = credit(c, d)
    for t in range(T):
        X = {name: (even[2][t][name] + odd[2][t][name]) >> 1 for name in even[2][t]}
        votes.add_sample(text[t], xi[t], X, d[t], R[t])
        votes.add_inputs(X, (even[3][t] + odd[3][t]) >> 1)
    return [even[0], odd[0]], np.stack([even[1], odd[1]])


def read_lane(
    c: Any, params: Params, lane: int, epoch: int, text: list[int], states: np.ndarray, votes: Votes
) -> tuple[list[list[int]], np.ndarray]:
    """All members of a lane compared with its first (docs/lane-baseline.md), from states (G, L, D); as `read_pair`."""
    T = c.tokens_per_update
    scores: list[list[int]] = []
    new_states = np.empty_like(states)
    baseline_inputs: list[dict[Node, np.ndarray]] = []
    for k in range(c.group):
        xi = [coins(c, lane * c.group + k, t, epoch) for t in range(T)]
        some, new_states[k], inputs, errors = read_member(c, params, xi, int(k > 0), text, states[k])
        scores.append(some)
        if k == 0:
            baseline_inputs = inputs
            for t in range(T):
                votes.add_inputs(inputs[t], errors[t])
            continue
        d = differences(some, scores[0])
        R = credit(c, d)
        for t in range(T):
            votes.add_sample(text[t], xi[t], baseline_inputs[t], d[t], R[t])
    return scores, new_states


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
        read, size = (read_pair, 2) if c.antithetic else (read_lane, c.group)
        for number in range(c.population // size):
            members = slice(size * number, size * number + size)
            text = member_text(c, self.tokens, members.start, self.epoch).tolist()
            some, states[members] = read(c, self.params, number, self.epoch, text, states[members], self.votes)
            scores += [sum(each) for each in some]
        if c.decorrelate:
            decorrelate(c, self.votes)
        self.params = update(c, self.params, self.votes, self.epoch)
        self.states, self.epoch = states, self.epoch + 1
        return np.array(scores)
