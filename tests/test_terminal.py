"""The command line with standard streams that are closed, that are ASCII, or whose reader has left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_run

NANOEGG = f"{sys.executable} -m nanoegg_mlx.cli"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder."""
    return tiny_run(tmp_path_factory.mktemp("terminal"))


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a shell command; the exit code is the first process's of a pipeline."""
    done = ["bash", "-c", f'{command}; exit "${{PIPESTATUS[0]}}"']
    return subprocess.run(done, capture_output=True, env={**os.environ, **environment}, timeout=60)


def test_closed_streams(run: Path, tmp_path: Path) -> None:
    for name, streams in (("a", "2>&-"), ("b", ">&-"), ("c", ">&- 2>&-"), ("d", "<&- >&- 2>&-")):
        done = shell(f"{NANOEGG} train --config {run}/config.toml --checkpoints {tmp_path} --name {name} {streams}")
        assert done.returncode == 0
        # A file that took the number of a closed stream would have got its messages.
        for file in ("metrics.jsonl", "config.toml", "votes.bin"):
            assert b"epochs" not in (tmp_path / name / file).read_bytes().replace(b"num_epochs", b"")
    for command in (f"eval {run}", f"sample {run} --tokens 20", f"inspect {run}", "info"):
        for streams in (">&-", "2>&-", ">&- 2>&-"):
            assert shell(f"{NANOEGG} {command} {streams}").returncode == 0, (command, streams)
    assert shell(f"{NANOEGG} eval {run} 2>&-").stdout.count(b"bits per byte") == 2


def test_a_reader_who_leaves_is_no_error(run: Path) -> None:
    for command in (f"eval {run}", f"sample {run} --tokens 5000", f"inspect {run}", "info", "--help", "train --help"):
        for unbuffered in ("", "1"):
            done = shell(f"{NANOEGG} {command} | true", PYTHONUNBUFFERED=unbuffered)
            assert (done.returncode, done.stderr) == (0, b""), (command, unbuffered)


def test_streams_that_are_ascii(run: Path) -> None:
    done = shell(f"{NANOEGG} eval {run} --by-position", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and b"bits per byte" in done.stdout and done.stderr.count(b"Traceback") == 0
    assert shell(f"{NANOEGG} sample {run} --tokens 50", PYTHONIOENCODING="ascii").returncode == 0


def test_an_error_of_the_system_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = shell(f"{NANOEGG} train --config {run}/config.toml --checkpoints {tmp_path}/file/x")
    assert done.returncode == 2
    assert done.stderr.decode() == f"error: Not a directory: {tmp_path}/file/x; nothing was overwritten.\n"
