"""The scripts of examples/, each run as a user runs it, with a check of its outcome."""

from __future__ import annotations

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


CHECKS: list[Callable[[str], None]] = [eggroll_module]
"""One function for each script, of the same name: asserts on what the script prints."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_example(check: Callable[[str], None], tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # In a folder of its own: what a script writes stays there.
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
