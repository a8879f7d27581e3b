"""A field of the configuration: its table, help text, range and rules, and the check of its values."""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, Literal

from nanoegg_mlx.errors import InputError


def setting(
    table: str,
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    even: bool = False,
    choices: tuple[str, ...] | None = None,
    may_change: bool = False,
    per_rank: bool = False,
    only_with: Literal["weights", "activations"] | None = None,
) -> Any:
    """A dataclass field with its TOML table, help text and rules.

    Args:
        low, high, above: bounds; `above` excludes its value, the others include it.
        may_change: a resumed run may have another value, since the field does not decide the results.
        per_rank: the ranks of a job may have different values; the run records rank 0's.
        only_with: value of `perturb` that the field belongs to; with another one it must have its default.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "table": table,
            "help": help,
            "low": low,
            "high": high,
            "above": above,
            "even": even,
            "choices": choices,
            "may_change": may_change,
            "per_rank": per_rank,
            "only_with": only_with,
        },
    )


_KINDS = types.MappingProxyType(
    {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string"}
)


def checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as the plain Python type of a field of `Config`. Raises InputError for a value outside its range."""
    kind = str(field.type)
    allowed = describe_range(field)
    problem = InputError(f"{field.name} is {value!r}; it must be {allowed}.")
    if kind == "bool":
        if not isinstance(value, bool):
            raise problem
        return value
    if kind == "str":
        choices = field.metadata["choices"]
        if not isinstance(value, str) or (choices and value not in choices):
            raise problem
        if not _is_text(value):
            # Bytes of a command line that are not UTF-8 arrive as surrogates; neither TOML nor JSON can hold them.
            raise InputError(f"{field.name} is {value!r}; it must be text that UTF-8 can encode, without a NUL.")
        return value
    if isinstance(value, bool):
        raise problem
    try:
        number = value.__index__() if kind == "int" else float(value)
    except (AttributeError, TypeError, ValueError) as error:
        raise problem from error
    low, high, above = (field.metadata[bound] for bound in ("low", "high", "above"))
    if (
        not math.isfinite(number)
        or (low is not None and number < low)
        or (high is not None and number > high)
        or (above is not None and number <= above)
        or (field.metadata["even"] and number % 2)
    ):
        raise problem
    return number


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def describe_range(field: dataclasses.Field[Any]) -> str:
    """The values that a field accepts, in words: 'an even whole number from 2 to 1073741824'."""
    choices = field.metadata["choices"]
    if choices:
        return " or ".join(repr(choice) for choice in choices)
    text = _KINDS[str(field.type)]
    if field.metadata["even"]:
        text = "an even whole number"
    low, high, above = (field.metadata[bound] for bound in ("low", "high", "above"))
    if above is not None:
        text += f" above {above}"
    if low is not None:
        text += f" from {low}" if high is not None else f" of at least {low}"
    if high is not None:
        text += f" {'to' if low is not None else 'and up to'} {high}"
    return text
