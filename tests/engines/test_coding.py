"""Compression on each engine and instruction set: the same streams, the same text from each other's, and any bytes."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config
from nanoegg_mlx.core.range_coder import Decoder, Encoder, cumulative
from nanoegg_mlx.engines import make_engine
from tests import oracle
from tests.engines.inputs import ISAS, native, random_params
from tests.traces import pseudo_text

CONFIG = Config(n_layer=2, n_embd=20)
SIZES = [(37 * (lane + 1) // 5) - 37 * lane // 5 for lane in range(5)]


def lanes_of(text: bytes, count: int) -> list[bytes]:
    return [text[len(text) * lane // count : len(text) * (lane + 1) // count] for lane in range(count)]


def as_mlx(params: dict[str, np.ndarray]) -> dict[str, Any]:
    import mlx.core as mx

    return {name: mx.array(value) for name, value in params.items()}


def predicted(params: dict[str, np.ndarray], read: bytes) -> list[int]:
    """The cumulative frequencies after these bytes, by the oracle."""
    state = np.zeros((CONFIG.n_layer, CONFIG.n_embd), np.int64)
    for byte in read:
        logits, state = oracle.forward(params, None, 0, state, byte)
    return np.cumsum([0, *(oracle.exp2(int(l) + 128) for l in logits)]).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_streams_equal_the_definition(seed: int) -> None:
    """Models of extreme weights, text with zero bytes: streams of the definition, coded with the oracle's predictions,
    on every engine and instruction set; and each decodes them."""
    rng = np.random.default_rng(seed)
    params = random_params(rng, CONFIG)
    wide = {name: value.astype(np.int64) for name, value in params.items()}
    text = bytes(pseudo_text(30, 1)) + bytes(rng.integers(0, 256, 7, np.uint8))
    lanes, streams = lanes_of(text, 5), []
    for lane in lanes:
        encoder = Encoder()
        for t, byte in enumerate(lane):
            encoder.put(byte, predicted(wide, b"\0" + lane[:t]))
        streams.append(encoder.finish())
    assert [len(lane) for lane in lanes] == SIZES
    mlx = make_engine(CONFIG.replace(engine="mlx", chunk=2))
    assert mlx.encode(as_mlx(params), lanes) == streams
    assert mlx.decode(as_mlx(params), streams, SIZES) == lanes
    for number, isa in enumerate(ISAS):
        weights = native.Weights(params, isa=isa)
        for threads, block in ((1, 0), (2, 2), (3, 3 + number)):
            assert native.encode(weights, lanes, threads, block) == streams, isa
            assert native.decode(weights, streams, SIZES, threads, block) == lanes, isa


def test_any_bytes_are_a_stream_of_some_text() -> None:
    """Random, empty, short and long streams, of ones and of zeros: the same text everywhere, and no harm."""
    rng = np.random.default_rng(7)
    params = random_params(rng, CONFIG)
    streams = [b"", b"\0", b"\xff", b"\xff" * 200, rng.bytes(3), rng.bytes(8), rng.bytes(9), rng.bytes(100)]
    sizes = [12] * 4 + [13] * 4
    expected = make_engine(CONFIG.replace(engine="mlx")).decode(as_mlx(params), streams, sizes)
    assert [len(lane) for lane in expected] == sizes
    for isa in ISAS:
        assert native.decode(native.Weights(params, isa=isa), streams, sizes) == expected, isa


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_chooses(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = random_params(np.random.default_rng(3), CONFIG)
    lanes = lanes_of(bytes(pseudo_text(900, 2)), 20)
    whole = native.encode(native.Weights(params, isa=ISAS[0]), lanes)
    monkeypatch.setenv("NANOEGG_ISA", isa)
    engine = make_engine(CONFIG.replace(engine="cpu", threads=2))
    assert engine.encode(as_mlx(params), lanes) == whole
    assert engine.decode(as_mlx(params), whole, [len(lane) for lane in lanes]) == lanes
    assert os.environ["NANOEGG_ISA"] == isa


def test_nothing() -> None:
    weights = native.Weights(random_params(np.random.default_rng(1), CONFIG))
    assert native.encode(weights, []) == [] and native.decode(weights, [], []) == []
    assert native.encode(weights, [b"", b""]) == [b"", b""] and native.decode(weights, [b"x", b""], [0, 0]) == [
        b"",
        b"",
    ]
    engine = make_engine(CONFIG.replace(engine="mlx"))
    params = as_mlx(random_params(np.random.default_rng(1), CONFIG))
    assert engine.encode(params, []) == [] and engine.decode(params, [b""], [0]) == [b""]


@pytest.mark.parametrize(
    ("call", "arguments", "error", "parts"),
    [
        ("encode", [["a"]], TypeError, ["lanes[0] is a str; it must be bytes."]),
        ("encode", [[b"a", None]], TypeError, ["lanes[1] is a NoneType"]),
        ("encode", [[b"a", b"abc"]], ValueError, ["sizes of the lanes are from 1 to 3", "differ by at most one"]),
        ("encode", [[bytes((1 << 24) + 1)]], ValueError, ["is 16777217", "0 to 16777216"]),
        ("encode", [[b"a"], 0, -1], ValueError, ["block is -1"]),
        ("encode", [[b"a"], -1], ValueError, ["threads is -1"]),
        ("decode", [[b"a"], [1, 2]], ValueError, ["sizes has 2 entries", "1 streams"]),
        ("decode", [[b"a"], [(1 << 64) - 1]], ValueError, ["9223372036854775807", "0 to 16777216"]),
        ("decode", [[b"a", b"b"], [0, 2]], ValueError, ["from 0 to 2"]),
        ("decode", [[b"a"], [-1]], TypeError, ["incompatible"]),
        ("decode", [[bytearray(b"a")], [1]], TypeError, ["streams[0] is a bytearray"]),
    ],
)
def test_arguments(call: str, arguments: list[Any], error: type[Exception], parts: list[str]) -> None:
    weights = native.Weights(random_params(np.random.default_rng(1), CONFIG))
    with pytest.raises(error) as caught:
        getattr(native, call)(weights, *arguments)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_other_vocabularies() -> None:
    weights = native.Weights(random_params(np.random.default_rng(1), CONFIG.replace(vocab_size=255)))
    for call in (lambda: native.encode(weights, [b"a"]), lambda: native.decode(weights, [b"a"], [1])):
        with pytest.raises(ValueError, match="vocab_size is 255; it must be 256"):
            call()


def test_carries_and_ends() -> None:
    """Two bytes of equal frequency that leave a number with many ones, which a carry turns into zeros; and streams end
    without zeros."""
    sums = cumulative(np.full(256, 0, np.int8)).tolist()
    assert sums[-1] == 256 * 4096
    rng = np.random.default_rng(5)
    carried = 0
    for trial in range(300):
        # A sharp distribution makes intervals that straddle a carry common.
        skewed = [0, *np.cumsum([1 << 20, *[16] * 254, 1 << 20]).tolist()]
        text = rng.choice([0, 1, 254, 255], 40, p=[0.4, 0.1, 0.1, 0.4]).tolist()
        encoder, written = Encoder(), b""
        for byte in text:
            before = bytes(encoder._written)
            encoder.put(byte, skewed if trial % 2 else sums)
            carried += bytes(encoder._written[: len(before)]) != before
        written = encoder.finish()
        assert not written.endswith(b"\0")
        decoder = Decoder(written)
        assert [decoder.get(skewed if trial % 2 else sums) for _ in text] == text
    assert carried > 10
