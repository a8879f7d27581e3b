"""Without a C++ compiler the build succeeds, one line names the missing compiler, and all commands work on MLX."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.traces import pseudo_text

ROOT = Path(__file__).parents[1]
ADVICE = "its extension was not built; install a C++17 compiler (g++ or clang++) and install nanoegg-mlx again."


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, built in place with compilers that fail."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("nanoegg_mlx", "data_prep"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        env={**os.environ, "CC": "/bin/false", "CXX": "/bin/false"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.so"))
    return folder


def nanoegg(built: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of the package that was built without a compiler."""
    code = "import nanoegg_mlx, sys; from nanoegg_mlx.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(built)},
        cwd=built,
        capture_output=True,
        text=True,
    )


def information(built: Path) -> list[str]:
    """The lines of `nanoegg info`."""
    done = nanoegg(built, "info")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_run_without_the_extension(built: Path) -> None:
    np.save(built / "train.npy", pseudo_text(3000, 1))
    np.save(built / "valid.npy", pseudo_text(900, 2))
    caches = ["--train=train.npy", "--valid=valid.npy"]
    model = ["--n-layer=1", "--n-embd=8", "--population=8", "--tokens-per-update=5", "--validation-batch-size=9"]
    trained = nanoegg(built, "train", *caches, *model, "--num-epochs=2", "--name=t")
    assert trained.returncode == 0, trained.stderr
    assert "engine mlx" in trained.stderr
    advice = [line for line in trained.stderr.splitlines() if "compiler" in line]
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    assert advice == [f"The CPU engine would be tens of times faster here, but {ADVICE}"] * on_cpu

    chosen = nanoegg(built, "train", *caches, *model, "--num-epochs=1", "--engine=mlx", "--name=chosen")
    assert chosen.returncode == 0 and "compiler" not in chosen.stderr

    evaluated = nanoegg(built, "eval", "checkpoints/t", "--json")
    assert evaluated.returncode == 0 and '"epoch": 2' in evaluated.stdout
    replayed = nanoegg(built, "replay", "checkpoints/t", "--verify")
    assert replayed.returncode == 0 and replayed.stdout.count("the same bits") == 2

    asked = nanoegg(built, "train", *caches, *model, "--engine=cpu", "--name=cpu")
    assert (asked.returncode, asked.stderr.count("\n")) == (2, 1)
    assert asked.stderr.startswith("error: ") and "'cpu'" in asked.stderr and asked.stderr.endswith(f"{ADVICE}\n")
    assert not (built / "checkpoints/cpu").exists()


def test_info_names_the_missing_compiler(built: Path) -> None:
    lines = information(built)
    assert "engine             mlx" in lines
    (line,) = [line for line in lines if line.startswith("CPU engine ")]
    assert line.endswith(ADVICE)


def test_an_extension_that_cannot_be_loaded(built: Path) -> None:
    """An extension of another Python, or a damaged one: one sentence with the loader's reason."""
    path = built / "nanoegg_mlx/engines/_native.abi3.so"
    path.write_bytes(b"not a library")
    try:
        lines = information(built)
    finally:
        path.unlink()
    (line,) = [line for line in lines if line.startswith("CPU engine ")]
    assert "its extension cannot be loaded (" in line and line.endswith("; install nanoegg-mlx again.")
