"""The exported C: the oracle's bits with every compiler, no warning, memory as stated, and damaged files refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
from itertools import takewhile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Sampling, evaluate, generate, init_params
from nanoegg_mlx.core.params import model_hash
from nanoegg_mlx.measure.export_c import c_source, memory
from nanoegg_mlx.measure.sample import power_table
from tests import compressed
from tests.damage import damage
from tests.measure.c_models import (
    SANITIZERS,
    WARNINGS,
    Model,
    build,
    check,
    compile_c,
    random_model,
    random_text,
    run,
)
from tests.traces import ENGINES

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
MODEL = random_model(2, 13, seed=11)
TEXT = random_text(400, seed=3)


def compiler(name: str) -> str:
    """The compiler's name; skips the test where it is missing."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of MODEL, under the sanitizers."""
    return build(tmp_path_factory.mktemp("program"), MODEL, [compiler("gcc")], *SANITIZERS)


def refused(program: Path, *arguments: str, given: bytes = b"") -> str:
    """The one sentence of a command that ends with exit code 2."""
    done = subprocess.run([program, *arguments], input=given, capture_output=True)
    error = done.stderr.decode()
    assert done.returncode == 2, (done.returncode, error)
    assert re.fullmatch(r"error: [^\n]+\.\n", error), error
    return error


@pytest.mark.parametrize(("n_layer", "n_embd"), [(1, 1), (3, 2), (1, 65)])
def test_results_under_the_sanitizers(tmp_path: Path, n_layer: int, n_embd: int) -> None:
    """`python -m tests.measure.c_models` does this for all widths."""
    model = random_model(n_layer, n_embd)
    check([build(tmp_path, model, [compiler("gcc")], *SANITIZERS)], model, 90)


MACHINES = [
    ("gcc", ["-O2", "-funsigned-char"], None),
    ("clang", ["-O2"], None),
    ("aarch64-linux-gnu-gcc", ["-O2", "-static"], "qemu-aarch64"),
    ("arm-linux-gnueabihf-gcc", ["-O2", "-static"], "qemu-arm"),
]


@pytest.mark.parametrize(("name", "options", "emulator"), MACHINES, ids=lambda value: str(value))
def test_results_of_every_compiler(tmp_path: Path, name: str, options: list[str], emulator: str | None) -> None:
    """No warning, and the same logits, figures, samples and compressed bytes."""
    program: list[str | Path] = [compiler(emulator)] if emulator else []
    program.append(build(tmp_path, MODEL, [compiler(name)], *WARNINGS, *options))
    check(program, MODEL, 120)
    assert run(program, "sample", "ae", "60", "5") == sampled(MODEL, b"ae", 60, 5)
    compile_c(tmp_path, [name], "alone", MODEL.source(), *WARNINGS, *options, "-c")


def test_clang_for_other_processors(tmp_path: Path) -> None:
    """No warning where clang is the cross-compiler, without a system's headers."""
    for target in ("aarch64-none-elf", "arm-none-eabihf", "thumbv7em-none-eabi"):
        cross = [compiler("clang"), f"--target={target}", "-ffreestanding"]
        compile_c(tmp_path, cross, "model", MODEL.source(), *WARNINGS, "-O2", "-c")


@pytest.mark.parametrize("shape", [(1, 64), (3, 11)])
def test_memory_on_cortex_m(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Flash, static RAM and stack stay within what the command prints; nothing is needed from a library."""
    cross = [compiler("arm-none-eabi-gcc"), "-mcpu=cortex-m4", "-mthumb", "-ffreestanding"]
    model = random_model(*shape)
    claim = memory(model.config)
    compile_c(tmp_path, cross, "model", model.source(), *WARNINGS, "-Os", "-fstack-usage", "-c")
    text, data, bss = map(int, tool(tmp_path, "arm-none-eabi-size").splitlines()[1].split()[:3])
    assert claim.weights < text < claim.flash and data == bss == 0
    frames = [line.split("\t") for line in (tmp_path / "model.su").read_text().splitlines()]
    assert all(kind == "static" for _, _, kind in frames)
    size = {place.split(":")[-1]: int(frame) for place, frame, _ in frames}
    deepest = size["egg_step"] + max(size.get(name, 0) for name in ("egg_product", "egg_norm"))
    deepest += size.get("egg_layer", 0)
    assert 6 * model.config.n_embd < deepest < claim.stack
    assert max(size.values()) <= max(size["egg_step"], size.get("egg_layer", 0), 64)
    if shape == (1, 64):
        assert claim.weights == 82_240 and claim.ram < 2048
    missing = {line.split()[-1] for line in tool(tmp_path, "arm-none-eabi-nm", "-u").splitlines()}
    assert missing <= {"__aeabi_uldivmod", "__aeabi_llsl", "__aeabi_llsr", "memcpy", "memset"}


def tool(folder: Path, *command: str) -> str:
    done = subprocess.run([*command, "model.o"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def sampled(model: Model, prompt: bytes, size: int, seed: int) -> bytes:
    config = model.config.replace(engine=ENGINES[-1])
    return bytes(takewhile(bool, generate(model.params, config, prompt, size, Sampling(seed=seed))))


def test_samples(program: Path) -> None:
    """The bytes of `nanoegg sample --raw`: 500 at seed 0 by default, up to a 0 byte."""
    lengths = set()
    for seed in (0, 1, 2**32 + 5, 2**64 - 1):
        text = run([program], "sample", b"\x02ae\xff", "120", str(seed))
        assert text == sampled(MODEL, b"\x02ae\xff", 120, seed)
        lengths.add(len(text))
    assert min(lengths) < 120
    assert run([program], "sample") == sampled(MODEL, b"", 500, 0)
    assert run([program], "sample", "a", "0") == b""


def test_weights_of_probabilities() -> None:
    """The sixteen powers are those that `nanoegg sample` uses."""
    numbers = re.search(r"powers\[16\] = \{([\d,\s]*)\}", MODEL.source())
    assert numbers and [int(number) for number in numbers[1].split(",")] == power_table(1.0)[:16].tolist()


@pytest.mark.parametrize("text", [b"\0", b"a", bytes(range(256)), TEXT])
def test_bits(program: Path, text: bytes) -> None:
    """The integer figure of `nanoegg eval FILE --rows 1`."""
    config = MODEL.config.replace(validation_batch_size=1)
    figure = evaluate(MODEL.params, np.frombuffer(b"\0" + text, np.uint8), config).bits_per_byte
    assert run([program], "bits", given=text) == f"{figure:.4f}\n".encode()


def test_ties_round_as_in_python(program: Path) -> None:
    """Figures halfway between two of four decimals are common: a text of 400 bytes has 6400ths."""
    up = [f"{(2 * n + 1) / 20000:.4f}" != f"{n // 10000}.{n % 10000:04}" for n in range(200_000)]
    assert run([program], "ties") == bytes(up) and 0.4 < sum(up) / len(up) < 0.6


def test_the_range_coder_on_extreme_distributions(program: Path) -> None:
    """Many carries, runs of 255 and of 0, and frequencies at both ends."""
    random = np.random.default_rng(5)
    logits = random.choice(np.array([-127, -100, 0, 126, 127], np.int8), (6000, 256), p=[0.9, 0.06, 0.02, 0.01, 0.01])
    logits[::3] = random.integers(-127, 128, (2000, 256))
    chosen = random.integers(0, 256, 6000)
    chosen[:3000] = logits[:3000].argmax(axis=1)
    records = np.concatenate([logits, chosen[:, None].astype(np.int8)], axis=1)
    encoder = compressed.Encoder()
    for row, byte in zip(logits.astype(int) + 128, chosen.tolist(), strict=True):
        encoder.encode(compressed.oracle.EXP2[row].tolist(), byte)
    assert run([program], "coded", given=records.tobytes()) == encoder.end()


def test_the_twin_decodes(program: Path) -> None:
    """The twin's decoder, which follows the specification of the format, reads what the program writes."""
    text = run([program], "sample", "", "400", "1")
    packed = run([program], "compress", given=text)
    size, lanes, payload, stream = np.frombuffer(packed, "<u4", 4, 44).tolist()
    assert (size, lanes, payload) == (len(text), 1, stream + 4) and stream < len(text)
    assert compressed.decode_lane(MODEL.arrays, MODEL.config, packed[60 : 60 + stream], size) == text


def test_blocks(tmp_path: Path) -> None:
    """Blocks of 65,536 bytes, stored where they would not shrink; every number of lanes; an empty text."""
    model = random_model(1, 1)
    program = build(tmp_path, model, [compiler("gcc")], "-O1", "-fsanitize=address")
    noise = np.random.default_rng(1).integers(0, 256, 65_600).astype(np.uint8).tobytes()
    packed = run([program], "compress", given=noise)
    assert packed == compressed.pack(model.arrays, model.config, [(noise[:65536], 0), (noise[65536:], 0)])
    assert run([program], "decompress", given=packed) == noise
    assert run([program], "compress") == compressed.pack(model.arrays, model.config, [])
    assert run([program], "decompress", given=run([program], "compress")) == b""
    parts = [(TEXT[:lanes], lanes) for lanes in (1, 2, 77)] + [(TEXT, 7), (TEXT[:50], 0)]
    packed = compressed.pack(model.arrays, model.config, parts)
    assert run([program], "decompress", given=packed) == b"".join(text for text, _ in parts)
    # The most lanes that a block may have, of one byte each: a stream of nothing decodes to the same byte everywhere.
    text = compressed.decode_lane(model.arrays, model.config, b"", 1) * 65536
    file = compressed.MAGIC + model_hash(model.params, model.config) + compressed.block(text, [b""] * 65536)
    file += bytes(4) + (65536).to_bytes(8, "little") + hashlib.sha256(text).digest()
    assert run([program], "decompress", given=file) == text


def test_refused_files(program: Path) -> None:
    packed = compressed.pack(MODEL.arrays, MODEL.config, [(TEXT[:60], 4), (TEXT[:20], 0)])
    other = compressed.pack(random_model(2, 13, seed=1).arrays, MODEL.config, [])

    def problem(content: bytes) -> str:
        return refused(program, "decompress", given=content)

    assert "must begin with the bytes 89 45 47 47" in problem(b"") and "must begin with" in problem(TEXT)
    assert "version" in problem(packed[:8] + b"\2" + packed[9:]) and "another model" in problem(other)
    assert "bytes follow its end" in problem(packed + b"\0")
    assert "the SHA-256 of the text differs" in problem(packed[:-1] + bytes([packed[-1] ^ 1]))
    for sizes in [(2**24 + 1, 1, 4), (5, 6, 24), (5, 0, 4), (5, 2, 7), (70_000, 65_537, 2**31), (1, 0, 0)]:
        head = b"".join(size.to_bytes(4, "little") for size in sizes)
        assert "sizes of a block are impossible" in problem(packed[:44] + head + bytes(999))
    lanes = packed[:56] + (2**32 - 1).to_bytes(4, "little") + packed[60:]
    assert "sizes of a block's lanes" in problem(lanes)
    for size in (*range(8, 60, 7), 61, 75, 130, len(packed) - 33, len(packed) - 1):
        assert "it ends too early" in problem(packed[:size])


def test_damaged_files_under_the_sanitizers(program: Path) -> None:
    """One flipped bit anywhere is found; other damage ends in a sentence too."""
    first = compressed.pack(MODEL.arrays, MODEL.config, [(TEXT[:60], 4)])
    packed = compressed.pack(MODEL.arrays, MODEL.config, [(TEXT[:60], 4), (TEXT[:20], 0)])
    blocks = (44, len(first) - 44)

    def quick(content: bytes) -> bool:
        """Whether no block states a text of a megabyte, which a stream of zeros could be."""
        return not any(10**5 < int.from_bytes(content[at : at + 4], "little") <= 2**24 for at in blocks)

    random = Random(4)
    cases = []
    for place in random.sample(range(len(packed)), 40):
        flipped = bytearray(packed)
        flipped[place] ^= 1 << random.randrange(8)
        cases.append(bytes(flipped))
    cases += [damage(packed, "binary", random) for _ in range(40)]
    cases = [case for case in cases if case != packed and quick(case)]
    assert len(cases) > 60
    for case in cases:
        refused(program, "decompress", given=case)


def test_refused_commands(program: Path) -> None:
    for arguments in ([], ["train"], ["bits", "x"], ["compress", "x"], ["sample", "a", "1", "2", "3"]):
        assert "must be sample [PROMPT] [BYTES] [SEED], bits, compress or decompress" in refused(program, *arguments)
    for number in ("", "-1", "1x", "18446744073709551616", "99999999999999999999"):
        assert "BYTES is no number of bytes; it must be" in refused(program, "sample", "a", number)
        assert "SEED is no seed; it must be" in refused(program, "sample", "a", "1", number)
    assert "Standard input is empty" in refused(program, "bits")
    for command in ("compress", "sample"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([program, command], input=b"abc", stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"error: Standard output cannot be written.\n")
    folder = os.open("/", os.O_RDONLY)
    for command in ("bits", "compress", "decompress"):
        done = subprocess.run([program, command], stdin=folder, capture_output=True)
        assert (done.returncode, done.stderr) == (2, b"error: Standard input cannot be read.\n")
    os.close(folder)


def test_the_examples_of_the_documentation(tmp_path: Path) -> None:
    """They compile beside the exported file: with all of it, and with its declarations only."""
    sample, message = re.findall(r"```c\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "model.c").write_text(MODEL.source())
    expected = sampled(MODEL, b"def ", 80, 1)
    assert run([compile_c(tmp_path, [compiler("gcc")], "sample", sample, *WARNINGS)]) == expected
    assert run([compile_c(tmp_path, ["gcc"], "message", message, *WARNINGS)]) == b"return self"
    compile_c(tmp_path, ["gcc"], "declared", "#define EGG_HEADER\n" + sample, *WARNINGS, "-c")
    compile_c(tmp_path, ["gcc"], "alone", MODEL.source(), *WARNINGS, "-c")
    subprocess.run(["gcc", "declared.o", "alone.o", "-o", "parts"], cwd=tmp_path, check=True)
    assert run([tmp_path / "parts"]) == expected


def test_models_that_are_not_for_texts() -> None:
    config = Config(n_layer=1, n_embd=4, vocab_size=255, population=2)
    with pytest.raises(InputError, match="vocab_size is 255; it must be 256"):
        c_source(init_params(config), config, "")
    with pytest.raises(InputError, match="shape of parameter"):
        c_source(MODEL.params, dataclasses.replace(MODEL.config, n_embd=12), "")
