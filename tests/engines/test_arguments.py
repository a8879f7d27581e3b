"""Whatever is handed to the native functions: right, or one sentence. Never a crash, never a quiet conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.engines import make_engine
from tests.engines.inputs import TWINS, epoch_noise, native, numbers, random_params

CONFIG = Config(n_layer=2, n_embd=6, vocab_size=11)
rng = np.random.default_rng(1)
PARAMS = random_params(rng, CONFIG)
WEIGHTS = native.Weights(PARAMS)
NOISE = epoch_noise(CONFIG, 0)
TOKENS = rng.integers(0, 11, (3, 5)).astype(np.uint8)
STATES = numbers(rng, 3, 2, 6)
FITNESS = np.array([1, -1, 0], np.int8)
BASES = [np.arange(2 if leaf < 10 else 1, dtype=np.uint32) for leaf in range(13)]
LEAVES = list(PARAMS)


def row(size: int = 9, bound: int = 127) -> np.ndarray:
    return numbers(rng, size, bound=bound)


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "score": (native.score, {"weights": WEIGHTS, "inputs": TOKENS, "targets": TOKENS, "states": STATES}),
    "logits": (native.logits, {"weights": WEIGHTS, "inputs": TOKENS, "states": STATES}),
    "naive_score": (native.naive_score, {"params": PARAMS, "inputs": TOKENS, "targets": TOKENS, "states": STATES}),
    "update": (native.update, {"params": PARAMS, "noise": NOISE, "fitness": FITNESS, "bound": 3}),
    "votes": (native.votes, {"params": PARAMS, "noise": NOISE, "fitness": FITNESS}),
    "normals": (native.normals, {"m": np.array([0, 5, 2**23 - 1], np.uint32)}),
    "matmul": (
        native.matmul,
        {"w": row(40).reshape(8, 5), "x": row(15).reshape(3, 5), "b": row(30).reshape(3, 2, 5)}
        | {"a": row(48).reshape(3, 2, 8)},
    ),
    "products": (native.products, {"w": row(40).reshape(8, 5), "x": row(15).reshape(3, 5)}),
    "norm": (native.norm, {"x": row(), "w": row()}),
    "gate": (native.gate, {name: row() for name in ("fa", "fb", "bf", "h")}),
    "recur": (native.recur, {name: row() for name in ("ca", "cb", "bh", "fa", "h", "x")}),
    "move": (native.move, {"z": np.arange(9), "old": row(), "bound": 3}),
    "log_likelihood": (native.log_likelihood, {"logits": row(), "target": 4}),
}
FREE = {
    ("logits", "inputs", 1),
    ("update", "fitness", 0),
    ("votes", "fitness", 0),
    ("normals", "m", 0),
    ("products", "w", 0),
    ("products", "x", 0),
    ("log_likelihood", "logits", 0),
}
"""Axes that may have another length, all else being the same."""
DTYPES = ["bool", "i1", "u1", "i2", "<i4", "<u4", ">u4", "<i8", ">i8", "f2", "f4", "f8", "c8", "O", "S1", "M8[s]"]


def misfits(array: np.ndarray, free: Sequence[int] = ()) -> Iterator[tuple[str, Any, type[Exception]]]:
    """What is not quite the array: what it is, itself, the exception it has to raise. `free` axes keep their length."""
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
            said = str(caught.value)
            assert any(f"{name} must" in said for name in arguments) and "\n" not in said, (argument, what, said)


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("call", ["naive_score", "update", "votes", "Weights"])
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
            noise = with_base(misfit)  # whose length only a model can tell
            for call in ("score", "logits", "naive_score", "update", "votes"):
                with pytest.raises(ValueError, match=f"bases for {LEAVES[leaf]}"):
                    changed(call, "noise", noise)()
        else:
            with pytest.raises(error, match="bases"):
                with_base(misfit)
    for bases in (BASES[:-1], [*BASES, BASES[0]], []):
        with pytest.raises(ValueError, match="bases must have 13 arrays"):
            native.Noise((1, 2), bases)


@pytest.mark.parametrize("call", ["score", "logits", "naive_score"])
def test_bytes_outside_the_vocabulary(call: str) -> None:
    function, arguments = CALLS[call]
    for name in ("inputs", "targets"):
        if name in arguments:
            for place in (0, 7, 14):
                for byte in (11, 255):
                    outside = TOKENS.copy()
                    outside.flat[place] = byte
                    with pytest.raises(ValueError, match=f"{name} holds byte {byte}, the vocabulary has 11"):
                        function(**{**arguments, name: outside})


@pytest.mark.parametrize(
    ("call", "argument", "value", "error", "match"),
    [
        ("score", "targets", None, ValueError, "targets must be given"),
        ("score", "threads", -1, ValueError, "threads must be 0 to 4096"),
        ("score", "threads", 4097, ValueError, "threads must be 0 to 4096"),
        ("score", "threads", 2**31 - 1, ValueError, "threads must be 0 to 4096"),
        ("score", "threads", 2**40, TypeError, ""),
        ("score", "threads", 1.5, TypeError, ""),
        ("score", "block", -1, ValueError, "block must not be negative"),
        ("score", "block", 2**40, TypeError, ""),
        ("score", "group_size", 0, ValueError, "group_size must be at least 1"),
        ("score", "group_size", -1, TypeError, ""),
        ("score", "group_size", 2**63, ValueError, "inputs must have shape"),
        ("score", "first_member", -1, TypeError, ""),
        ("score", "first_member", 2**62, ValueError, "first_member is too large"),
        ("score", "first_member", 2**64, TypeError, ""),
        ("score", "noise", "noise", TypeError, ""),
        ("score", "weights", PARAMS, TypeError, ""),
        ("score", "weights", None, TypeError, ""),
        ("logits", "threads", -1, ValueError, "threads must be 0 to 4096"),
        ("update", "noise", None, TypeError, ""),
        ("update", "bound", 2**63, TypeError, ""),
        ("update", "bound", 0.5, TypeError, ""),
        ("update", "threads", 5000, ValueError, "threads must be 0 to 4096"),
        ("update", "isa", "sse9", ValueError, "sse9"),
        ("update", "isa", "naive", ValueError, "naive"),
        ("votes", "noise", None, TypeError, ""),
        ("votes", "isa", "sse9", ValueError, "sse9"),
        ("normals", "m", np.array([2**23], np.uint32), ValueError, "m must be below 2\\^23"),
        ("matmul", "shift", -1, ValueError, "shift must be 0 to 31"),
        ("matmul", "shift", 32, ValueError, "shift must be 0 to 31"),
        ("matmul", "a", None, TypeError, "a must be"),
        ("matmul", "b", np.zeros((3, 0, 5), np.int8), ValueError, "a must have shape"),
        ("matmul", "x", np.zeros((0, 5), np.int8), ValueError, "x must have 1 to"),
        ("matmul", "w", np.zeros((0, 5), np.int8), ValueError, "w must have 1 to"),
        ("products", "x", np.zeros((0, 5), np.int8), ValueError, "x must have 1 to"),
        ("products", "w", np.zeros((8, 0), np.int8), ValueError, "w must have 1 to"),
        ("products", "w", np.zeros((1, 65537), np.int8), ValueError, "w must have 1 to"),
        ("norm", "x", np.zeros(0, np.int8), ValueError, "x must have 1 to"),
        ("norm", "x", np.zeros(16385, np.int8), ValueError, "x must have 1 to"),
        ("gate", "fa", np.zeros(0, np.int8), ValueError, "fa must have 1 to"),
        ("recur", "ca", np.zeros(0, np.int8), ValueError, "ca must have 1 to"),
        ("log_likelihood", "logits", np.zeros(0, np.int8), ValueError, "logits must have 1 to 256"),
        ("log_likelihood", "logits", np.zeros(257, np.int8), ValueError, "logits must have 1 to 256"),
        ("log_likelihood", "target", 9, ValueError, "target must be an index"),
        ("log_likelihood", "target", -1, ValueError, "target must be an index"),
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
        ({"rank": 0}, ValueError, "rank must be 1 to 4096"),
        ({"rank": 4097}, ValueError, "rank must be 1 to 4096"),
        ({"sigma_shift": -5}, ValueError, "sigma_shift must be -4"),
        ({"sigma_shift": 2**31}, TypeError, ""),
        ({"sigma_shift": 2**21}, ValueError, "sigma_shift must be -4"),
        ({"num_perturbations": 3}, ValueError, "num_perturbations must be even"),
        ({"num_perturbations": -2}, TypeError, ""),
    ],
)
def test_noise_values(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    native.Noise(key=(1, 2), bases=BASES)
    with pytest.raises(error, match=match or None):
        native.Noise(**{"key": (1, 2), "bases": BASES, **changes})


@pytest.mark.parametrize("isa", TWINS)
def test_draws_outside_the_sequence(isa: str) -> None:
    for start, count, error in [
        (2**32 - 1, 2, ValueError),
        (0, 2**32 + 1, ValueError),
        (1, 2**64 - 1, ValueError),
        (2**32, 1, TypeError),
        (-1, 1, TypeError),
        (0, -1, TypeError),
        (0, 2**64, TypeError),
    ]:
        with pytest.raises(error):
            native.draw((1, 2), start, count, isa=isa)


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
    moved, counts = native.update(PARAMS, NOISE, FITNESS[:0], 1)
    assert all(np.array_equal(moved[name], value) for name, value in PARAMS.items()) and not any(counts.values())


def test_results_too_large_to_be_made() -> None:
    """Logits of members that share a long lane may need more bytes than there are."""
    states = np.zeros((2**20, 2, 6), np.int8)
    with pytest.raises((MemoryError, ValueError)):
        native.logits(WEIGHTS, np.zeros((1, 2**25), np.uint8), states, group_size=2**20)


def test_the_engine_hands_over_what_it_gets() -> None:
    """Strided tokens and states, as validation cuts them, are laid out before the kernels see them."""
    config = CONFIG.replace(engine="cpu", chunk=2**30, num_perturbations=2**30)
    engine = make_engine(config)
    params = {name: mx.array(value) for name, value in PARAMS.items()}
    states = np.asfortranarray(STATES)
    scored = engine.score(params, range(3), None, TOKENS[:, :-1], TOKENS[:, 1:], states)
    expected = native.naive_score(PARAMS, TOKENS[:, :-1].copy(), TOKENS[:, 1:].copy(), STATES)
    assert np.array_equal(scored.scores, expected[0]) and np.array_equal(scored.states, expected[1])
