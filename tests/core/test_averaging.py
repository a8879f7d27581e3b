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
STARTS = st.integers(0, 70) | st.integers(960, 1030) | st.integers(2030, 2050)


def test_the_window_grows_with_the_run() -> None:
    shifts = [averaging.shift_at(epochs) for epochs in (0, 15, 16, 31, 32, 64, 127, 128, 1024, 2047, 2048, 10**6)]
    assert shifts == [0, 0, 1, 1, 2, 3, 3, 4, 7, 7, 8, 8]


@given(STARTS, st.lists(ENTRIES, min_size=1, max_size=40))
def test_any_parameters(start: int, epochs: list[list[int]]) -> None:
    first, *others = ({"leaf": mx.array(entries, dtype=mx.int8)} for entries in epochs)
    sums, shift = averaging.start(first, start), averaging.shift_at(start)
    expected = [entry * 2**shift + 2**shift // 2 for entry in epochs[0]]
    assert averaging.model(first, sums, start)["leaf"].tolist() == epochs[0]
    for done, (params, entries) in enumerate(zip(others, epochs[1:], strict=True), start):
        before = sums
        sums = averaging.add(sums, params, done)
        assert before["leaf"].tolist() == expected
        expected = [A - A // 2**shift + entry for A, entry in zip(expected, entries, strict=True)]
        if averaging.shift_at(done + 1) > shift:
            expected, shift = [2 * A for A in expected], shift + 1
        assert sums["leaf"].dtype == mx.int16 and sums["leaf"].tolist() == expected
        model = averaging.model(params, sums, done + 1)["leaf"]
        assert model.dtype == mx.int8 and model.tolist() == [A // 2**shift for A in expected]
        if shift == 0:
            assert model.tolist() == entries


@pytest.mark.parametrize("start", [0, 100, 2048])
@pytest.mark.parametrize("entry", [-127, -1, 0, 1, 127])
def test_parameters_that_stay_are_reached(start: int, entry: int) -> None:
    """From both limits, and nothing goes beyond them."""
    for other in (-127, 127):
        sums = averaging.start({"leaf": mx.array([other], dtype=mx.int8)}, start)
        params = {"leaf": mx.array([entry], dtype=mx.int8)}
        end = start + 3200
        for done in range(start, end):
            sums = averaging.add(sums, params, done)
        assert averaging.model(params, sums, end)["leaf"].item() == entry


def test_without_sums() -> None:
    params = {"leaf": mx.array([3], dtype=mx.int8)}
    assert averaging.model(params, None, 99) is params


def test_sums_that_do_not_fit() -> None:
    config = Config(n_layer=1, n_embd=4, perturb="activations", average=True)
    sums = averaging.start(init_params(config), 64)
    averaging.check_sums(sums, config, 64)
    averaging.check_sums(None, config.replace(average=False), 64)
    lowest = np.array(sums["head"])
    lowest[0, 0] = -128 * 8
    for changed, message in (
        (None, "average is True; it must be False, since the state has no sums"),
        ({**sums, "emb": sums["emb"].astype(mx.int32)}, "The sum of parameter 'emb' is .*int32; it must be int16"),
        ({**sums, "emb": sums["emb"][1:]}, "The shape of parameter 'emb' is"),
        ({name: sums[name] for name in sums if name != "emb"}, "The leaf 'emb' is missing"),
        ({**sums, "head": mx.array(lowest)}, "'head' has an entry -128"),
    ):
        with pytest.raises(InputError, match=message):
            averaging.check_sums(changed, config, 64)
    with pytest.raises(InputError, match="average is False; it must be True, since the state has sums"):
        averaging.check_sums(sums, config.replace(average=False), 64)
