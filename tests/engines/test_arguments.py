"""Arguments of the native functions: right, or an error of one sentence. Never a crash, never a silent conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.engines import make_engine
from tests.engines import kernels
from tests.engines.inputs import native, numbers, random_params
from tests.engines.kernels import epoch_noise

CONFIG = Config(n_layer=2, n_embd=6, vocab_size=11)
rng = np.random.default_rng(1)
PARAMS = random_params(rng, CONFIG)
WEIGHTS = native.Weights(PARAMS)
NOISE = epoch_noise(CONFIG, 0).native()
TOKENS = rng.integers(0, 11, (3, 5)).astype(np.uint8)
STATES = numbers(rng, 3, 2, 6)
FITNESS = np.array([1, -1, 0], np.int8)
READS = rng.integers(0, 2, (3, 11)) == 0
BASES = [np.arange(2 if leaf < 10 else 1, dtype=np.uint32) for leaf in range(13)]
LEAVES = list(PARAMS)


NUDGED = {"inputs": TOKENS, "targets": TOKENS, "states": numbers(rng, 6, 2, 6), "key": (1, 2)}
SPARSE = {"reads": READS, "embedding_bounds": np.arange(11)}
NUDGED_LANES = {**NUDGED, "states": numbers(rng, 12, 2, 6), "cohort": 4, "antithetic": False}
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "score": (native.score, {"weights": WEIGHTS, "inputs": TOKENS, "targets": TOKENS, "states": STATES}),
    "logits": (native.logits, {"weights": WEIGHTS, "inputs": TOKENS, "states": STATES}),
    "nudge": (native.nudge, {"weights": WEIGHTS, **NUDGED}),
    "nudge_lanes": (native.nudge, {"weights": WEIGHTS, **NUDGED_LANES}),
    "update": (native.update, {"params": PARAMS, "noise": NOISE, "fitness": FITNESS, "bound": 3, **SPARSE}),
    "votes": (native.votes, {"params": PARAMS, "noise": NOISE, "fitness": FITNESS, "reads": READS}),
}
FREE = {
    ("logits", "inputs", 1),
    ("nudge", "inputs", 1),
    ("nudge_lanes", "inputs", 1),
    ("update", "fitness", 0),
    ("votes", "fitness", 0),
}
"""Axes that may have another length, all else being the same."""
DTYPES = ["bool", "i1", "u1", "i2", "<i4", "<u4", ">u4", "<i8", ">i8", "f2", "f4", "f8", "c8", "O", "S1", "M8[s]"]


def misfits(array: np.ndarray, free: Sequence[int] = ()) -> Iterator[tuple[str, Any, type[Exception]]]:
    """Arrays that are almost right: description, array, expected exception. `free` axes keep their length."""
    yield "a list", array.tolist(), TypeError
    yield "an MLX array", mx.array(array), TypeError
    yield "a string", "array", TypeError
    yield "a number", 3, TypeError
    for dtype in DTYPES:
        if np.dtype(dtype) != array.dtype:
            yield f"of {dtype}", np.zeros(array.shape, dtype), TypeError
    yield "structured", np.zeros(array.shape, [("a", array.dtype)]), TypeError
    yield "in one more dimension", array[None], ValueError
    yield "in one dimension less", array[0], ValueError if array.ndim > 1 else TypeError
    for axis in set(range(array.ndim)) - set(free):
        for change in (-1, 1):
            shape = list(array.shape)
            shape[axis] += change
            yield f"of shape {shape}", np.zeros(shape, array.dtype), ValueError
    for what, view in {
        "every other entry": np.repeat(array, 2, axis=-1)[..., ::2],
        "backwards": array[::-1],
        "in Fortran's order": np.asfortranarray(array),
        "broadcast": np.broadcast_to(array[:1], array.shape),
    }.items():
        if not view.flags.c_contiguous:  # a single entry always is
            yield what, view, ValueError
    if array.itemsize > 1:
        room = np.zeros(array.nbytes + 1, np.uint8)
        yield "misaligned", room[1:].view(array.dtype).reshape(array.shape), ValueError


def changed(call: str, argument: str, value: Any) -> Callable[[], Any]:
    function, arguments = CALLS[call]
    return lambda: function(**{**arguments, argument: value})


@pytest.mark.parametrize("call", CALLS)
def test_arrays(call: str) -> None:
    function, arguments = CALLS[call]
    function(**arguments)
    for argument, value in arguments.items():
        if not isinstance(value, np.ndarray):
            continue
        read_only = value.copy()
        read_only.flags.writeable = False
        function(**{**arguments, argument: read_only})
        for what, misfit, error in misfits(value, [axis for axis in range(3) if (call, argument, axis) in FREE]):
            with pytest.raises(error) as caught:
                function(**{**arguments, argument: misfit})
            message = str(caught.value)
            assert message.startswith(tuple(f"{name} " for name in arguments)), (argument, what, message)
            assert "; it must " in message and message.endswith(".") and "\n" not in message, (argument, what, message)


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("call", ["update", "votes", "Weights"])
def test_leaves(call: str, name: str) -> None:
    def called(params: Any) -> Any:
        return native.Weights(params) if call == "Weights" else changed(call, "params", params)()

    for what, misfit, error in misfits(PARAMS[name]):
        with pytest.raises(error) as caught:
            called({**PARAMS, name: misfit})
        assert "params[" in str(caught.value) or "vocab_size" in str(caught.value), what
    with pytest.raises(ValueError, match=f"params has no {name}"):
        called({key: value for key, value in PARAMS.items() if key != name})
    with pytest.raises(ValueError, match=f"params has no {name}"):
        called({key + "s" * (key == name): value for key, value in PARAMS.items()})
    with pytest.raises(ValueError, match="exactly the 13 leaves"):
        called({**PARAMS, name + "s": PARAMS[name]})
    with pytest.raises(TypeError):
        called({**PARAMS, name: None})
    with pytest.raises(TypeError):
        called(list(PARAMS.values()))


@pytest.mark.parametrize("leaf", range(13))
def test_bases(leaf: int) -> None:
    def with_base(base: Any) -> Any:
        return native.Noise((1, 2), [*BASES[:leaf], base, *BASES[leaf + 1 :]])

    for what, misfit, error in misfits(BASES[leaf]):
        if what.startswith("of shape"):
            noise = with_base(misfit)  # right or wrong depending on the model
            for call in ("score", "logits", "update", "votes"):
                with pytest.raises(ValueError, match=f"bases for {LEAVES[leaf]}"):
                    changed(call, "noise", noise)()
        else:
            with pytest.raises(error, match="bases"):
                with_base(misfit)
    for bases in (BASES[:-1], [*BASES, BASES[0]], []):
        with pytest.raises(ValueError, match=r"bases has .* it must have 13"):
            native.Noise((1, 2), bases)


@pytest.mark.parametrize("call", ["score", "logits", "nudge", "nudge_lanes"])
def test_bytes_outside_the_vocabulary(call: str) -> None:
    function, arguments = CALLS[call]
    for name in ("inputs", "targets"):
        if name in arguments:
            for place in (0, 7, 14):
                for byte in (11, 255):
                    outside = TOKENS.copy()
                    outside.flat[place] = byte
                    with pytest.raises(ValueError, match=f"{name} holds byte {byte}; it must be below"):
                        function(**{**arguments, name: outside})


@pytest.mark.parametrize(
    ("call", "argument", "value", "error", "match"),
    [
        ("score", "targets", None, ValueError, "targets is None; it must be an array"),
        ("score", "threads", -1, ValueError, "threads is .*; it must be 0 to 4096"),
        ("score", "threads", 4097, ValueError, "threads is .*; it must be 0 to 4096"),
        ("score", "threads", 2**31 - 1, ValueError, "threads is .*; it must be 0 to 4096"),
        ("score", "threads", 2**40, TypeError, ""),
        ("score", "threads", 1.5, TypeError, ""),
        ("score", "block", -1, ValueError, "block is -1; it must not be negative"),
        ("score", "block", 2**40, TypeError, ""),
        ("score", "first_member", -1, TypeError, ""),
        ("score", "first_member", 2**62, ValueError, "first_member is 4611686018427387904; it must be below 2\\^62"),
        ("score", "first_member", 2**64, TypeError, ""),
        ("score", "noise", "noise", TypeError, ""),
        ("score", "weights", PARAMS, TypeError, ""),
        ("score", "weights", None, TypeError, ""),
        ("nudge", "targets", None, TypeError, "targets is a NoneType; it must be a NumPy array"),
        ("nudge", "threads", -1, ValueError, "threads is .*; it must be 0 to 4096"),
        ("nudge", "block", -1, ValueError, "block is -1; it must not be negative"),
        (
            "nudge",
            "first_member",
            2**62,
            ValueError,
            "first_member is 4.*; it must be a multiple of 2 below 2\\^62",
        ),
        ("nudge", "first_member", 3, ValueError, "first_member is 3; it must be a multiple of 2 below 2\\^62"),
        ("nudge", "cohort", 4, ValueError, "cohort is 4; it must be 2 to 2"),
        ("nudge", "cohort", 1, ValueError, "cohort is 1; it must be 2 to 2"),
        ("nudge", "first_member", -1, TypeError, ""),
        ("nudge_lanes", "first_member", 2, ValueError, "first_member is 2; it must be a multiple of 4 below 2\\^62"),
        ("nudge_lanes", "first_member", 2**62, ValueError, "it must be a multiple of 4 below 2\\^62"),
        ("nudge_lanes", "cohort", 1, ValueError, "cohort is 1; it must be 2 to 128"),
        ("nudge_lanes", "cohort", 0, ValueError, "cohort is 0; it must be 2 to 128"),
        ("nudge_lanes", "cohort", -4, ValueError, "cohort is -4; it must be 2 to 128"),
        ("nudge_lanes", "cohort", 129, ValueError, "cohort is 129; it must be 2 to 128"),
        ("nudge_lanes", "cohort", 2, ValueError, "states .* it must"),
        ("nudge_lanes", "antithetic", True, ValueError, "cohort is 4; it must be 2 to 2"),
        ("nudge", "nudge", 0, ValueError, "nudge is 0; it must be 1 to 64"),
        ("nudge", "nudge", 65, ValueError, "nudge is 65; it must be 1 to 64"),
        ("nudge", "head_nudge", -1, ValueError, "head_nudge is -1; it must be 0 to 64"),
        ("nudge", "head_nudge", 65, ValueError, "head_nudge is 65; it must be 0 to 64"),
        ("nudge", "credit_decay", -1, ValueError, "credit_decay is -1; it must be 0 to 15"),
        ("nudge", "credit_decay", 16, ValueError, "credit_decay is 16; it must be 0 to 15"),
        ("nudge", "key", (1,), TypeError, ""),
        ("nudge", "key", (1, 2**32), TypeError, ""),
        ("nudge", "weights", PARAMS, TypeError, ""),
        ("logits", "threads", -1, ValueError, "threads is .*; it must be 0 to 4096"),
        ("update", "noise", None, TypeError, ""),
        ("update", "bound", 2**63, TypeError, ""),
        ("update", "bound", 0.5, TypeError, ""),
        ("update", "threads", 5000, ValueError, "threads is .*; it must be 0 to 4096"),
        ("update", "isa", "sse9", ValueError, "sse9"),
        ("update", "isa", "naive", ValueError, "naive"),
        ("update", "reads", READS[:2], ValueError, "reads has 2 lanes; it must have a divisor of the 3 pairs"),
        ("update", "reads", READS[:0], ValueError, "reads has 0 lanes; it must have a divisor of the 3 pairs"),
        ("votes", "reads", READS[:2], ValueError, "reads has 2 lanes"),
        ("votes", "noise", None, TypeError, ""),
        ("votes", "isa", "sse9", ValueError, "sse9"),
    ],
)
def test_values(call: str, argument: str, value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match or None):
        changed(call, argument, value)()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"key": (1,)}, TypeError, ""),
        ({"key": (1, 2**32)}, TypeError, ""),
        ({"key": (-1, 2)}, TypeError, ""),
        ({"rank": 0}, ValueError, "rank is .*; it must be 1 to 4096"),
        ({"rank": 4097}, ValueError, "rank is .*; it must be 1 to 4096"),
        ({"sigma_shift": -5}, ValueError, "sigma_shift is .*; it must be -4"),
        ({"sigma_shift": 2**31}, TypeError, ""),
        ({"sigma_shift": 2**21}, ValueError, "sigma_shift is .*; it must be -4"),
        ({"num_perturbations": 3}, ValueError, "num_perturbations is 3; it must be even"),
        ({"num_perturbations": -2}, TypeError, ""),
    ],
)
def test_noise_values(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    native.Noise(key=(1, 2), bases=BASES)
    with pytest.raises(error, match=match or None):
        native.Noise(**{"key": (1, 2), "bases": BASES, **changes})


def test_peaks() -> None:
    wrong: list[dict[str, Any]] = [{"seconds": value} for value in (0.0, -1.0, float("nan"), 61.0)]
    for arguments in [*wrong, {"threads": -1}, {"isa": "naive"}]:
        with pytest.raises(ValueError):
            native.peak(**{"seconds": 0.01, "threads": 1, **arguments})
    assert native.peak(threads=1, seconds=0.01) > 0


def test_nothing_to_do() -> None:
    """No members, no tokens, no pairs: empty results, states as they were."""
    scores, states = native.score(WEIGHTS, TOKENS[:0], TOKENS[:0], STATES[:0], noise=NOISE)
    assert scores.shape == (0,) and states.shape == (0, 2, 6)
    nothing = np.zeros((3, 0), np.uint8)
    scores, states = native.score(WEIGHTS, nothing, nothing, STATES, noise=NOISE)
    assert (scores == 0).all() and np.array_equal(states, STATES)
    assert native.logits(WEIGHTS, nothing, STATES)[0].shape == (3, 0, 11)
    lanes = {"cohort": 4, "antithetic": False}
    for tokens, before, compared in (
        (TOKENS[:0], STATES[:0], {}),
        (TOKENS[:0], STATES[:0], lanes),
        (nothing, NUDGED["states"], {}),
        (nothing, NUDGED_LANES["states"], lanes),
    ):
        scores, states, *moments = native.nudge(
            WEIGHTS, tokens, tokens, before, key=(1, 2), input_products=True, **compared
        )
        assert (scores == 0).all() and len(scores) == len(before) and np.array_equal(states, before)
        assert not any(sums.any() for part in moments for sums in part.values())
    updated = native.update(PARAMS, NOISE, FITNESS[:0], 1)
    assert all(np.array_equal(updated[name], value) for name, value in PARAMS.items())


def test_results_too_large_to_be_made(tmp_path: Path) -> None:
    """Logits need 256 times the bytes of their inputs; here more than an address space has."""
    config = Config(n_layer=1, n_embd=1)
    members, tokens = 2**14, 2**25
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(members * tokens)  # a hole that needs no space
    inputs = np.memmap(tmp_path / "zeros", np.uint8, "r", shape=(members, tokens))
    with pytest.raises((MemoryError, ValueError)):
        native.logits(native.Weights(random_params(rng, config)), inputs, np.zeros((members, 1, 1), np.int8))


def test_the_engine_makes_arrays_contiguous() -> None:
    """Strided tokens and states, as validation cuts them, are copied before the kernels get them."""
    config = CONFIG.replace(engine="cpu", chunk=2**30, num_perturbations=2**30)
    engine = make_engine(config)
    params = {name: mx.array(value) for name, value in PARAMS.items()}
    states = np.asfortranarray(STATES)
    scored = engine.score(params, range(3), None, TOKENS[:, :-1], TOKENS[:, 1:], states)
    expected = kernels.naive_score(PARAMS, TOKENS[:, :-1].copy(), TOKENS[:, 1:].copy(), STATES)
    assert np.array_equal(scored.scores, expected[0]) and np.array_equal(scored.states, expected[1])
