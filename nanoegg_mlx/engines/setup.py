"""What a training run on this machine uses."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import make_engine, native_problem


def training_setup() -> dict[str, Any]:
    """Engine, instruction set, threads, MLX device and versions of a run with the default config, and the measured
    speeds by shape (`engines/speeds.py`)."""
    about: dict[str, Any] = {"engine": make_engine(Config()).name}
    problem = native_problem()
    if problem is None:
        from nanoegg_mlx.engines.cpu import instruction_sets

        native = instruction_sets()
        about["instruction set"] = native["isa"]
        about["also available"] = ", ".join(name for name in native["available"] if name != native["isa"]) or "none"
        about["threads"] = native["threads"]
    else:
        about["CPU engine"] = f"unavailable: {problem}"
    about["MLX device"] = str(mx.default_device())
    for package in ("nanoegg-mlx", "mlx", "numpy", "pyarrow", "datasets"):
        about[package] = metadata.version(package)
    about["python"] = platform.python_version()
    if problem is None:
        from nanoegg_mlx.engines.speeds import recalled_here

        for shape, speeds in recalled_here(Config()).items():
            about[f"auto: {shape}"] = f"{speeds.best} (tokens/s: cpu {speeds.cpu:,.0f}, mlx {speeds.mlx:,.0f})"
    return about
