"""Measured speeds of the two engines, in the user's cache folder.

    <cache folder>/engine-speeds.json      {machine: {shape: {"cpu": tokens/s, "mlx": tokens/s}}}

A machine is all that the speed depends on beside the shape: processor, threads, instruction set, device, versions. The
file only saves time: if it cannot be read or written, speeds are measured again.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines.machine import machine, mlx_on_cpu

WORTH_SHARING = 0.1
"""Least share of the slower engine in the sum of both speeds at which both together are used."""
_MOST = 100
"""Shapes that are kept for a machine, and machines."""
_KEPT: dict[tuple[str, str], Speeds] = {}
"""The speeds measured by this process."""


@dataclass(frozen=True)
class Speeds:
    """Tokens a second of each engine on its own."""

    cpu: float
    mlx: float

    @property
    def best(self) -> str:
        """The engine that these speeds recommend."""
        # MLX's CPU back end and the CPU engine would share the same cores.
        if not mlx_on_cpu() and min(self.cpu, self.mlx) >= WORTH_SHARING * (self.cpu + self.mlx):
            return "both"
        return "cpu" if self.cpu >= self.mlx else "mlx"


def recall(config: Config) -> Speeds | None:
    """The speeds that were measured for runs like this one on this machine; None if there are none."""
    here, shape = _machine(config), shape_of(config)
    return _KEPT.get((here, shape)) or _speeds(_read().get(here), shape)


def remember(config: Config, speeds: Speeds) -> None:
    """Keeps the speeds, for this process and, if the cache can be written, for later ones."""
    here, shape = _machine(config), shape_of(config)
    _KEPT[here, shape] = speeds
    known = _read()
    shapes = known.pop(here, None)
    shapes = {name: value for name, value in shapes.items() if name != shape} if isinstance(shapes, dict) else {}
    shapes[shape] = asdict(speeds)
    # The newest are last, and the oldest are dropped.
    known[here] = dict(list(shapes.items())[-_MOST:])
    _write(dict(list(known.items())[-_MOST:]))


def recalled_here(config: Config) -> dict[str, Speeds]:
    """All speeds in the cache for this machine, with the `threads` of `config`: shape -> speeds, newest last."""
    shapes = _read().get(_machine(config))
    found = {name: _speeds(shapes, name) for name in shapes} if isinstance(shapes, dict) else {}
    return {name: speeds for name, speeds in found.items() if speeds}


def shape_of(config: Config) -> str:
    """The fields that an epoch's speed depends on: '6 x 256, weights, 1024 members x 100 tokens', and unusual ones."""
    unusual = {
        name: getattr(config, name)
        for name in ("vocab_size", "rank", "head_rule", "decorrelate", "chunk")
        if getattr(config, name) != getattr(Config, name)
    }
    if not config.antithetic:
        unusual["group_size"] = config.group
    return ", ".join(
        [
            f"{config.n_layer} x {config.n_embd}",
            config.perturb,
            f"{config.population} members x {config.tokens_per_update} tokens",
            *(f"{name} {value}" for name, value in unusual.items()),
        ]
    )


def cache_folder() -> Path | None:
    """The user's cache folder of this package; it need not exist. None if the user has no home."""
    if (given := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return given / "nanoegg"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "nanoegg"


def _machine(config: Config) -> str:
    from nanoegg_mlx.engines.cpu import instruction_sets

    native, about = instruction_sets(), machine()
    device = mx.device_info(mx.default_device()).get("device_name", "")
    threads = config.threads or native["threads"]
    cpu = f"{about['processor']}, {about['cores']} cores, {threads} threads, {native['isa']}"
    return f"{cpu}; {about['device']} {device}; {about['versions']}"


def _speeds(shapes: Any, shape: str) -> Speeds | None:
    """The speeds of a shape, or None where the file has none or is damaged."""
    values = shapes.get(shape) if isinstance(shapes, Mapping) else None
    found: list[Any] = [values.get(name) for name in ("cpu", "mlx")] if isinstance(values, Mapping) else []
    if not found or not all(type(speed) in (int, float) and 0 < speed < math.inf for speed in found):
        return None
    return Speeds(*found)


def _read() -> dict[str, Any]:
    folder = cache_folder()
    try:
        known = json.loads((folder / "engine-speeds.json").read_bytes()) if folder else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(known: Mapping[str, Any]) -> None:
    folder = cache_folder()
    if folder is None:
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(known, file, indent=1)
            os.replace(temporary, folder / "engine-speeds.json")
        finally:
            Path(temporary).unlink(missing_ok=True)
