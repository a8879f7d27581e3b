"""Baselines: entropies against plain counting, smoothed n-grams against dictionaries, and the command."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from nanoegg_mlx import InputError
from nanoegg_mlx.cli import main
from nanoegg_mlx.measure import baselines
from nanoegg_mlx.measure.baselines import NGram, count_ngrams, empirical_entropy
from tests.traces import pseudo_text


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces: their boundaries must not change a result."""
    monkeypatch.setattr(baselines, "_PIECE", 30_000)


@pytest.mark.parametrize("size", [2, 1000, 70_000])
def test_baselines(size: int) -> None:
    tokens = pseudo_text(size, 3)
    content = tokens.tobytes()
    single, pairs, first = Counter(content), Counter(itertools.pairwise(content)), Counter(content[:-1])
    unigram = -sum(n * math.log2(n / size) for n in single.values()) / size
    bigram = -sum(n * math.log2(n / first[a]) for (a, _), n in pairs.items()) / (size - 1)
    assert baselines.unigram(tokens) == pytest.approx(unigram, abs=1e-11)
    assert baselines.bigram(tokens) == pytest.approx(bigram, abs=1e-11)
    assert baselines.gzip(tokens) == 8 * len(gzip.compress(content, 9)) / size
    assert baselines.xz(tokens) == 8 * len(lzma.compress(content)) / size


@pytest.mark.parametrize("size", [3, 1000, 70_000])
def test_trigram(size: int) -> None:
    tokens = np.concatenate([pseudo_text(size - 2, 3), np.array([255, 255], np.uint8)])
    content = tokens.tobytes()
    triples = Counter(zip(content, content[1:], content[2:], strict=False))
    pairs = Counter(itertools.pairwise(content[:-1]))
    expected = -sum(n * math.log2(n / pairs[a, b]) for (a, b, _), n in triples.items()) / (size - 2)
    assert baselines.trigram(tokens) == pytest.approx(expected, abs=1e-11)
    counts = count_ngrams(tokens, 3)
    assert counts.shape == (1 << 24,) and counts.dtype == np.uint32 and counts.nbytes == 64 << 20
    assert {
        (i >> 16, i >> 8 & 255, i & 255): n for i in np.flatnonzero(counts).tolist() if (n := int(counts[i]))
    } == triples


def witten_bell(train: bytes, order: int, context: bytes, byte: int) -> float:
    """By its definition, from n-grams in dictionaries."""
    lower = 1 / 256 if order == 1 else witten_bell(train, order - 1, context[1:], byte)
    after: dict[bytes, Counter[int]] = defaultdict(Counter)
    for i in range(len(train) - order + 1):
        after[train[i : i + order - 1]][train[i + order - 1]] += 1
    counts = after[context]
    if not counts:
        return lower
    return (counts[byte] + len(counts) * lower) / (counts.total() + len(counts))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_smoothed_ngrams_against_dictionaries(order: int) -> None:
    """Counted and uncounted bytes, contexts and continuations; the short contexts of the first bytes."""
    train = pseudo_text(300, 1).tobytes() + b"\xff\xff"
    text = b"\xff\xffab zq" + pseudo_text(40, 2).tobytes() + b"\xee"
    model = NGram(np.frombuffer(train, np.uint8), order)
    bits = 0.0
    for i, byte in enumerate(text):
        n = min(order, i + 1)
        bits -= math.log2(witten_bell(train, n, text[i - n + 1 : i], byte))
    assert model.bits_per_byte(np.frombuffer(text, np.uint8)) == pytest.approx(bits / len(text), rel=1e-12)
    for context in (text[: order - 1], b"\xee\xee"[: order - 1], train[20 : 20 + order - 1]):
        probabilities = model.probabilities(context)
        assert probabilities.sum() == pytest.approx(1, rel=1e-12) and probabilities.min() > 0
        assert probabilities[97] == pytest.approx(witten_bell(train, order, context, 97), rel=1e-12)


def test_an_ngram_of_other_text_costs_more_than_the_entropy() -> None:
    """The empirical entropy is lower than the figure of a model that counts another text."""
    train, text = pseudo_text(50_000, 1), pseudo_text(3000, 2)
    for order in (1, 2, 3):
        assert NGram(train, order).bits_per_byte(text) > empirical_entropy(text, order)
        assert NGram(train, order).bits_per_byte(train) < 8
    assert NGram(text[:0], 3).bits_per_byte(text) == 8
    assert NGram(train, 3).bits_per_byte(text[:1]) == NGram(train, 1).bits_per_byte(text[:1])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_texts_too_short(order: int) -> None:
    with pytest.raises(InputError, match=f"tokens is {order - 1}; for {order}-grams it must be at least {order}"):
        empirical_entropy(np.zeros(order - 1, np.uint8), order)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", pseudo_text(3000, 1))
    np.save("valid.npy", pseudo_text(400, 2))
    np.save("empty.npy", np.zeros(0, np.uint8))
    np.save("wide.npy", np.zeros(9, np.int32))
    Path("note.txt").write_text("a note")


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_the_command(caches: None, capsys: pytest.CaptureFixture[str], name: str) -> None:
    valid = pseudo_text(400, 2)
    assert main(["baseline", name, "valid.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "baseline": name,
        "text": "valid.npy",
        "tokens": 400,
        "train": None,
        "bits_per_byte": baselines.BASELINES[name](valid),
    }
    assert main(["baseline", name, "note.txt"]) == 0
    figure = baselines.BASELINES[name](np.frombuffer(b"\0a note", np.uint8))
    out = capsys.readouterr().out
    assert f"{figure:8.4f}" in out and ("fitted to the same bytes" in out) == (name in baselines.ORDERS)
    if name in baselines.ORDERS:
        assert main(["baseline", name, "valid.npy", "--train=train.npy", "--json"]) == 0
        expected = NGram(pseudo_text(3000, 1), baselines.ORDERS[name]).bits_per_byte(valid)
        assert json.loads(capsys.readouterr().out)["bits_per_byte"] == expected


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["unigram", "none.npy"], ["none.npy", "nanoegg prepare"]),
        (["gzip", "none.txt"], ["none.txt cannot be read"]),
        (["xz", "empty.npy"], ["empty.npy is empty", "at least one token"]),
        (["bigram", "wide.npy"], ["int32", "1-D uint8"]),
        (["trigram", "valid.npy", "--train=empty.npy"], ["empty.npy is empty"]),
        (["trigram", "valid.npy", "--train=note.txt"], ["note.txt", "it must be a 1-D uint8 .npy file"]),
        (["gzip", "valid.npy", "--train=train.npy"], ["--train"]),
        (["fourgram", "valid.npy"], ["fourgram"]),
        ([], ["kind"]),
    ],
)
def test_mistakes(caches: None, capsys: pytest.CaptureFixture[str], options: list[str], parts: list[str]) -> None:
    code = main(["baseline", *options])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts), err
