"""The range of one config field in SWEEP.toml: from `low` to `high`, or `choices`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.fields import describe_range

Value: TypeAlias = bool | int | float | str
"""Of a field."""

_KEYS = ("low", "high", "log", "step", "choices", "times_epochs")
_MOST = 10_000
"""Points of one range in a grid."""


@dataclass(frozen=True)
class Range:
    """The values that a field may have."""

    name: str
    kind: str
    """Of the values: int, float, bool or str."""
    choices: tuple[Value, ...] = ()
    """If not empty, all the values; the bounds then have no meaning."""
    low: float = 0
    high: float = 0
    step: float | None = None
    """None: any number between the bounds."""
    log: bool = False
    times_epochs: bool = False
    """The field's value is this many times the epochs of the trial."""

    def ends(self) -> list[Value]:
        """The values at which the config is checked: all choices, or the bounds and the first step."""
        if self.choices:
            return list(self.choices)
        return [self.low, self.high] if self.step is None else [self.low, self.low + self.step, self.high]

    def points(self) -> list[Value]:
        """All values. Raises InputError if they cannot be counted."""
        if self.choices:
            return list(self.choices)
        step = 1 if self.step is None and self.kind == "int" and not self.log else self.step
        if step is None:
            raise InputError(f'ranges.{self.name} has no step; with sampler = "grid" it must have one, or choices.')
        count = round((self.high - self.low) / step) + 1
        if count > _MOST:
            raise InputError(f"ranges.{self.name} has {count} points; in a grid it must have at most {_MOST}.")
        return [self.low + number * step for number in range(count)]

    def table(self) -> dict[str, Any]:
        """The range as in SWEEP.toml."""
        if self.choices:
            shown: dict[str, Any] = {"choices": list(self.choices)}
        else:
            shown = {"low": self.low, "high": self.high}
        flags = {"step": self.step, "log": self.log, "times_epochs": self.times_epochs}
        return {**shown, **{name: value for name, value in flags.items() if value}}


def read_range(field: dataclasses.Field[Any], entry: Mapping[str, Any]) -> Range:
    """The range of a config field. Raises InputError for an unknown key, a wrong type or an empty range."""
    where = f"ranges.{field.name}"
    for key in entry:
        if key not in _KEYS:
            raise InputError(f"{where} has an unknown key {key!r}; it must be one of {', '.join(_KEYS)}.")
    for key in ("log", "times_epochs"):
        if not isinstance(entry.get(key, False), bool):
            raise InputError(f"{where}.{key} is {entry[key]!r}; it must be true or false.")
    times_epochs = entry.get("times_epochs", False)
    if times_epochs and field.name != "alpha_decay_timestep":
        raise InputError(f"{where} has times_epochs; only alpha_decay_timestep, which counts epochs, may have it.")
    kind = "float" if times_epochs else str(field.type)
    if "choices" in entry:
        return Range(field.name, kind, _choices(where, kind, entry), times_epochs=times_epochs)
    if kind in ("bool", "str"):
        raise InputError(f"{where} has no choices; it must have a list of them.")
    return _interval(field, kind, entry, times_epochs)


def _choices(where: str, kind: str, entry: Mapping[str, Any]) -> tuple[Value, ...]:
    given = entry["choices"]
    if set(entry) - {"choices", "times_epochs"}:
        raise InputError(f"{where} has choices and {', '.join(set(entry) - {'choices'})}; it must have one of them.")
    if not isinstance(given, list) or not given:
        raise InputError(f"{where}.choices is {given!r}; it must be a list of at least one value.")
    values = tuple(_value(f"A choice of {where}", kind, value) for value in given)
    if len(set(values)) < len(values):
        raise InputError(f"{where}.choices is {given!r}; its values must be different.")
    return values


def _interval(field: dataclasses.Field[Any], kind: str, entry: Mapping[str, Any], times_epochs: bool) -> Range:
    where, log, even = f"ranges.{field.name}", entry.get("log", False), field.metadata["even"]
    for key in ("low", "high"):
        if key not in entry:
            raise InputError(f"{where} has no {key}; it must have `low` and `high`, or `choices`.")
    low, high = (_value(f"{where}.{key}", kind, entry[key]) for key in ("low", "high"))
    if low >= high:
        raise InputError(f"{where} is empty: low is {low} and high is {high}; low must be below high.")
    if (log or times_epochs) and low <= 0:
        raise InputError(f"{where}.low is {low}; it must be above 0 with {'log' if log else 'times_epochs'}.")
    step = _value(f"{where}.step", kind, entry["step"]) if "step" in entry else None
    if step is not None:
        steps = (high - low) / step if step > 0 else 0
        if log or steps < 1 or not math.isclose(steps, round(steps), rel_tol=1e-9):
            raise InputError(
                f"{where}.step is {step}; it must divide the range from {low} to {high} into steps, without log."
            )
    if even and (step is None or step % 2):
        raise InputError(f"{where} has odd values; it must have an even step, or choices: {describe_range(field)}.")
    return Range(field.name, kind, (), low, high, step, log, times_epochs)


def _value(what: str, kind: str, value: Any) -> Any:
    """The value as the field's type; Config checks its range."""
    if kind == "float" and type(value) is int:
        value = float(value)
    if type(value).__name__ != kind or (kind == "float" and not math.isfinite(value)):
        words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string"}
        raise InputError(f"{what} is {value!r}; it must be {words[kind]}.")
    return value
