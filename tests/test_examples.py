"""The scripts of examples/, each run as a user runs it, with a check of its outcome."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def eggroll_module(output: str) -> None:
    """Test accuracy rises from chance, and is printed five times on the way."""
    accuracies = [float(number) for number in re.findall(r"test accuracy (\S+)$", output, re.MULTILINE)]
    assert len(accuracies) == 6
    assert accuracies[0] < 0.6 and accuracies[-1] > 0.9


def train_on_text(output: str) -> None:
    """Bits per byte of the held-out text fall clearly below those of the initial parameters."""
    (before,) = re.findall(r"^before: (\S+) bits per byte$", output, re.MULTILINE)
    (after,) = re.findall(r"^after 60 epochs: (\S+) bits per byte$", output, re.MULTILINE)
    assert 8 < float(before) < 10 and float(after) < float(before) - 1


def evaluate_and_sample(output: str) -> None:
    """Both figures of the evaluation, the exact one a little larger, and the prompt with 100 bytes more."""
    (integer,) = re.findall(r"integer figure +(\S+) bits per byte$", output, re.MULTILINE)
    (exact,) = re.findall(r"exact code length +(\S+) bits per byte$", output, re.MULTILINE)
    assert 4 < float(integer) < float(exact) < float(integer) + 0.1
    sample = ast.literal_eval(output.splitlines()[-1])
    assert sample.startswith(b"def ") and len(sample) == 104


CHECKS: list[Callable[[str], None]] = [eggroll_module, evaluate_and_sample, train_on_text]
"""One function for each script, of the same name: asserts on what the script prints."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_example(check: Callable[[str], None], tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # In a separate folder, for the files that a script writes.
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{check.__name__}.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    check(done.stdout)


def test_every_example_has_a_check() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {check.__name__ for check in CHECKS}
