"""A model as safetensors, as NumPy's npz, or as a folder for the Hugging Face hub, each with a model card.

The card is Markdown, with the front matter that the hub reads. It holds the names of data files, not their folders: a
folder may tell more about a machine than its owner wants to publish.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import leaves, model_hash
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store import exported
from nanoegg_mlx.store.checkpoint import Checkpoint

UNKNOWN_LICENCE = "unknown"
"""The hub's identifier for a model whose owner has not chosen a licence."""
_LICENCE = re.compile(r"[a-z0-9]([a-z0-9.+-]{0,62}[a-z0-9])?")
_USAGE = """```python
import json
import mlx.core as mx
from nanoegg_mlx import Config, generate

config = Config(**json.load(open("config.json"))["config"])
params = mx.load("model.safetensors")
print(bytes(generate(params, config, b"The ", tokens=200)).decode(errors="replace"))
```"""


def check_licence(licence: str) -> str:
    """Returns an identifier of a licence as the hub has them; raises InputError if it has another form."""
    if not _LICENCE.fullmatch(licence):
        raise InputError(f"The licence is {licence!r}; it must be an identifier of the hub, such as mit or apache-2.0.")
    return licence


def about(opened: Checkpoint) -> dict[str, Any]:
    """The content of config.json: shapes, the settings that decided the parameters, data, figures and identity."""
    config, info = opened.config, opened.info
    return {
        "model_type": exported.TYPE,
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "vocab_size": config.vocab_size,
        "dtype": "int8",
        "epoch": opened.epoch,
        "tokens": info.get("tokens"),
        "seconds": info.get("seconds"),
        "config": settings(config),
        "data": {part: _data(config, info, part) for part in ("train", "valid")},
        "validation": {
            "bits_per_byte": info.get("validation"),
            "exact_bits_per_byte": info.get("validation_exact"),
            "rows": config.validation_batch_size,
        },
        "sha256": model_hash(opened.params, config).hex(),
    }


def settings(config: Config) -> dict[str, Any]:
    """The fields that decide a run's parameters; `Config(**settings)` has the model's shapes."""
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if (field.metadata["table"] in ("model", "evolution") or field.name == "tokens_per_update")
        and field.metadata["only_with"] in (None, config.perturb)
    }


def safetensors(opened: Checkpoint, licence: str) -> bytes:
    """A safetensors file: the 13 int8 leaves by their names, and in its metadata format, config, epoch and card."""
    metadata = {
        "format": "mlx",
        "model_type": exported.TYPE,
        "config": json.dumps(about(opened)),
        "epoch": str(opened.epoch),
        "model_card": card(opened, licence),
    }
    file = io.BytesIO()
    mx.save_safetensors(file, opened.params, metadata)
    return file.getvalue()


def npz(opened: Checkpoint, licence: str) -> bytes:
    """An npz archive: the 13 int8 leaves by their names."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: np.array(value) for name, value in opened.params.items()}
    np.savez(file, **arrays)
    return file.getvalue()


def hub_folder(opened: Checkpoint, licence: str) -> dict[str, bytes]:
    """The files of a repository of the hub: name -> content."""
    return {
        "README.md": card(opened, licence).encode(),
        "config.json": (json.dumps(about(opened), indent=2) + "\n").encode(),
        "model.safetensors": safetensors(opened, licence),
    }


def card(opened: Checkpoint, licence: str) -> str:
    """The model card: front matter and text."""
    config, facts = opened.config, about(opened)
    count = sum(math.prod(leaf.stacked_shape) for leaf in leaves(config))
    layers = f"{config.n_layer} layer{'s' * (config.n_layer > 1)}"
    estimator = {
        "weights": "evolution strategies with low-rank perturbations of the weights (EGGROLL)",
        "activations": "evolution strategies on nudged activations",
    }[config.perturb]
    parts = [
        _front_matter(config, facts, licence),
        f"# {_plain(config.name)}",
        f"A language model over bytes in int8: a minGRU with {layers} of width {config.n_embd}, {count:,} parameters. "
        "Weights, states and logits are integers, and so is all arithmetic: its predictions are the same bits on every "
        f"machine. It was trained by {estimator}, without backpropagation, with nanoegg-mlx.",
        "## Figures",
        _figures(facts),
        "## Training",
        f"{opened.epoch:,} epochs" + (f", {facts['tokens']:,} bytes read." if facts["tokens"] else "."),
        _table(["setting", "value"], [[_code(name), json.dumps(value)] for name, value in facts["config"].items()]),
        "## Data",
        _data_table(facts),
        "Each document is the byte 0 and its UTF-8 bytes.",
        "## Use",
        "With nanoegg-mlx installed, in the folder of these files:",
        _USAGE,
        "The parameters are 13 int8 arrays, matrices as (out, in). An activation or a weight of 16 stands for 1. The "
        "specification in nanoegg-mlx's documentation is enough to write another implementation.",
        "## Limitations",
        "The model is small and has only read the text above. It continues text by what is likely; it follows no "
        "instructions and knows no facts to rely on. Its text can be wrong, offensive or a copy of training text. Bits "
        "per byte hold for the validation text, and other text may cost more.",
        "## Licence",
        f"`{licence}`"
        + (": the owner of the model has not chosen one yet." if licence == UNKNOWN_LICENCE else ", for the weights."),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(config: Config, facts: dict[str, Any], licence: str) -> str:
    lines = [
        "---",
        f"license: {licence}",
        "library_name: nanoegg-mlx",
        "pipeline_tag: text-generation",
        "tags:",
        *[f"- {tag}" for tag in ("nanoegg", "mlx", "int8", "mingru", "byte-level", "evolution-strategies")],
    ]
    figures = [(name, facts["validation"][name]) for name in ("bits_per_byte", "exact_bits_per_byte")]
    figures = [(name, figure) for name, figure in figures if figure is not None]
    if figures:
        data = _quoted(facts["data"]["valid"]["name"])
        lines += ["metrics:", *[f"- {name}" for name, _ in figures]]
        lines += ["model-index:", f"- name: {_quoted(config.name)}", "  results:"]
        lines += ["  - task:", "      type: text-generation", "      name: Text generation"]
        lines += ["    dataset:", f"      name: {data}", f"      type: {data}", "    metrics:"]
        for name, figure in figures:
            title = name.replace("_", " ") + ", validation"
            lines += [f"    - type: {name}", f"      value: {figure!r}", f"      name: {title}"]
    return "\n".join([*lines, "---"])


def _figures(facts: dict[str, Any]) -> str:
    validation = facts["validation"]
    if validation["bits_per_byte"] is None:
        return "This checkpoint was not validated. `nanoegg eval` measures a checkpoint."
    rows = [["bits per byte, from integer scores", f"{validation['bits_per_byte']:.4f}"]]
    if validation["exact_bits_per_byte"] is not None:
        rows.append(["bits per byte, normalised code length", f"{validation['exact_bits_per_byte']:.4f}"])
    return _table([f"validation, {validation['rows']:,} rows", ""], rows)


def _data_table(facts: dict[str, Any]) -> str:
    rows = []
    for part, data in facts["data"].items():
        size = "" if data["tokens"] is None else f"{data['tokens']:,}"
        rows.append([part, _code(data["name"]), size, data["sha256"] or ""])
    return _table(["part", "file", "bytes", "SHA-256"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _data(config: Config, info: dict[str, Any], part: str) -> dict[str, Any]:
    """A cache's name and, if the checkpoint has it, its identity."""
    known = info.get("data")
    known = known.get(part) if isinstance(known, dict) else None
    known = known if isinstance(known, dict) else {}
    tokens, digest = known.get("tokens"), known.get("sha256")
    return {
        "name": Path(getattr(config, part)).name or part,
        "tokens": tokens if type(tokens) is int else None,
        "sha256": digest if isinstance(digest, str) else None,
    }


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", _visible(text))


def _code(text: str) -> str:
    """Text as code, on one line, also in a cell of a table."""
    return "`" + _visible(text).replace("`", "'").replace("|", "\\|") + "`"


def _visible(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _quoted(text: str) -> str:
    """A YAML string in double quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
