"""Sampling: exact weights, a distribution that is the model's, the same bytes on all engines, and printable text."""

from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, init_params
from nanoegg_mlx.cli import main
from nanoegg_mlx.engines import make_engine
from nanoegg_mlx.measure.sample import Sampling, _draws, choose, generate, power_table, readable, text_of, weights
from nanoegg_mlx.store import checkpoint
from tests import oracle
from tests.tiny import resume, train, work_in
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(n_layer=2, n_embd=20, population=2)
RANDOM = np.random.default_rng(1)
LOGITS = RANDOM.integers(-127, 128, 256).astype(np.int8)


def take(count: int, *arguments: Any, **options: Any) -> bytes:
    return bytes(itertools.islice(generate(*arguments, **options), count))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.7, 3.0, 1e300, 1e-300, 5e-324])
def test_weights_are_exact(temperature: float) -> None:
    """floor(2^(40 - i / (16 temperature))), computed again with three times the digits."""
    table = power_table(temperature)
    assert table.shape == (256,) and table[0] == 2**40 and (np.diff(table) <= 0).all()
    for i in range(256):
        with localcontext() as context:
            context.prec = 200
            exponent = 40 - Decimal(i) / (16 * Decimal(temperature))
            exact = Decimal(2) ** exponent if exponent > -10 else Decimal(0)
        assert table[i] == int(exact)


def test_weights_at_temperature_one_are_roots_of_two() -> None:
    """In whole numbers: w^16 <= 2^(640 - i) < (w + 1)^16."""
    for i, weight in enumerate(power_table(1.0).tolist()):
        assert weight**16 <= 2 ** (640 - i) < (weight + 1) ** 16


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=2.5), Sampling(top_k=20), Sampling(min_p=0.3)])
def test_the_distribution(sampling: Sampling) -> None:
    """Chi-square of 20000 draws against the probabilities in real arithmetic, at a fixed seed."""
    size = 20_000
    exact = np.exp2((LOGITS.astype(float) - LOGITS.max()) / 16)
    kept = np.full(256, True)
    if sampling.top_k:
        kept[np.argsort(-exact, kind="stable")[sampling.top_k :]] = False
    if sampling.min_p:
        kept = exact >= sampling.min_p
    exact = np.where(kept, exact ** (1 / sampling.temperature), 0)
    expected = size * exact / exact.sum()
    draws = _draws(7, 0)
    counts = np.bincount([choose(LOGITS, sampling, draws) for _ in range(size)], minlength=256)
    assert counts[~kept].sum() == 0
    rare = expected < 5
    observed, wanted = counts[~rare], expected[~rare]
    if expected[rare].sum() >= 5:
        observed, wanted = np.append(observed, counts[rare].sum()), np.append(wanted, expected[rare].sum())
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal.
    z = ((chi_square / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert abs(z) < 3


@pytest.mark.parametrize("draw", [0, 1, 2**64 - 1, 2**63, 123456789 << 30])
def test_a_draw_selects_by_cumulative_weights(draw: int) -> None:
    weight = weights(LOGITS, Sampling())
    place = Fraction(draw, 2**64) * int(weight.sum())
    below = np.append(0, np.cumsum(weight)).tolist()
    token = choose(LOGITS, Sampling(), iter([draw]))
    assert below[token] <= place < below[token + 1]


def test_draws_are_uniform_and_differ() -> None:
    """They differ by sample and seed; only its position decides a draw, not the size of blocks."""
    first = list(itertools.islice(_draws(3, 0), 1000))
    assert len(set(first)) == 1000 and max(first) >> 62 == 3 and min(first) >> 62 == 0
    assert abs(sum(first) / 1000 / 2**64 - 0.5) < 0.03
    assert not set(first) & set(itertools.islice(_draws(3, 1), 1000))
    assert not set(first) & set(itertools.islice(_draws(4, 0), 1000))
    assert list(itertools.islice(_draws(2**64 - 1, 0), 3)) == list(itertools.islice(_draws(2**64 - 1, 0), 700))[:3]


def test_draws_are_threefrys() -> None:
    """By the oracle's own Threefry: fold_in(fold_in(key(seed), 2), sample), words in the order high, low."""
    seed, sample = 2**40 + 5, 3
    key = oracle.fold_in(oracle.fold_in(oracle.make_key(seed), 2), sample)
    words = [oracle.threefry2x32(key, 0, i) for i in range(300)]
    expected = [int(high) << 32 | int(low) for high, low in words]
    assert list(itertools.islice(_draws(seed, sample), 300)) == expected


def test_top_k_takes_the_lower_bytes_among_equal_ones() -> None:
    logits = np.array([3, 5, 5, 1, 5, -127], np.int8)
    for k, kept in [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4]), (6, range(6)), (600, range(6))]:
        assert np.flatnonzero(weights(logits, Sampling(top_k=k))).tolist() == list(kept)
    assert (
        choose(logits, Sampling(temperature=0), iter([])) == choose(logits, Sampling(top_k=1), iter([2**64 - 1])) == 1
    )


def test_min_p_keeps_the_bound_itself() -> None:
    """Sixteen below the largest logit is half its probability, exactly; the temperature does not move the bound."""
    logits = np.array([100, 84, 83, 68, -127], np.int8)
    for p, kept in [(1.0, [0]), (0.5, [0, 1]), (0.25, [0, 1, 2, 3]), (0.25000001, [0, 1, 2]), (0.0, range(5))]:
        for temperature in (0.9, 1.0, 30.0):
            weight = weights(logits, Sampling(temperature=temperature, min_p=p))
            assert np.flatnonzero(weight).tolist() == list(kept)
    # At a low temperature, a byte below 2^-40 of the likeliest one is never taken.
    assert np.flatnonzero(weights(logits, Sampling(temperature=0.01))).tolist() == [0]
    both = weights(np.array([9, 9, 9, -50], np.int8), Sampling(top_k=2, min_p=0.9))
    assert np.flatnonzero(both).tolist() == [0, 1]


def test_both_engines_write_the_same_text() -> None:
    params = init_params(CONFIG)
    for sampling in (Sampling(seed=5), Sampling(temperature=0), Sampling(temperature=0.6, top_k=40, min_p=0.01)):
        texts = {take(300, params, CONFIG.replace(engine=engine), b"abc", None, sampling) for engine in ENGINES}
        assert len(texts) == 1
    # Recorded text: it must not change with the platform or the versions of libraries.
    assert take(12, params, CONFIG, b"Hello", None, Sampling(seed=1)).hex() == RECORDED
    assert take(9, params, CONFIG, b"", None, Sampling(seed=1), sample=1) != take(
        9, params, CONFIG, b"", None, Sampling(seed=1)
    )


RECORDED = "114b3c872c6d0e5989d92c6e"


def test_text_is_the_oracles() -> None:
    """Byte after byte from the naive model's logits and a plain cumulative sum; 0 bytes clear the state."""
    params, weights_of = init_params(CONFIG), oracle.init_params(CONFIG)
    sampling = Sampling(temperature=2.0, seed=9)
    state = np.zeros((2, 20), np.int64)
    draws = _draws(9, 4)
    read, expected = list(b"\0Hi\0"), []
    for _ in range(60):
        for token in read:
            logits, state = oracle.forward(weights_of, None, CONFIG.shift, state, token)
        logits = np.asarray(logits)
        table = power_table(2.0)
        weight = [int(table[max(logits) - l]) for l in logits]
        place, token = next(draws) * sum(weight) >> 64, 0
        while place >= weight[token]:
            place -= weight[token]
            token += 1
        expected.append(token)
        read = [token]
    assert take(60, params, CONFIG, b"Hi\0", None, sampling, sample=4) == bytes(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_of_an_engine(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at once or byte after byte: the oracle's logits and states."""
    monkeypatch.setattr("nanoegg_mlx.engines.mlx._WINDOW", 3)
    config = CONFIG.replace(engine=engine, chunk=2)
    params, weights_of = init_params(config), oracle.init_params(config)
    rows = pseudo_text(55, 3).reshape(5, 11)
    before = np.zeros((5, 2, 20), np.int8)
    logits, states = make_engine(config).logits(params, rows, before)
    assert logits.shape == (5, 11, 256) and logits.dtype == np.int8 and not before.any()
    for row in range(5):
        state = np.zeros((2, 20), np.int64)
        for t in range(11):
            expected, state = oracle.forward(weights_of, None, config.shift, state, int(rows[row, t]))
            assert np.array_equal(logits[row, t], expected)
        assert np.array_equal(states[row], state)


def test_how_many_bytes() -> None:
    params = init_params(CONFIG)
    for tokens in (0, 1, 7):
        assert len(list(generate(params, CONFIG, b"x", tokens))) == tokens


def test_a_prompt_outside_the_vocabulary() -> None:
    config = CONFIG.replace(vocab_size=100)
    params = init_params(config)
    assert max(take(50, params, config, b"ABC")) < 100
    with pytest.raises(InputError, match="byte of the prompt is 122; it must be at most 99, since vocab_size is 100"):
        generate(params, config, b"ABz")


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        ("é€😀".encode(), "é€😀"),
        (b"\xff\xc3(\xe2\x82", "��(�"),
        (b"\xed\xa0\x80", "���"),
        (b"\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        (b"a\0b\r\n\x7f", "a␀b␍\n␡"),
        ("\u009b31m\u202eabc\u2028\ufeff\ue000".encode(), "<U+009B>31m<U+202E>abc<U+2028><U+FEFF><U+E000>"),
    ],
)
def test_readable(content: bytes, shown: str) -> None:
    assert text_of(content) == shown
    assert not any(ord(c) < 32 and c not in "\n\t" for c in text_of(bytes(range(256))))


def test_characters_appear_when_they_are_complete() -> None:
    pieces = readable(iter("a€b".encode()))
    assert list(pieces) == ["a", "€", "b"]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a small run with samples in its log."""
    work_in(tmp_path, monkeypatch)
    config = CONFIG.replace(
        population=8, tokens_per_update=5, train="train.npy", valid="valid.npy", checkpoints="runs", name="t",
        num_epochs=4, validate_every=2, validation_batch_size=4, sample_bytes=30,
    )  # fmt: skip
    train(config)
    return "runs/t"


def test_samples_in_the_log(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One a validation, at temperature 1 and seed 0, in metrics.jsonl and on the terminal; results do not change."""
    opened = checkpoint.load(trained)
    lines = [json.loads(line) for line in Path(trained, "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "sample" in line] == [0, 2, 4]
    assert lines[-1]["sample"] == text_of(generate(opened.params, opened.config, tokens=30))

    train(opened.config.replace(sample_bytes=0, name="silent"))
    silent = checkpoint.load("runs/silent")
    for name, value in silent.params.items():
        assert np.array_equal(np.array(value), np.array(opened.params[name]))
    assert "sample" not in Path("runs/silent/metrics.jsonl").read_text()
    assert "  | " not in capsys.readouterr().err
    resume(Path("runs/silent"), {"sample_bytes": 10, "num_epochs": 6})
    line = json.loads(Path("runs/silent/metrics.jsonl").read_text().splitlines()[-1])
    assert "  | " + line["sample"].replace("\n", "\n  | ") in capsys.readouterr().err


def test_the_command(trained: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    opened = checkpoint.load(trained)
    options = ["--prompt=Grüße", "--tokens=40", "--temperature=1.5", "--seed=3", "--min-p=0.001"]
    sampling = Sampling(temperature=1.5, seed=3, min_p=0.001)
    capfdbinary.readouterr()

    def expected(sample: int, ignore_end: bool) -> bytes:
        content = take(40, opened.params, opened.config, "Grüße".encode(), None, sampling, sample=sample)
        return content if ignore_end else content.partition(b"\0")[0]

    assert main(["sample", trained, *options, "--ignore-end", "--raw"]) == 0
    assert capfdbinary.readouterr().out == expected(0, True)
    assert main(["sample", trained, *options, "--raw", "--count=3"]) == 0
    assert capfdbinary.readouterr().out == b"\0".join(expected(sample, False) for sample in range(3))
    assert main(["sample", trained, *options, "--count=2"]) == 0
    shown = "".join(f"[sample {n + 1} of 2]\n{text_of('Grüße'.encode() + expected(n, False))}\n" for n in range(2))
    assert capfdbinary.readouterr().out.decode() == shown


def test_a_document_ends_at_a_0_byte(trained: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Flat logits (temperature 1e9) bring a 0 byte within a few hundred bytes."""
    options = ["--tokens=3000", "--temperature=1e9", "--raw"]
    capfdbinary.readouterr()
    assert main(["sample", trained, *options, "--ignore-end"]) == 0
    whole = capfdbinary.readouterr().out
    assert len(whole) == 3000 and 0 in whole[:-1]
    assert main(["sample", trained, *options]) == 0
    assert capfdbinary.readouterr().out == whole[: whole.index(0)]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--temperature=-1"], ["temperature", "-1.0", "at least 0"]),
        (["--temperature=nan"], ["temperature", "nan"]),
        (["--temperature=inf"], ["temperature", "inf"]),
        (["--top-k=-1"], ["top_k", "-1", "at least 0"]),
        (["--min-p=1.5"], ["min_p", "1.5", "from 0 to 1"]),
        (["--seed=-1"], ["seed", "-1", "18446744073709551615"]),
        (["--tokens=-1"], ["--tokens is -1", "at least 0"]),
        (["--count=0"], ["--count is 0", "at least 1"]),
        (["--tokens=many"], ["--tokens", "many"]),
    ],
)
def test_mistakes(trained: str, capsys: pytest.CaptureFixture[str], options: list[str], parts: list[str]) -> None:
    capsys.readouterr()
    code = main(["sample", trained, *options])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert main(["sample", "nowhere"]) == 2


def test_a_reader_that_leaves(trained: str) -> None:
    """`nanoegg sample ... | head -c 5` ends quietly."""
    command = [sys.executable, "-m", "nanoegg_mlx.cli", "sample", trained, "--tokens=1000000000", "--ignore-end"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(5)) == 5
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0 and errors == b""


def test_a_terminal_of_another_encoding(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="ascii"))
    assert main(["sample", trained, "--prompt=é", "--tokens=1", "--temperature=0"]) == 0
    assert buffer.getvalue().startswith(b"?")
