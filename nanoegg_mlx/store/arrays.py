"""Arrays from safetensors files."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from nanoegg_mlx.errors import InputError


def load_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays by name, evaluated. Raises InputError if the file is missing or damaged."""
    try:
        arrays = mx.load(str(file))
        assert isinstance(arrays, dict)
        mx.eval(arrays)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{file} is missing, truncated or not a safetensors file.") from error
    return arrays
