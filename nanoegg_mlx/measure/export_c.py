"""A model as one file of C99: its weights, and the code in model_c/, which computes with the same integers.

`model_c/model.c` is the template, and a C program as it stands: the lines that include `shape.h` and `weights.h` are
replaced by the model's sizes and parameters, and the line that includes `program.c` by that file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib import resources

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params, leaves, model_hash
from nanoegg_mlx.errors import InputError

_PER_LINE = 24
"""Weights in a line: at most 120 characters."""
_NUMBERS = [f"{value}," for value in (*range(128), *range(-128, 0))]
"""By the value's byte."""


@dataclass(frozen=True)
class Memory:
    """What an exported model needs on a microcontroller, in bytes. Compilers differ; these are upper bounds for -Os."""

    weights: int
    code: int
    state: int
    logits: int
    stack: int

    @property
    def flash(self) -> int:
        """Read-only memory."""
        return self.weights + self.code

    @property
    def ram(self) -> int:
        """The state, the logits and the stack."""
        return self.state + self.logits + self.stack


def memory(config: Config) -> Memory:
    """The memory of a model, computed from its shapes; tests hold it against a compiler for Cortex-M4."""
    return Memory(
        weights=sum(math.prod(leaf.stacked_shape) for leaf in leaves(config)),
        code=3072,
        state=config.n_layer * config.n_embd,
        logits=config.vocab_size,
        # The vectors of egg_step and egg_layer, and the registers that functions save.
        stack=9 * config.n_embd + 128,
    )


def c_source(params: Params, config: Config, about: str) -> str:
    """The file of C. Its first lines say how to compile it and how to call its functions.

    Args:
        params: leaf name -> int8 array.
        config: its shapes.
        about: the model in one line, for the comment at the top.

    Raises:
        InputError: vocab_size is not 256, or the parameters do not fit the config.
    """
    if config.vocab_size != 256:
        raise InputError(f"vocab_size is {config.vocab_size}; it must be 256 for an export to C, which reads any byte.")
    check_params(params, config)
    parts = {"shape.h": _shape(config), "weights.h": _weights(params, config), "program.c": _template("program.c")}
    # Comment marks, trigraphs and bytes outside ASCII in a run's name would reach the compiler.
    title = re.sub(r"[^\w ,.:/-]", "_", about, flags=re.ASCII)
    source = f"/* {title} */\n\n" + _template("model.c")
    for name, text in parts.items():
        source = source.replace(f'#include "{name}"\n', text)
    return source


def _template(name: str) -> str:
    return resources.files("nanoegg_mlx.measure").joinpath("model_c", name).read_text(encoding="ascii")


def _shape(config: Config) -> str:
    sizes = {
        "LAYERS": config.n_layer,
        "WIDTH": config.n_embd,
        "ROOT": math.isqrt(config.n_embd),
        "HIDDEN_ROOT": math.isqrt(4 * config.n_embd),
    }
    return "".join(f"#define EGG_{name} {size}\n" for name, size in sizes.items())


def _weights(params: Params, config: Config) -> str:
    digest = ", ".join(f"0x{byte:02x}" for byte in model_hash(params, config))
    lines = [f"const uint8_t egg_model_hash[32] = {{{digest[:95]}\n    {digest[96:]}}};"]
    for leaf in leaves(config):
        shape = "".join(f"[{size}]" for size in leaf.stacked_shape)
        lines += ["", f"static const int8_t {_name(leaf.name)}{shape} ="]
        lines += _initialiser(np.array(params[leaf.name]))
        lines[-1] += ";"
    return "\n".join(lines) + "\n"


def _name(leaf: str) -> str:
    """`blocks.att.Wf` -> `egg_Wf`, `blocks.mlp.0.weight` -> `egg_mlp0`, `ln_out.weight` -> `egg_ln_out`."""
    short = leaf.removeprefix("blocks.").removeprefix("att.").removesuffix(".weight")
    return "egg_" + short.replace(".", "")


def _initialiser(values: np.ndarray) -> list[str]:
    """Lines with the values in braces, rows inside of rows."""
    if values.ndim == 1:
        numbers = [_NUMBERS[byte] for byte in values.view(np.uint8).tolist()]
        lines = ["".join(numbers[i : i + _PER_LINE]) for i in range(0, len(numbers), _PER_LINE)]
    else:
        lines = []
        for row in values:
            lines += _initialiser(row)
            lines[-1] += ","
    lines[0] = "{" + lines[0]
    lines[-1] = lines[-1].removesuffix(",") + "}"
    return lines
