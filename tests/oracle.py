"""The naive twin of every engine: the whole contract in plain Python and NumPy integers, one member at a time.

It follows the specification only and shares no code with the package, so their agreement is evidence for both. It is
slow on purpose. A config is any object with the config's field names. Section numbers are the
specification's; arrays are int64 unless stated otherwise, and keys are pairs of Python integers.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

MASK = 0xFFFFFFFF
THRESHOLDS = json.loads((Path(__file__).parent / "golden" / "normal_thresholds.json").read_text())

Key = tuple[int, int]
Params = dict[str, np.ndarray]


# Section 1: random numbers


def threefry2x32(key: Key, x0: Any, x1: Any) -> tuple[Any, Any]:
    """20 rounds of Threefry-2x32 on counters that are Python integers or int64 arrays."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x0, x1 = (x0 + key[0]) & MASK, (x1 + key[1]) & MASK
    for i in range(20):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x0 = (x0 + x1) & MASK
        x1 = (((x1 << rotation) | (x1 >> (32 - rotation))) & MASK) ^ x0
        if i % 4 == 3:
            s = i // 4 + 1
            x0 = (x0 + schedule[s % 3]) & MASK
            x1 = (x1 + schedule[(s + 1) % 3] + s) & MASK
    return x0, x1


def make_key(seed: int) -> Key:
    return seed >> 32, seed & MASK


def fold_in(key: Key, n: int) -> Key:
    return threefry2x32(key, 0, n)


def split(key: Key, count: int) -> list[Key]:
    return [fold_in(key, i) for i in range(count)]


def normals(key: Key, positions: np.ndarray, kind: str) -> np.ndarray:
    """Integer normals: the last threshold not above the 23-bit draw selects the value."""
    y0, y1 = threefry2x32(key, positions >> 32, positions & MASK)
    steps = THRESHOLDS[kind]
    values = np.array([steps["first"], *steps["value"]])
    return values[np.searchsorted(steps["index"], (y0 ^ y1) >> 9, side="right")]


# Section 2: parameters


def leaves(c: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, kind, shape of one layer's) of the 13 leaves, in their order."""
    V, D = c.vocab_size, c.n_embd
    square, vector = ("matrix", (D, D)), ("vector", (D,))
    return [
        *[(f"blocks.att.{name}", *square) for name in ("Uf", "Uh", "Wf", "Wh")],
        *[(f"blocks.{name}", *vector) for name in ("att.bf", "att.bh", "ln1.weight", "ln2.weight")],
        ("blocks.mlp.0.weight", "matrix", (4 * D, D)),
        ("blocks.mlp.1.weight", "matrix", (D, 4 * D)),
        ("emb", "matrix", (V, D)),
        ("head", "matrix", (V, D)),
        ("ln_out.weight", *vector),
    ]


def init_params(c: Any) -> Params:
    """Initial parameters, int8."""
    k_emb, k_blocks, k_head = split(fold_in(make_key(c.seed), 0), 3)
    keys: dict[str, list[Key]] = {"emb": [k_emb], "head": [k_head]}
    for layer_key in split(k_blocks, c.n_layer):
        att_key, mlp_key = split(layer_key, 2)
        names = ["att.Wf", "att.Uf", "att.Wh", "att.Uh", "mlp.0.weight", "mlp.1.weight"]
        for name, key in zip(names, split(att_key, 4) + split(mlp_key, 2), strict=True):
            keys.setdefault(f"blocks.{name}", []).append(key)
    params = {}
    for name, kind, shape in leaves(c):
        if kind == "matrix":
            value = np.stack([normals(key, np.arange(math.prod(shape)), "round").reshape(shape) for key in keys[name]])
        else:
            layers = c.n_layer if name.startswith("blocks.") else 1
            value = np.full((layers, *shape), 16 if name.endswith("weight") else 0)
        params[name] = (value if name.startswith("blocks.") else value[0]).astype(np.int8)
    if c.zero_head:
        params["head"][:] = 0
    return params


# Section 3: perturbations


def leaf_keys(c: Any) -> dict[str, list[Key]]:
    """The noise keys of each leaf, one for every layer."""
    keys = split(fold_in(make_key(c.seed), 1), 13)
    return {
        name: split(key, c.n_layer) if name.startswith("blocks.") else [key]
        for (name, _, _), key in zip(leaves(c), keys, strict=True)
    }


def stretch(c: Any, leaf_key: Key, pair: int, epoch: int, length: int) -> np.ndarray:
    """The pair's `length` draws of noise for the leaf."""
    true_epoch = 0 if c.noise_reuse == 0 else epoch // c.noise_reuse
    base = fold_in(leaf_key, true_epoch)[0]
    h = ((pair >> 16) ^ pair) * 0x45D9F3B & MASK
    start = min((base ^ h) & (2**30 - 1), 2**30 - length)
    return normals(make_key(c.seed), np.arange(start, start + length), "trunc")


def member_noise(c: Any, member: int, epoch: int) -> dict[str, list[Any]]:
    """For each leaf a list over layers (one entry if it has none): (A, B) of a matrix, E of a vector."""
    sign = 1 if member % 2 == 0 else -1
    pair = (member % c.num_perturbations if c.num_perturbations else member) >> 1
    noise: dict[str, list[Any]] = {}
    for (name, kind, shape), keys in zip(leaves(c), leaf_keys(c).values(), strict=True):
        noise[name] = []
        for key in keys:
            if kind == "matrix":
                o, n = shape
                factors = stretch(c, key, pair, epoch, (o + n) * c.rank).reshape(o + n, c.rank)
                noise[name].append((sign * factors[n:], factors[:n]))
            else:
                factors = stretch(c, key, pair, epoch, 2 * shape[0]).reshape(shape[0], 2)
                noise[name].append(sign * factors[:, 0] * factors[:, 1])
    return noise


def clip(x: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, -127), 127)


def matmul(W: np.ndarray, x: np.ndarray, AB: Any, shift: int) -> np.ndarray:
    y = W.astype(np.int64) @ x
    if AB is not None:
        A, B = AB
        y = y + ((A @ (B.T @ x)) >> shift)
    return clip(y // (16 * math.isqrt(len(x))))


def embedding(emb: np.ndarray, token: int, AB: Any, shift: int) -> np.ndarray:
    row = emb[token].astype(np.int64)
    if AB is None:
        return row
    A, B = AB
    return clip(row + ((B @ A[token]) >> shift))


def vector(v: np.ndarray, E: Any, shift: int) -> np.ndarray:
    v = v.astype(np.int64)
    return v if E is None else clip(v + (E >> shift))


# Section 4: the network


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    d = max(int(np.abs(x).sum()), 1) // len(x)
    xw = x * weight
    return np.where(xw == 0, -1, -2) if d == 0 else clip(xw // d)


def forward(params: Params, noise: Any, shift: int, state: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray]:
    """One token: logits (V,) and the new state (L, D). `noise` is a member's, or None."""

    def E(name: str, layer: int) -> Any:
        return None if noise is None else noise[name][layer]

    def mat(name: str, x: np.ndarray, layer: int) -> np.ndarray:
        return matmul(params[f"blocks.{name}"][layer], x, E(f"blocks.{name}", layer), shift)

    def vec(name: str, layer: int) -> np.ndarray:
        return vector(params[f"blocks.{name}"][layer], E(f"blocks.{name}", layer), shift)

    state = np.zeros_like(state) if token == 0 else state.copy()
    x = embedding(params["emb"], token, E("emb", 0), shift)
    for l, h in enumerate(state):
        y = norm(x, vec("ln1.weight", l))
        f = clip(mat("att.Wf", y, l) + mat("att.Uf", h, l) + vec("att.bf", l)) + 127
        g = (f * h) >> 8
        c = clip(mat("att.Wh", y, l) + mat("att.Uh", g, l) + vec("att.bh", l))
        state[l] = h + ((f * (c - h)) >> 8)
        x = clip(x + state[l])
        hidden = mat("mlp.0.weight", norm(x, vec("ln2.weight", l)), l)
        x = clip(x + mat("mlp.1.weight", hidden, l))
    weight = vector(params["ln_out.weight"], E("ln_out.weight", 0), shift)
    return matmul(params["head"], norm(x, weight), E("head", 0), shift), state


# Section 5: the score


def exp2(i: int) -> int:
    """trunc(16 * 2^(i/16)): the largest integer whose 16th power is at most 2^(64 + i)."""
    root = int(16 * 2 ** (i / 16)) - 1
    while (root + 1) ** 16 <= 2 ** (64 + i):
        root += 1
    return root


def log2(s: int) -> int:
    """trunc(16 * log2(s / 16)): log2(s^16) - 64, rounded towards zero."""
    return (s**16).bit_length() - 1 - 64 if s >= 16 else (s**16 - 1).bit_length() - 64


EXP2 = np.array([exp2(i) for i in range(256)])


def log_likelihood(logits: np.ndarray, target: int) -> int:
    l = logits.astype(np.int64) + 128
    return int(l[target]) - log2(int(EXP2[l].sum()))


def read(params: Params, noise: Any, shift: int, state: np.ndarray, text: np.ndarray) -> tuple[int, np.ndarray]:
    """The summed score of all tokens of `text` but the first, and the state after the last but one."""
    state, score = state.astype(np.int64), 0
    for token, target in zip(text[:-1].tolist(), text[1:].tolist(), strict=True):
        logits, state = forward(params, noise, shift, state, token)
        score += log_likelihood(logits, target)
    return score, state


# Section 6: data order


def lanes(c: Any, size: int) -> tuple[int, int]:
    """Their number and how many segments each has, of a text of `size` tokens."""
    S = c.population // min(c.group_size, c.population)
    return S, (size - S) // (c.tokens_per_update * S)


def member_text(c: Any, tokens: np.ndarray, member: int, epoch: int) -> np.ndarray:
    """The T + 1 tokens that the member reads and predicts in the epoch."""
    T = c.tokens_per_update
    S, segments = lanes(c, len(tokens))
    lane = member // (c.population // S)
    start = lane * (segments * T + 1) + (epoch % segments) * T
    return tokens[start : start + T + 1]


# Section 7: the update


def fitness(scores: np.ndarray, fast: bool) -> np.ndarray:
    difference = scores[0::2].astype(np.int64) - scores[1::2]
    if fast:
        return np.sign(difference)
    rms = max(math.isqrt(int((difference**2).sum()) // len(difference)), 1)
    return clip(16 * difference // rms)


def threshold(c: Any, epoch: int) -> int:
    alpha = 1 / ((2**c.alpha - 1) * (epoch / c.alpha_decay_timestep) + 1) if c.alpha > 1 else c.alpha
    return math.trunc(16 * NormalDist().inv_cdf(1 - alpha / 2))


def vote(c: Any, E: Any) -> np.ndarray:
    """A pair's vote for one layer of one leaf, before its fitness."""
    if not isinstance(E, tuple):
        return E if c.use_clt else np.sign(E)
    A, B = E if c.use_clt else map(np.sign, E)
    return A @ B.T


def votes(c: Any, fit: np.ndarray, epoch: int, texts: list[set[int]] | None = None) -> Params:
    """Z of each leaf, over all pairs. `texts`: the bytes that each pair has read; it votes on their embeddings only."""
    Z: Params = {}
    for pair, f in enumerate(fit):
        for name, layers in member_noise(c, 2 * pair, epoch).items():
            ballot = np.stack([f * vote(c, E) for E in layers])
            if texts is not None and name == "emb":
                ballot[0, [v for v in range(c.vocab_size) if v not in texts[pair]]] = 0
            Z[name] = Z.get(name, 0) + (ballot if name.startswith("blocks.") else ballot[0])
    return {name: z if c.fast_fitness else z >> 4 for name, z in Z.items()}


def move(parameter: np.ndarray, Z: np.ndarray, bound: int) -> np.ndarray:
    step = np.where(16 * np.abs(Z) < bound, 0, np.where(Z > 0, 1, -1))
    return clip(parameter.astype(np.int64) + step).astype(np.int8)


def bound(c: Any, epoch: int, voters: int) -> int:
    return threshold(c, epoch) * math.isqrt(voters) * (256 if c.use_clt else 1)


def update(c: Any, params: Params, fit: np.ndarray, epoch: int, texts: list[set[int]] | None = None) -> Params:
    Z = votes(c, fit, epoch, texts)
    moved = {name: move(params[name], Z[name], bound(c, epoch, c.population // 2)) for name in Z}
    for v in range(c.vocab_size if texts is not None else 0):
        voters = sum(v in text for text in texts or [])
        row = params["emb"][v]
        moved["emb"][v] = move(row, Z["emb"][v], bound(c, epoch, voters)) if voters else row
    return moved


# Section 8: validation


def validate(c: Any, params: Params, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """Every row's score and the bits per byte."""
    B = c.validation_batch_size
    m = len(tokens) // B
    zero = np.zeros((c.n_layer, c.n_embd))
    scores = np.array([read(params, None, 0, zero, row)[0] for row in tokens[: B * m].reshape(B, m)])
    return scores, -int(scores.sum()) / (16 * (B * m - B))


class Oracle:
    """A run: `params`, `states` (N, L, D) int8, `epoch` and the last `fitness` (N/2,), moved on by `step`."""

    def __init__(self, c: Any, tokens: np.ndarray) -> None:
        self.config, self.tokens, self.epoch = c, tokens, 0
        self.params = init_params(c)
        self.states = np.zeros((c.population, c.n_layer, c.n_embd), np.int8)

    def step(self) -> np.ndarray:
        """One epoch: the members' scores (N,)."""
        c, scores, states = self.config, [], []
        texts: list[set[int]] = []
        for member, state in enumerate(self.states):
            noise = member_noise(c, member, self.epoch)
            text = member_text(c, self.tokens, member, self.epoch)
            score, state = read(self.params, noise, 4 + c.sigma_shift, state, text)
            scores.append(score)
            states.append(state)
            if member % 2 == 0:
                texts.append(set(text[:-1].tolist()))
        self.fitness = fitness(np.array(scores), c.fast_fitness)
        self.params = update(c, self.params, self.fitness, self.epoch, texts if c.sparse_embedding else None)
        self.states, self.epoch = np.array(states).astype(np.int8), self.epoch + 1
        return np.array(scores)
