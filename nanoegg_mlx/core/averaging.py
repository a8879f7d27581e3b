"""Averaged parameters: the moving average of the last epochs' parameters, in integers (docs/averaging.md).

After e epochs it goes back over about 2^j of them, j = shift_at(e). The sums A are int16: -127 2^j <= A < 2^(7 + j).

    A <- 2^j P + 2^j / 2       where the average begins
    A <- A - (A >> j) + P      after an epoch; then A <- 2 A wherever j grows by one
    A >> j                     the averaged parameters
"""

from __future__ import annotations

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params
from nanoegg_mlx.errors import InputError

LARGEST_SHIFT = 8
"""With it the sums just fit int16."""


def shift_at(epochs: int) -> int:
    """Log2 of the epochs that the average goes back over: a sixteenth to an eighth of all so far, at most 256."""
    return min((epochs >> 4).bit_length(), LARGEST_SHIFT)


def start(params: Params, epochs: int) -> Params:
    """The sums of an average that begins with `params`, after so many epochs: leaf name -> int16 array."""
    shift = shift_at(epochs)
    sums = {name: (value.astype(mx.int16) << shift) + (1 << shift >> 1) for name, value in params.items()}
    mx.eval(sums)
    return sums


def add(sums: Params, params: Params, epochs: int) -> Params:
    """The sums after one epoch more than `epochs`, which has moved the parameters to `params`; changes no argument."""
    shift = shift_at(epochs)
    growth = shift_at(epochs + 1) - shift
    # In this order, int16 holds what is between.
    after = {
        name: ((value - (value >> shift)) + params[name].astype(mx.int16)) << growth for name, value in sums.items()
    }
    mx.eval(after)
    return after


def model(params: Params, sums: Params | None, epochs: int) -> Params:
    """The averaged parameters after so many epochs, leaf name -> int8 array, or without sums `params`."""
    if sums is None:
        return params
    averaged = {name: (value >> shift_at(epochs)).astype(mx.int8) for name, value in sums.items()}
    mx.eval(averaged)
    return averaged


def check_sums(sums: Params | None, config: Config, epochs: int) -> None:
    """Raises InputError if they are not what `config` describes: int16, and their averages parameters."""
    if (sums is not None) != config.average:
        has = "no sums" if config.average else "sums"
        raise InputError(f"average is {config.average}; it must be {not config.average}, since the state has {has}.")
    for name, value in (sums or {}).items():
        if value.dtype != mx.int16:
            raise InputError(f"The sum of parameter {name!r} is {value.dtype}; it must be int16.")
    if sums is not None:
        check_params(model({}, sums, epochs), config)
