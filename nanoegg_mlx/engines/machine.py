"""Description of the machine: processor, cores, system, device, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import make_engine, native_problem


@cache
def machine() -> dict[str, str]:
    """`processor`, `cores`, `system`, MLX's `device`, and the versions of Python, MLX and this package."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "device": str(mx.default_device()),
        "versions": f"nanoegg-mlx {metadata.version('nanoegg-mlx')}, MLX {metadata.version('mlx')}, "
        f"Python {platform.python_version()}",
    }


def training_setup() -> dict[str, Any]:
    """Engine, instruction set, threads, MLX device and versions that a training run on this machine uses."""
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
    return about


def _processor() -> str:
    """The processor's model if the system reports it, else its architecture."""
    try:
        if sys.platform == "darwin":
            return subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
            ).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.machine()
