"""The command that trains on caches which were just made.

Notable: a population reads side by side from as many places of the text as it has groups, so a short text needs a
smaller population than the configuration's. The sizes come from the configuration file; this package imports no model.
"""

import shlex
import tomllib
from pathlib import Path
from typing import Any

CONFIG = Path("configs", "quickstart.toml")
DEFAULTS = {"population": 1024, "group_size": 2, "tokens_per_update": 100, "validation_batch_size": 1024}


def next_command(manifest: dict[str, Any], folder: Path) -> str | None:
    """Returns `nanoegg train ...` for a set with train and valid, None for another set or a text too short to train on.

    manifest: of the set. folder: of the caches.
    """
    splits = manifest["splits"]
    if not {"train", "valid"} <= splits.keys():
        return None
    config = _config()
    options = _fitting(_sizes(config), splits["train"]["bytes"], splits["valid"]["bytes"])
    if options is None:
        return None
    words = ["nanoegg", "train", *(["--config", str(config)] if config else [])]
    for split in ("train", "valid"):
        words += [f"--{split}", str(folder / splits[split]["file"])]
    for key, value in options.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _config() -> Path | None:
    """Returns the quick start's configuration, if this is a checkout."""
    for path in (CONFIG, Path(__file__).parents[1] / CONFIG):
        if path.is_file():
            return path
    return None


def _sizes(config: Path | None) -> dict[str, int]:
    sizes = dict(DEFAULTS)
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8")).values() if config else []
    except (OSError, ValueError):
        return sizes
    for table in tables:
        if isinstance(table, dict):
            sizes |= {key: table[key] for key in sizes if isinstance(table.get(key), int)}
    return sizes


def _fitting(sizes: dict[str, int], train: int, valid: int) -> dict[str, int] | None:
    """Returns the sizes to change for so many bytes of text, None if none fit.

    A lane, one for each group of members, needs tokens_per_update + 1 bytes; a row of validation needs two.
    """
    changed = {}
    tokens = min(sizes["tokens_per_update"], train - 1)
    if tokens < 1 or valid < 2:
        return None
    if tokens < sizes["tokens_per_update"]:
        changed["tokens_per_update"] = tokens
    group = max(sizes["group_size"], 1)
    lanes = train // (tokens + 1)
    if sizes["population"] > lanes * group:
        changed["population"] = group << (lanes.bit_length() - 1)
    if sizes["validation_batch_size"] > valid // 2:
        changed["validation_batch_size"] = valid // 2
    return changed
