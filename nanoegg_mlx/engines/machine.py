"""Description of the machine: processor, cores, system, device, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import mlx.core as mx


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


def mlx_on_cpu() -> bool:
    """Whether MLX's default device is the CPU."""
    return mx.default_device() == mx.Device(mx.cpu)


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
