"""Averaged parameters (docs/averaging.md): the integer moving average against Python's integers, at its limits too."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoegg_mlx import Config, InputError, init_params
from nanoegg_mlx.core import averaging

ENTRIES = st.lists(st.integers(-127, 127), min_size=3, max_size=3)


@given(st.integers(1, 8), st.lists(ENTRIES, min_size=1, max_size=30))
def test_any_parameters(shift: int, epochs: list[list[int]]) -> None:
    first, *others = ({"leaf": mx.array(entries, dtype=mx.int8)} for entries in epochs)
    sums = averaging.start(first, shift)
    expected = [entry * 2**shift + 2 ** (shift - 1) for entry in epochs[0]]
    assert averaging.model(first, sums, shift)["leaf"].tolist() == epochs[0]
    for params, entries in zip(others, epochs[1:], strict=True):
        before = sums
        sums = averaging.add(sums, params, shift)
        assert before["leaf"].tolist() == expected
        expected = [A - A // 2**shift + entry for A, entry in zip(expected, entries, strict=True)]
        assert sums["leaf"].dtype == mx.int16 and sums["leaf"].tolist() == expected
        model = averaging.model(params, sums, shift)["leaf"]
        assert model.dtype == mx.int8 and model.tolist() == [A // 2**shift for A in expected]


@pytest.mark.parametrize("shift", [1, 4, 8])
@pytest.mark.parametrize("entry", [-127, -1, 0, 1, 127])
def test_parameters_that_stay_are_reached(shift: int, entry: int) -> None:
    """From both limits, and nothing goes beyond them."""
    for other in (-127, 127):
        sums = averaging.start({"leaf": mx.array([other], dtype=mx.int8)}, shift)
        params = {"leaf": mx.array([entry], dtype=mx.int8)}
        for _ in range(12 << shift):
            sums = averaging.add(sums, params, shift)
        assert averaging.model(params, sums, shift)["leaf"].item() == entry


def test_without_sums() -> None:
    params = {"leaf": mx.array([3], dtype=mx.int8)}
    assert averaging.model(params, None, 0) is params


def test_sums_that_do_not_fit() -> None:
    config = Config(n_layer=1, n_embd=4, perturb="activations", ema_shift=3)
    sums = averaging.start(init_params(config), 3)
    averaging.check_sums(sums, config)
    averaging.check_sums(None, config.replace(ema_shift=0))
    lowest = np.array(sums["head"])
    lowest[0, 0] = -128 * 8
    for changed, message in (
        (None, "ema_shift is 3; it must be 0 without sums of parameters, and only then"),
        ({**sums, "emb": sums["emb"].astype(mx.int32)}, "The sum of parameter 'emb' is .*int32; it must be int16"),
        ({**sums, "emb": sums["emb"][1:]}, "The shape of parameter 'emb' is"),
        ({name: sums[name] for name in sums if name != "emb"}, "The leaf 'emb' is missing"),
        ({**sums, "head": mx.array(lowest)}, "'head' has an entry -128"),
    ):
        with pytest.raises(InputError, match=message):
            averaging.check_sums(changed, config)
    with pytest.raises(InputError, match="ema_shift is 0; it must be"):
        averaging.check_sums(sums, config.replace(ema_shift=0))
