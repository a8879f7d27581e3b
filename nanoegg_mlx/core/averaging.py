"""Averaged parameters: the exponential moving average of every epoch's, in integers (docs/averaging.md).

With k = `ema_shift` the sums A are int16, which -127 2^k <= A < 2^(7 + k) just fits with k = 8, the largest:

    A <- 2^k P + 2^(k - 1)     at the start
    A <- A - (A >> k) + P      after an epoch
    A >> k                     the averaged parameters
"""

from __future__ import annotations

import mlx.core as mx

from nanoegg_mlx.config import Config
from nanoegg_mlx.core.params import Params, check_params
from nanoegg_mlx.errors import InputError


def start(params: Params, shift: int) -> Params:
    """The sums of parameters that have not moved yet: leaf name -> int16 array of the leaf's shape."""
    sums = {name: (value.astype(mx.int16) << shift) + (1 << shift >> 1) for name, value in params.items()}
    mx.eval(sums)
    return sums


def add(sums: Params, params: Params, shift: int) -> Params:
    """The sums after an epoch that has moved the parameters to `params`; changes neither argument."""
    # In this order, int16 holds what is between.
    after = {name: (value - (value >> shift)) + params[name].astype(mx.int16) for name, value in sums.items()}
    mx.eval(after)
    return after


def model(params: Params, sums: Params | None, shift: int) -> Params:
    """The averaged parameters, leaf name -> int8 array, or without sums `params`."""
    if sums is None:
        return params
    averaged = {name: (value >> shift).astype(mx.int8) for name, value in sums.items()}
    mx.eval(averaged)
    return averaged


def check_sums(sums: Params | None, config: Config) -> None:
    """Raises InputError if they are not what `config` describes: int16, and their averages parameters."""
    if (sums is None) != (config.ema_shift == 0):
        raise InputError(f"ema_shift is {config.ema_shift}; it must be 0 without sums of parameters, and only then.")
    for name, value in (sums or {}).items():
        if value.dtype != mx.int16:
            raise InputError(f"The sum of parameter {name!r} is {value.dtype}; it must be int16.")
    if sums is not None:
        check_params(model({}, sums, config.ema_shift), config)
