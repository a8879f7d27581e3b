"""Credit, head errors, votes and steps of nudged activations: hand-computed cases, and the twin on random ones."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanoegg_mlx import Config, init_params
from nanoegg_mlx.core import activations
from nanoegg_mlx.core.activations import Moments, Token, credit, head_error, moments, step
from nanoegg_mlx.core.fixed_point import POW2
from nanoegg_mlx.core.update import threshold_at
from tests import oracle_activations as twin

exact = settings(deadline=None, max_examples=60)
TINY: dict[str, Any] = {
    "perturb": "activations",
    "n_layer": 1,
    "n_embd": 1,
    "vocab_size": 2,
    "population": 2,
    "tokens_per_update": 2,
    "credit_decay": 8,
}


def int32(values: object) -> mx.array:
    return mx.array(values, dtype=mx.int32)


def lists(sums: dict[str, mx.array]) -> dict[str, Any]:
    assert all(value.dtype == mx.int64 for value in sums.values())
    return {name: value.tolist() for name, value in sums.items()}


# The head's error


def test_pow2() -> None:
    assert [POW2[k] for k in (0, 1, 16, 32, 192, 207, 208, 223, 224, 225, 255)] == [
        8192, 7845, 4096, 2048, 2, 1, 1, 1, 0, 0, 0,
    ]  # fmt: skip
    assert len(POW2) == 256
    for k, value in enumerate(POW2):
        # 8192 * 2^(-k/16) is not beyond value -+ 1/2, in sixteenth powers.
        assert max(Fraction(2 * value - 1, 2), 0) ** 16 * 2**k <= 8192**16 <= Fraction(2 * value + 1, 2) ** 16 * 2**k
    assert twin.POW2.tolist() == POW2


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([0, 0], 0, [4096, -4096]),
        ([0, 0], 1, [-4096, 4096]),
        ([5], 0, [0]),
        ([-127], 0, [0]),  # EXP2[1] is truncated to 16, so the score would be +1
        ([127, -127], 0, [0, 0]),
        ([127, -127], 1, [-8192, 8192]),
    ],
)
def test_head_error(logits: list[int], target: int, expected: list[int]) -> None:
    error = head_error(int32(logits), mx.array(target, dtype=mx.uint8))
    assert error.tolist() == expected
    assert error.dtype == mx.int32


def test_head_error_of_unlikely_bytes() -> None:
    """The sum's logarithm is 382: 255 bytes get q = -127, and the other one's -381 is beyond the end of POW2."""
    logits = [127] * 255 + [-127]
    assert head_error(int32(logits), mx.array(255)).tolist() == [-33] * 255 + [8192]


@exact
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=256), st.data())
def test_head_error_equals_the_twin(logits: list[int], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(logits) - 1))
    expected = twin.head_error(np.array(logits), target)
    assert head_error(int32(logits), mx.array(target, dtype=mx.uint8)).tolist() == expected.tolist()


# Credit


@pytest.mark.parametrize(
    ("d", "decay", "expected"),
    [
        ([1, -3, 5], 12, [1, 0, 5]),
        ([0, -1], 12, [-1, -1]),  # rounded down
        ([0, 1], 12, [0, 1]),
        ([0, 0, 1000], 15, [878, 937, 1000]),  # not clipped on the way
        ([7, -8, 9], 0, [7, -8, 9]),
        ([4], 15, [4]),
    ],
)
def test_credit(d: list[int], decay: int, expected: list[int]) -> None:
    assert credit(int32([d, [-x for x in d]]), decay)[0].tolist() == expected


@exact
@given(st.lists(st.integers(-600, 600), min_size=1, max_size=30), st.integers(0, 15))
@example([510] * 200, 15)
def test_credit_equals_the_twin(d: list[int], decay: int) -> None:
    expected = twin.credit(Config(perturb="activations", credit_decay=decay), d)
    assert credit(int32([d]), decay).tolist() == [expected]


# Votes


HAND_XI = [
    {"emb": [-1], "f": [1], "c": [-1], "a": [1, 1, 1, 1], "b": [1], "head": [1, -1]},
    {"emb": [1], "f": [-1], "c": [-1], "a": [-1, 1, -1, 1], "b": [1], "head": [1, 1]},
]
HAND_INPUTS = [
    {"y": [3], "last": [0], "g": [-1], "z": [7], "hidden": [1, 2, 3, 4], "head": [10]},
    {"y": [-2], "last": [5], "g": [2], "z": [7], "hidden": [0, -1, 0, 1], "head": [-20]},
]
HAND_ERRORS = [[4096, -4096], [-100, 8192]]
HAND_SCORES = [(10, 4), (-200, 0)]
"""The differences are 6 and -200; clipped, the tokens' own credit is 6 and -127, the discounted one -94 and -127."""
HAND_BYTES = [1, 0]

HAND_Z: dict[str, Any] = {
    "blocks.att.Wf": [[[-94 * 3 - 127 * 2]]],
    "blocks.att.Uf": [[[127 * 5]]],
    "blocks.att.Wh": [[[94 * 3 - 127 * 2]]],
    "blocks.att.Uh": [[[-94 + 127 * 2]]],
    "blocks.mlp.0.weight": [[[42 + 889], [42 - 889], [42 + 889], [42 - 889]]],
    "blocks.mlp.1.weight": [[[6, 12 + 127, 18, 24 - 127]]],
    "blocks.att.bf": [[-94 + 127]],
    "blocks.att.bh": [[94 + 127]],
    "emb": [[-127], [94]],
}
HAND_S: dict[str, Any] = {
    "blocks.att.Wf": [[282**2 + 254**2]],
    "blocks.att.Uf": [[635**2]],
    "blocks.att.Wh": [[282**2 + 254**2]],
    "blocks.att.Uh": [[94**2 + 254**2]],
    "blocks.mlp.0.weight": [[42**2 + 889**2]],
    "blocks.mlp.1.weight": [[6**2, 12**2 + 127**2, 18**2, 24**2 + 127**2]],
    "blocks.att.bf": [94**2 + 127**2],
    "blocks.att.bh": [94**2 + 127**2],
    "emb": [127**2, 94**2],
}
HAND_HEAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "error": (
        [[40960 + 2000], [-40960 - 163840]],
        {"head.E": [4096**2 + 100**2, 4096**2 + 8192**2], "head.Y": [500]},
    ),
    "perturb": ([[60 + 2540], [-60 + 2540]], {"head": [60**2 + 2540**2]}),
}
"""Z and S of the head by each rule."""


def hand_tokens(samples: tuple[tuple[int, int], ...] = ((1, 1),)) -> list[Token]:
    """The package's form of the hand-computed pair, or of a lane with such samples.

    Args:
        samples: factors of the pair's differences and of its coins.
    """
    tokens = []
    for (even, odd), xi, X, error in zip(HAND_SCORES, HAND_XI, HAND_INPUTS, HAND_ERRORS, strict=True):
        differences = int32([[factor * (even - odd) for factor, _ in samples]])
        signs = {
            (name, None if name in ("emb", "head") else 0): int32(
                [[[sign * value for value in values] for _, sign in samples]]
            )
            for name, values in xi.items()
        }
        inputs = {("y", 1) if name == "head" else (name, 0): int32([values]) for name, values in X.items()}
        tokens.append(Token(differences, int32([[even, odd]]), signs, inputs, int32([error])))
    return tokens


@pytest.mark.parametrize("head_rule", ["error", "perturb"])
def test_moments_computed_by_hand(head_rule: str) -> None:
    config = Config(**{**TINY, "head_rule": head_rule})
    sums = moments(hand_tokens(), mx.array([HAND_BYTES], dtype=mx.uint8), config)
    head_Z, head_S = HAND_HEAD[head_rule]
    assert lists(sums.Z) == {**HAND_Z, "head": head_Z}
    assert lists(sums.S) == {**HAND_S, **head_S}


@pytest.mark.parametrize("head_rule", ["error", "perturb"])
def test_the_twin_computed_by_hand(head_rule: str) -> None:
    config = Config(**{**TINY, "head_rule": head_rule})
    votes = twin.Votes(config, init_params_as_arrays(config))
    d = [even - odd for even, odd in HAND_SCORES]
    names = {"last": "h", "z": "q", "hidden": "a"}
    for t, R in enumerate(twin.credit(config, d)):
        xi = {(name, 0): np.array(values) for name, values in HAND_XI[t].items()}
        X = {(names.get(name, name), 0): np.array(values) for name, values in HAND_INPUTS[t].items()}
        votes.add_sample(HAND_BYTES[t], xi, X, d[t], R)
        votes.add_inputs(X, np.array(HAND_ERRORS[t]))
    head_Z, head_S = HAND_HEAD[head_rule]
    assert {name: value.tolist() for name, value in votes.Z.items()} == {**HAND_Z, "head": head_Z}
    S = {name: value.reshape(np.shape(HAND_S[name])).tolist() for name, value in votes.S.items() if name != "head"}
    assert S == HAND_S
    if head_rule == "perturb":
        assert votes.S["head"].tolist() == [head_S["head"]]
    else:
        assert {"head.E": votes.E.tolist(), "head.Y": votes.Y.tolist()} == head_S


def init_params_as_arrays(config: Config) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in init_params(config).items()}


def test_moments_add_up() -> None:
    """Two pairs that are alike have twice the sums of one, which also survive their flat form."""
    config = Config(**TINY)

    def twice(x: mx.array) -> mx.array:
        return mx.concatenate([x, x])

    one = moments(hand_tokens(), mx.array([HAND_BYTES], dtype=mx.uint8), config)
    tokens = [
        Token(
            twice(token.differences),
            twice(token.scores),
            {node: twice(xi) for node, xi in token.xi.items()},
            {name: twice(x) for name, x in token.inputs.items()},
            twice(token.error),
        )
        for token in hand_tokens()
    ]
    both = moments(tokens, mx.array([HAND_BYTES] * 2, dtype=mx.uint8), config)
    for sums in (activations.add_moments(one, one), activations.unflatten(activations.flatten(both), one)):
        assert lists(sums.Z) == lists(both.Z)
        assert lists(sums.S) == lists(both.S)


def test_sums_beyond_int32() -> None:
    """140,000 pairs of the largest credits, inputs and errors."""
    P = 140_000
    config = Config(**{**TINY, "population": 2 * P, "tokens_per_update": 1})
    token = largest_token(P, 1, 127)
    sums = moments([token], mx.zeros((P, 1), dtype=mx.uint8), config)
    assert sums.Z["blocks.att.Wf"].tolist() == [[[-(127**2) * P]]]
    assert sums.S["blocks.att.Wf"].tolist() == [[127**4 * P]]
    assert sums.Z["blocks.att.bf"].tolist() == [[127 * P]]
    assert sums.Z["emb"].tolist() == [[127 * P], [0]]
    assert sums.Z["head"].tolist() == [[-8192 * 127 * P], [8191 * 127 * P]]
    assert sums.S["head.E"].tolist() == [8192**2 * P, 8191**2 * P]
    assert sums.S["head.Y"].tolist() == [127**2 * P]


def largest_token(P: int, samples: int, d: int) -> Token:
    """One token of P cohorts: all differences of score are d, all coins 1, all inputs -127, errors of both limits."""

    def of_all(values: list[int]) -> mx.array:
        return mx.broadcast_to(int32([values]), (P, len(values)))

    first = hand_tokens()[0]
    xi = {node: mx.ones((P, samples, x.shape[-1]), mx.int32) for node, x in first.xi.items()}
    inputs = {name: of_all([-127] * x.shape[1]) for name, x in first.inputs.items()}
    return Token(of_all([d] * samples), of_all([0] * (samples + 1)), xi, inputs, of_all([8192, -8191]))


# The step

WIDE: dict[str, Any] = {**TINY, "n_layer": 2, "n_embd": 2, "vocab_size": 3, "alpha": 0.05}
"""The threshold is 31 sixteenths."""


def moved(leaf: str, parameter: Any, Z: Any, S: Any, **changes: Any) -> Any:
    """A leaf after the step, from values that broadcast to its shape (`S` as it is)."""
    config = Config(**{**WIDE, "head_rule": "perturb", **changes})
    params = init_params(config)
    shape = params[leaf].shape
    params[leaf] = mx.broadcast_to(mx.array(parameter, dtype=mx.int8), shape)
    votes = mx.array(np.broadcast_to(np.array(Z, np.int64), shape))
    variances = S if isinstance(S, dict) else {leaf: S}
    sums = Moments({leaf: votes}, {name: mx.array(np.array(value, np.int64)) for name, value in variances.items()}, {})
    result = step(params, sums, config, 0)
    assert result.params[leaf].dtype == mx.int8
    for other in params.keys() - {leaf}:
        assert np.array_equal(np.array(result.params[other]), np.array(params[other]))
    return result.params[leaf].tolist()


@pytest.mark.parametrize(
    ("Z", "variance", "direction"),
    [
        (31, 16**2, 1),  # 16 * 31 == 31 * 16
        (30, 16**2, 0),
        (31, 17**2 - 1, 1),  # the root is an integer root
        (31, 17**2, 0),
        (32, 17**2, 0),
        (33, 17**2, 1),
        (0, 0, 0),
        (1, 0, 1),
        (31 * 2**27, 2**62, 1),
        (31 * 2**27 - 1, 2**62, 0),
        (2**62, 2**62, 1),  # 16 Z is beyond int64
    ],
)
def test_step_at_its_bound(Z: int, variance: int, direction: int) -> None:
    assert threshold_at(Config(**WIDE), 0) == 31
    assert moved("blocks.att.bf", 5, Z, [variance] * 2) == [[5 + direction] * 2] * 2
    assert moved("blocks.att.bf", 5, -Z, [variance] * 2) == [[5 - direction] * 2] * 2


def test_step_with_threshold_0() -> None:
    assert threshold_at(Config(**{**WIDE, "alpha": 1.0}), 0) == 0
    assert moved("emb", 5, [[0, 1], [-1, 0], [9, -9]], [10**6, 10**6, 0], alpha=1.0) == [[5, 6], [4, 5], [6, 4]]


def test_step_is_clipped() -> None:
    parameter, Z = [[127, 127], [-127, -127], [126, -126]], [[99, -99], [99, -99], [99, -99]]
    assert moved("emb", parameter, Z, [1, 1, 1]) == [[127, 126], [-126, -127], [127, -127]]


def test_variances_belong_to_inputs_rows_and_layers() -> None:
    assert moved("blocks.att.Wf", 0, 31, [[256, 999], [999, 256]]) == [[[1, 0]] * 2, [[0, 1]] * 2]
    assert moved("blocks.att.bh", 0, 31, [256, 999]) == [[1, 1], [0, 0]]
    assert moved("emb", 0, 31, [999, 256, 999]) == [[0, 0], [1, 1], [0, 0]]
    assert moved("head", 0, 31, [999, 256]) == [[0, 1]] * 3
    by_error = {"head.E": [16, 1, 64], "head.Y": [16, 64]}
    # 16 * 31 * isqrt(1 pair * 2 tokens) against 31 isqrt(E) isqrt(Y)
    assert moved("head", 0, 31, by_error, head_rule="error") == [[1, 0], [1, 1], [0, 0]]
    # A lane of 2, 4 or 8 members counts once.
    for lanes in (1, 2, 4):
        shape = {"population": 8, "group_size": 8 // lanes, "tokens_per_update": 4, "antithetic": False}
        root = math.isqrt(lanes * 4)
        by_error = {"head.E": [(16 * root) ** 2, (16 * root + 1) ** 2, 0], "head.Y": [1, 2**2]}
        expected = [[1, 0], [0, 0], [1, 1]]
        assert moved("head", 0, 31, by_error, head_rule="error", **shape) == expected


@pytest.mark.parametrize(
    ("Z", "E", "Y", "direction"),
    [
        (31, 64**2, 1, 1),  # 16 * 31 * 4 == 31 * 64 * 1
        (30, 64**2, 1, 0),
        (31, 65**2 - 1, 2**2 - 1, 1),
        (31, 65**2, 1, 0),
        (0, 0, 0, 0),
        (1, 0, 5, 1),
        (31 * 2**56, 2**62, 2**62, 1),  # both products are beyond int64
        (31 * 2**56 - 1, 2**62, 2**62, 0),
    ],
)
@pytest.mark.parametrize("tokens", [16, 24])
def test_step_of_the_head_by_error_at_its_bound(tokens: int, Z: int, E: int, Y: int, direction: int) -> None:
    """16 and 24 have the integer root 4."""
    changes = {"head_rule": "error", "tokens_per_update": tokens}
    for sign in (1, -1):
        S = {"head.E": [E] * 3, "head.Y": [Y] * 2}
        assert moved("head", -7, sign * Z, S, **changes) == [[-7 + sign * direction] * 2] * 3


@exact
@given(st.data())
def test_step_equals_the_twin(data: st.DataObject) -> None:
    """Random variances and votes near their bounds."""
    alpha = data.draw(st.sampled_from([0.001, 0.05, 0.3, 1.0]))
    threshold = threshold_at(Config(**{**WIDE, "alpha": alpha}), 0)
    S = np.array(data.draw(st.lists(st.integers(0, 10**12), min_size=2, max_size=2)))
    parameter = data.draw(st.integers(-127, 127))
    roots = twin.roots(S)
    nearby = st.lists(st.integers(-2, 2), min_size=6, max_size=6)
    Z = np.array([threshold * roots // 16] * 3, np.int64) + np.array(data.draw(nearby)).reshape(3, 2)
    Z *= np.array(data.draw(st.lists(st.sampled_from([-1, 1]), min_size=6, max_size=6))).reshape(3, 2)
    expected = twin.move(np.full((3, 2), parameter, np.int8), Z, 1, threshold * roots)
    assert moved("head", parameter, Z, S, alpha=alpha) == expected.tolist()


def test_signal_and_credit_rms() -> None:
    """Figures of the log: mean of Z^2 / S over the entries that have a variance, and the credit's root mean square."""
    config = Config(**{**WIDE, "head_rule": "perturb"})
    Z = {"emb": mx.array([[3, 4], [6, 0], [0, 0]], dtype=mx.int64)}
    S = {"emb": mx.array([25, 9, 0], dtype=mx.int64), "blocks.att.bf": mx.array([50, 7], dtype=mx.int64)}
    signal = step(init_params(config), Moments(Z, S, {}), config, 0).signal
    assert signal == {"emb": pytest.approx((9 / 25 + 16 / 25 + 36 / 9 + 0) / 4)}
    assert activations.credit_rms(Moments(Z, S, {}), config) == math.sqrt(50 / 2)
    lanes = config.replace(antithetic=False, population=8, group_size=4)  # 3 samples each, at 2 tokens
    assert activations.credit_rms(Moments(Z, S, {}), lanes) == math.sqrt(50 / 12)
