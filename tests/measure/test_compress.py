"""Compression: exact on every engine, as small as the model's figure, and every damaged file is refused."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, evaluate, init_params
from nanoegg_mlx.core.params import Params, model_hash
from nanoegg_mlx.measure import compress as module
from nanoegg_mlx.measure import container
from nanoegg_mlx.measure.compress import compress, compress_stream, decompress
from tests.tiny import skilled_params
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(n_layer=1, n_embd=12, engine=ENGINES[-1])
PARAMS = init_params(CONFIG)
TEXT = bytes(pseudo_text(3000, 1))


SKILLED = skilled_params(CONFIG, TEXT)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("size", "lanes"), [(0, 0), (1, 0), (2, 7), (200, 0), (1500, 50), (300, 300)])
def test_round_trips_between_engines(size: int, lanes: int, engine: str) -> None:
    params, data = SKILLED, TEXT[:size]
    packed = compress(data, params, CONFIG, lanes)
    assert compress(data, params, CONFIG.replace(engine=engine), lanes) == packed
    for other in ENGINES:
        assert decompress(packed, params, CONFIG.replace(engine=other, threads=2)) == data
    count = struct.unpack_from("<I", packed, 48)[0] if size else 0
    assert count == (0 if size < 3 or lanes == 300 else lanes or 1)


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text longer than a block, in memory bounded by a block; the bytes are those of the format's page."""
    monkeypatch.setattr(module, "BLOCK", 700)
    monkeypatch.setattr(module, "LANE", 300)
    params, seen = SKILLED, []
    target = io.BytesIO()
    compress_stream(io.BytesIO(TEXT), target, params, CONFIG, progress=seen.append)
    assert seen == [700, 700, 700, 700, 200]
    packed = target.getvalue()
    assert decompress(packed, params, CONFIG) == TEXT
    magic, version, model = struct.unpack_from("<8sI32s", packed)
    assert (magic, version, model) == (bytes.fromhex("894547470D0A1A0A"), 1, model_hash(params, CONFIG))
    at, blocks = 44, []
    while size := struct.unpack_from("<I", packed, at)[0]:
        _, lanes, payload = struct.unpack_from("<3I", packed, at)
        assert struct.unpack_from("<I", packed, at + 12 + payload)[0] == zlib.crc32(packed[at : at + 12 + payload])
        assert sum(struct.unpack_from(f"<{lanes}I", packed, at + 12)) == payload - 4 * lanes
        blocks.append((size, lanes))
        at += 16 + payload
    assert blocks == [(700, 2)] * 4 + [(200, 1)]
    assert packed[at:] == bytes(4) + struct.pack("<Q", 3000) + hashlib.sha256(TEXT).digest()


def test_the_hash_of_a_model() -> None:
    config = Config(n_layer=1, n_embd=1)
    params = {name: mx.full(value.shape, -2, mx.int8) for name, value in init_params(config).items()}
    count = sum(value.size for value in params.values())
    head = b"nanoegg1" + b"\1\0\0\0" + b"\1\0\0\0" + b"\0\1\0\0"
    assert model_hash(params, config) == hashlib.sha256(head + b"\xfe" * count).digest()
    for name, value in params.items():
        changed = {**params, name: mx.full(value.shape, 3, mx.int8)}
        assert model_hash(changed, config) != model_hash(params, config)


@pytest.mark.parametrize("lanes", [1, 4, 25])
def test_size_is_the_exact_figure(lanes: int) -> None:
    """Of `evaluate` on rows that are the lanes: 0.1 % and 64 bytes a lane."""
    params, data = SKILLED, TEXT
    rows = np.frombuffer(data, np.uint8).reshape(lanes, -1)
    tokens = np.concatenate([np.zeros((lanes, 1), np.uint8), rows], axis=1)
    exact = evaluate(params, tokens.reshape(-1), CONFIG.replace(validation_batch_size=lanes))
    assert exact.tokens == len(data)
    wanted = exact.exact_bits_per_byte * len(data) / 8
    payload = struct.unpack_from("<I", compress(data, params, CONFIG, lanes), 52)[0]
    assert wanted < len(data) * 0.9
    assert wanted < payload < 1.001 * wanted + 64 * lanes
    assert payload - wanted < 8 * lanes + 0.0005 * wanted, "a lane costs about 6 bytes"


def test_random_bytes_are_stored() -> None:
    data = np.random.default_rng(1).bytes(20_000)
    packed = compress(data, PARAMS, CONFIG)
    assert len(packed) == len(data) + 44 + 16 + 44 < 1.01 * len(data)
    assert decompress(packed, PARAMS, CONFIG) == data


@pytest.fixture(scope="module")
def small() -> bytes:
    packed = compress(TEXT[:120], SKILLED, CONFIG, 2)
    assert struct.unpack_from("<2I", packed, 44) == (120, 2)
    return packed


def refused(packed: bytes, params: Params | None = None, config: Config = CONFIG) -> str:
    with pytest.raises(InputError) as caught:
        decompress(packed, params or SKILLED, config, name="a.egg")
    message = str(caught.value)
    assert message.startswith("a.egg ") and message.endswith(".") and "\n" not in message
    return message


def test_every_flipped_bit_is_found(small: bytes) -> None:
    for at in range(len(small)):
        for bit in (1, 128) if at > 60 else (1, 2, 4, 8, 16, 32, 64, 128):
            damaged = bytearray(small)
            damaged[at] ^= bit
            refused(bytes(damaged))


def test_truncation_and_more(small: bytes) -> None:
    for size in range(len(small)):
        message = refused(small[:size])
        assert ("truncated" in message) == (size >= 8)
    assert "continues after its end" in refused(small + b"\0")
    assert "continues after its end" in refused(small + small)
    assert "is no compressed file of nanoegg" in refused(b"PK" + small)
    assert "has version 2 of the format; it must be 1" in refused(small[:8] + struct.pack("<I", 2) + small[12:])


def test_another_model(small: bytes) -> None:
    assert model_hash(PARAMS, CONFIG).hex()[:12] in refused(small, PARAMS)
    wider = CONFIG.replace(n_embd=13)
    assert model_hash(SKILLED, CONFIG).hex()[:12] in refused(small, init_params(wider), wider)


def sealed(size: int, lanes: int, payload: bytes, text: bytes = b"") -> bytes:
    """A file of one block with a right checksum."""
    block = struct.pack("<3I", size, lanes, len(payload)) + payload
    head = struct.pack("<8sI32s", container.MAGIC, 1, model_hash(SKILLED, CONFIG))
    end = container.END.pack(0, len(text), hashlib.sha256(text).digest())
    return head + block + struct.pack("<I", zlib.crc32(block)) + end


def test_wrong_blocks_with_a_right_checksum() -> None:
    """Somebody else's program wrote them: no crash, and no more memory than a block needs."""
    numbers: Any = struct.pack
    assert "damaged" in refused(sealed(3, 0, b"ab", b"ab"))
    assert "damaged" in refused(sealed(3, 4, numbers("<4I", 0, 0, 0, 0)))
    assert "damaged" in refused(sealed(3, 2, numbers("<I", 0)))
    assert "damaged" in refused(sealed(3, 2, numbers("<2I", 0, 1)))
    assert "damaged" in refused(sealed(3, 2, numbers("<2I", 2**32 - 1, 1) + b""))
    assert "damaged" in refused(sealed(3, 1, numbers("<I", 30) + bytes(30)))
    assert "damaged" in refused(sealed((1 << 24) + 1, 1, numbers("<I", 0)))
    assert "damaged" in refused(sealed(70_000, 65_537, bytes(4 * 65_537)))
    # Any streams have a text, whose hash is wrong.
    assert "damaged" in refused(sealed(30, 3, numbers("<3I", 2, 0, 3) + b"abcde"))
    assert decompress(sealed(2, 0, b"ab", b"ab"), SKILLED, CONFIG) == b"ab"


def test_reading_from_a_pipe(small: bytes) -> None:
    """One that returns a few bytes at a time."""

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size, 5) if size is not None and size > 0 else size)

    text = io.BytesIO()
    module.decompress_stream(Pipe(small), text, SKILLED, CONFIG, "a.egg")
    assert text.getvalue() == TEXT[:120]


def test_mistakes() -> None:
    for lanes in (-1, 65_537):
        with pytest.raises(InputError, match=f"lanes is {lanes}; it must be from 0 to 65536"):
            compress(b"abc", PARAMS, CONFIG, lanes)
    narrow = CONFIG.replace(vocab_size=200)
    for call in (compress, decompress):
        with pytest.raises(InputError, match="vocab_size is 200; it must be 256"):
            call(b"abc", init_params(narrow), narrow)
        with pytest.raises(InputError, match="n_embd = 13"):
            call(b"abc", PARAMS, CONFIG.replace(n_embd=13))
