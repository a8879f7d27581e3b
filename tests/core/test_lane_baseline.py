"""Votes of lanes with a baseline (docs/lane-baseline.md): hand-computed ones, the twin on random ones, and limits."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanoegg_mlx import Config
from nanoegg_mlx.core.activations import Token, moments
from tests import oracle_activations as twin
from tests.core.test_activations import (
    HAND_BYTES,
    HAND_HEAD,
    HAND_S,
    HAND_Z,
    TINY,
    exact,
    hand_tokens,
    init_params_as_arrays,
    int32,
    largest_token,
    lists,
)

LANE: dict[str, Any] = {**TINY, "antithetic": False, "population": 4, "group_size": 4}


@pytest.mark.parametrize("head_rule", ["error", "perturb"])
@pytest.mark.parametrize(
    ("samples", "Z_factor", "S_factor"),
    [
        (((1, 1), (0, 1), (0, -1)), 1, 1),
        (((1, 1), (1, 1), (1, 1)), 3, 3),
        (((1, 1), (1, -1), (0, 1)), 0, 2),
        (((0, 1), (1, -1), (1, -1)), -2, 2),
    ],
)
def test_moments_of_a_lane_computed_by_hand(
    samples: tuple[tuple[int, int], ...], Z_factor: int, S_factor: int, head_rule: str
) -> None:
    """Samples that repeat or cancel the pair's; inputs and errors count once."""
    config = Config(**{**LANE, "head_rule": head_rule, "decorrelate": True})
    sums = moments(hand_tokens(samples), mx.array([HAND_BYTES], dtype=mx.uint8), config)
    head_Z, head_S = HAND_HEAD[head_rule]
    by_sample = head_rule == "perturb"
    Z = {name: (np.array(value) * Z_factor).tolist() for name, value in HAND_Z.items()}
    S = {name: (np.array(value) * S_factor).tolist() for name, value in HAND_S.items()}
    head = {name: (np.array(value) * (S_factor if by_sample else 1)).tolist() for name, value in head_S.items()}
    assert lists(sums.Z) == {**Z, "head": (np.array(head_Z) * (Z_factor if by_sample else 1)).tolist()}
    assert lists(sums.S) == {**S, **head}
    assert sums.C["head"].tolist() == [[500] + [0] * 63]


@exact
@given(st.integers(0, 2**32), st.sampled_from([2, 4, 10, 128]), st.sampled_from(["error", "perturb"]))
@example(1, 128, "error")
@example(2, 128, "perturb")
def test_moments_of_lanes_equal_the_twin(seed: int, group: int, head_rule: str) -> None:
    """Two lanes with random credits, coins and inputs, some of them as large as possible."""
    rng = np.random.default_rng(seed)
    lanes, T, V = 2, int(rng.integers(1, 4)), 3
    config = Config(**{
        **LANE, "n_layer": 2, "n_embd": 2, "vocab_size": V, "population": lanes * group, "group_size": group,
        "tokens_per_update": T, "credit_decay": int(rng.integers(16)), "head_rule": head_rule,
    })  # fmt: skip
    largest = int(rng.choice([3, 130, 1000]))
    d = rng.choice([-largest, 0, largest], (lanes, T, group - 1), p=[0.1, 0.1, 0.8])
    fair = [0.5, 0.5] if rng.integers(2) else [0.0, 1.0]
    xi = {
        (name, None if name in ("emb", "head") else l): rng.choice([-1, 1], (lanes, T, group - 1, size), p=fair)
        for (name, l), size in twin.nodes(config)
    }
    sizes = {("y", 2): 2} | {
        (name, l): 8 if name == "hidden" else 2 for l in range(2) for name in ("y", "last", "g", "z", "hidden")
    }
    X = {key: rng.choice([-127, 5, 127], (lanes, T, size)) for key, size in sizes.items()}
    errors, byte = rng.integers(-8192, 8193, (lanes, T, V)), rng.integers(0, V, (lanes, T))

    def at(t: int) -> Token:
        scores = int32(np.zeros((lanes, group)))
        return Token(
            int32(d[:, t]),
            scores,
            {node: int32(value[:, t]) for node, value in xi.items()},
            {name: int32(value[:, t]) for name, value in X.items()},
            int32(errors[:, t]),
        )

    sums = moments([at(t) for t in range(T)], mx.array(byte, dtype=mx.uint8), config)
    votes = twin.Votes(config, init_params_as_arrays(config))
    names = {"last": "h", "z": "q", "hidden": "a"}
    for lane in range(lanes):
        for t in range(T):
            seen = {
                ("head", 0) if name == ("y", 2) else (names.get(name[0], name[0]), name[1]): value[lane, t]
                for name, value in X.items()
            }
            votes.add_inputs(seen, errors[lane, t])
            for j in range(group - 1):
                drawn = {(name, l or 0): value[lane, t, j] for (name, l), value in xi.items()}
                R = twin.credit(config, d[lane, :, j].tolist())[t]
                votes.add_sample(int(byte[lane, t]), drawn, seen, int(d[lane, t, j]), R)
    assert lists(sums.Z) == {name: value.tolist() for name, value in votes.Z.items()}
    S = {name: value.reshape(sums.S[name].shape) for name, value in votes.S.items() if name in sums.S}
    S |= {"head.E": votes.E, "head.Y": votes.Y} if head_rule == "error" else {}
    assert lists(sums.S) == {name: value.tolist() for name, value in S.items()}


@pytest.mark.parametrize("d", [127, -500])
def test_sums_of_lanes_beyond_int32(d: int) -> None:
    """80,000 lanes of 128 members, all with the largest credit and equal coins: |Q| is 127 * 127."""
    P, Q, squares = 80_000, 127 * (127 if d > 0 else -127), 127 * 127**2
    changes = {"population": 128 * P, "group_size": 128, "tokens_per_update": 1, "head_rule": "perturb"}
    sums = moments([largest_token(P, 127, d)], mx.zeros((P, 1), dtype=mx.uint8), Config(**{**LANE, **changes}))
    for leaf in ("blocks.att.Wf", "blocks.att.Uh"):
        assert sums.Z[leaf].tolist() == [[[-127 * Q * P]]]
        assert sums.S[leaf].tolist() == [[squares * 127**2 * P]]
    assert sums.Z["blocks.mlp.1.weight"].tolist() == [[[-127 * Q * P] * 4]]
    assert sums.Z["blocks.att.bh"].tolist() == [[Q * P]]
    assert sums.S["blocks.att.bh"].tolist() == [squares * P]
    assert sums.Z["emb"].tolist() == [[Q * P], [0]]
    assert sums.S["emb"].tolist() == [squares * P, 0]
    assert sums.Z["head"].tolist() == [[-127 * Q * P]] * 2
    assert sums.S["head"].tolist() == [squares * 127**2 * P]
