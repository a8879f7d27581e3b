"""`nanoegg bench`: its figures, the command that times another implementation, and every mistake."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nanoegg_mlx.cli import main
from nanoegg_mlx.commands import bench as bench_command
from nanoegg_mlx.measure import bench
from tests.traces import ENGINES

TINY = bench.Case("tiny", 1, 8, 4, 5)
VALIDATION = bench.Case("tiny, validation", 1, 8, 4, 5, validation=True)
DECODING = bench.Case("tiny, decompress", 1, 8, 4, 5, coding="decode")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CASES", [TINY, VALIDATION, DECODING])


def python(code: str) -> str:
    """A shell command that runs this code."""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"


@pytest.mark.parametrize("engine", ENGINES)
def test_figures(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of one tick a second and peaks of 1000 and 3000 in turn: 20 tokens of 2816 multiply-adds a second."""
    assert bench.multiply_adds(1, 8) == 12 * 64 + 256 * 8
    clock = iter(range(100))
    peaks = iter([1000.0, 3000.0] * 9)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(bench, "_peak", lambda engine, threads: next(peaks) if engine == "cpu" else 0.0)
    options = argparse.Namespace(repeats=3, engine=engine, threads=1)
    figures = bench_command.measure_here(VALIDATION, options)
    assert figures["engine"] == engine and figures["title"] == "tiny, validation"
    assert (figures["tokens_per_second"], figures["milliseconds"]) == (20, 1000)
    assert figures["multiply_adds_per_second"] == 20 * 2816
    assert figures["resident_mb"] > 1
    if engine == "cpu":
        assert (figures["peak"], figures["peak_share"]) == (2000, 20 * 2816 / 2000)
    else:
        assert figures["peak"] is None and figures["peak_share"] is None


def test_the_caller_defines_the_epoch() -> None:
    """One epoch is not timed; the update's share is what the epoch returns."""
    shares = iter([0.9, 0.25, 0.5, 0.25])
    figures = bench.measure(TINY, lambda: next(shares), TINY.config("mlx", 0), 3)
    assert next(shares, None) is None and figures["update_share"] == 0.25


def test_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A row for each case and each reference, which receives the case's numbers; the JSON file has all of them."""
    command = python("print('warming up'); print('{\"tokens_per_second\": {population}{tokens}.5}')")
    assert main(["bench", "--repeats=1", f"--json={tmp_path}/b.json", "--reference-command", command]) == 0
    out, err = capfd.readouterr()
    header, case, reference, validation, decoding, speed = out.splitlines()
    assert err == "" and header == bench.HEADER
    rows = json.loads((tmp_path / "b.json").read_text())
    assert [bench.line(row) for row in rows] == [case, validation, decoding]
    assert bench.coding_line(rows[2]) == speed and rows[2]["times_validation"] > 0
    assert bench.reference_line(rows[0]) == reference
    assert rows[0]["reference_tokens_per_second"] == 45.5 and "reference_tokens_per_second" not in rows[1]
    assert rows[0]["times_reference"] == rows[0]["tokens_per_second"] / 45.5
    assert " 46 " in reference and f"{rows[0]['times_reference']:,.1f} times" in reference


def test_activations_are_compared_with_weights() -> None:
    nudged = bench.Case("tiny, activations", 1, 8, 4, 5, perturb="activations")
    assert bench.products(nudged) == 1.5 * bench.products(TINY) == 1.5 * 20 * 2816
    assert nudged.config("mlx", 0).perturb == "activations"
    assert dataclasses.replace(nudged, decorrelate=True).config("mlx", 0).decorrelate
    rows = [
        {**asdict(case), "tokens_per_second": rate, "peak": peak}
        for case, rate, peak in ((VALIDATION, 1.0, 1.0), (TINY, 100.0, 1000.0), (nudged, 30.0, 500.0))
    ]
    assert [bench.times_weights(row, rows) for row in rows] == [None, None, 0.6]
    assert bench.weights_line({"times_weights": 0.6}).endswith(" 0.60 times the tokens/s, at equal peaks")
    assert bench.times_weights({**rows[2], "population": 6}, rows) is None
    without = [{**row, "peak": None} for row in rows]
    assert bench.times_weights(without[2], without) == 0.3


@pytest.mark.parametrize("coding", ["encode", "decode"])
def test_compression_is_compared_with_validation(coding: str) -> None:
    case = bench.Case("tiny, compress", 1, 8, 4, 5, coding=coding)
    figures = bench_command.measure_here(case, argparse.Namespace(repeats=1, engine=ENGINES[-1], threads=2))
    assert figures["tokens_per_second"] > 0 and figures["threads"] == (2 if ENGINES[-1] == "cpu" else 1)
    rows = [
        {**asdict(case), "tokens_per_second": rate, "peak": peak, "threads": 4}
        for case, rate, peak in ((TINY, 1.0, 1.0), (VALIDATION, 8e6, 1000.0), (case, 6e6, 1500.0))
    ]
    assert [bench.times_validation(row, rows) for row in rows] == [None, None, 0.5]
    line = bench.coding_line({**rows[2], "times_validation": 0.5})
    assert line.endswith(" 1.50 MB/s a core, 0.50 times validation's tokens/s, at equal peaks")
    assert bench.coding_line({**rows[2], "times_validation": None}).endswith(" 1.50 MB/s a core")


def test_a_case_imports_no_other_command() -> None:
    """Resident memory is a result: the process of a case must not load the packages of other commands."""
    case = json.dumps(asdict(VALIDATION))
    script = (
        "import sys; from nanoegg_mlx.cli import main\n"
        f"assert main(['bench', '--repeats=1', '--case', {case!r}]) == 0\n"
        "print([name for name in ('pyarrow', 'datasets', 'matplotlib') if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_placeholders() -> None:
    code = "import json; print(json.dumps(dict(tokens_per_second={n_layer} + {n_embd} + {population} + {tokens})))"
    assert bench.reference_rate(python(code), bench.Case("x", 1000, 200, 30, 4)) == 1234.0


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("no-such-command-anywhere", ["exit code 127", "no-such-command-anywhere"]),
        (python("import sys; sys.exit('one\\ntwo')"), ["exit code 1: two"]),
        (python("import sys; sys.exit(3)"), ["exit code 3, and its stderr is empty"]),
        ("true", ["'true' is missing; it must be a JSON object with a positive number tokens_per_second"]),
        (python("print('fast')"), ["is 'fast'; it must be a JSON object"]),
        (python("print('[1]')"), [" is '[1]'; it must"]),
        (python("print('{}')"), [" is '{}'; it must"]),
        (python("print('7')"), [" is '7'; it must"]),
        *[
            (python(f"print('{{\"tokens_per_second\": {value}}}')"), [f"tokens_per_second\": {value}}}'"])
            for value in ("0", "-1", "true", "null", "NaN", "Infinity", "[3]")
        ],
    ],
)
def test_reference_mistakes(command: str, parts: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--reference-command", command]) == 2
    out, err = capfd.readouterr()
    assert out == bench.HEADER + "\n" and err.startswith("error: The ") and err.count("\n") == 1
    assert "reference command" in err and all(part in err for part in parts), err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--repeats=0"], "--repeats is 0"),
        (["--json=/no/such/folder/file"], "/no/such/folder"),
        (["--threads=-1"], "-1"),
    ],
)
def test_mistakes(options: list[str], part: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err, err


def test_cases_are_what_a_config_allows() -> None:
    """Every case of the tables has a config; none is run here."""
    for case in bench.SCALING:
        config = case.config("auto", 0)
        assert math.prod((case.n_layer, case.n_embd, case.population, case.tokens)) > 0
        assert (config.n_layer, config.n_embd, config.population) == (case.n_layer, case.n_embd, case.population)
    parser = argparse.ArgumentParser()
    bench_command.add_arguments(parser)
    options: Any = parser.parse_args([])
    assert (options.repeats, options.engine, options.threads, options.reference_command) == (5, "auto", 0, None)
