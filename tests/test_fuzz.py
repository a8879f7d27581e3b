"""A short run of the fuzzer (`python -m tests.fuzz` runs a long one): a few damaged files for every reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests import fuzz
from tests.damage import damage

ROOT = Path(__file__).parents[1]


def test_damaged_files_end_in_a_result_or_in_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: the fuzzer forks, which a process with MLX's threads must not."""
    command = [sys.executable, "-m", "tests.fuzz", "--trials", "3", "-o", str(tmp_path / "findings")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * len(fuzz.TARGETS)} trials, 0 faults" in done.stdout


@pytest.mark.parametrize("kind", ["json", "toml", "safetensors", "npy", "binary"])
def test_damage_is_a_function_of_its_seed_and_changes_the_file(kind: str) -> None:
    contents = {
        "json": b'{"a": 1, "b": [2, 3]}\n{"a": 4}\n',
        "toml": b'[a]\nb = 1\nc = "x"\n',
        "safetensors": (2).to_bytes(8, "little") + b'{"a": {"shape": [1]}}' + bytes(8),
        "npy": b"\x93NUMPY\1\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }" + bytes(60),
        "binary": bytes(range(200)),
    }
    results = [damage(contents[kind], kind, Random(f"{seed}")) for seed in range(60)]
    assert results == [damage(contents[kind], kind, Random(f"{seed}")) for seed in range(60)]
    assert len(set(results)) > 40 and sum(result == contents[kind] for result in results) < 10


@pytest.mark.parametrize(
    ("status", "output", "result", "fault"),
    [
        (0, "", "whole", None),
        (0, "", "other", "succeeds with another result"),
        (2 << 8, "error: It is damaged.\n", "", None),
        (2 << 8, "error: It is damaged\n", "", "exit code 2 with 1 sentences"),
        (2 << 8, "", "", "exit code 2 with 0 sentences"),
        (1 << 8, "", "", "exit code 1"),
        (1 << 8, "Traceback (most recent call last):\n", "", "traceback"),
        (signal.SIGSEGV, "", "", "dies of SIGSEGV"),
        (signal.SIGALRM, "", "", "hangs"),
    ],
)
def test_what_is_a_fault(status: int, output: str, result: str, fault: str | None) -> None:
    assert os.WIFSIGNALED(signal.SIGSEGV)
    assert fuzz.Ended(status, output, result).fault(fuzz.TARGETS["votes"], "whole") == fault
