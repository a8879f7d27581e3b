"""SWEEP.toml: a base config, the ranges of its fields, and the budget of a trial, all checked before the first trial.

    base = "configs/quickstart.toml"    # or the tables [base.model], [base.evolution], [base.data], [base.run]
    trials = 16
    sampler = "tpe"                     # tpe, random or grid
    pruner = "median"                   # none, median or hyperband
    [budget]
    tokens = 10e6                       # or seconds, or multiply_adds
    [ranges]
    alpha = { low = 1.0, high = 8.0, log = true }
    group_size = { choices = [2, 32] }
    sigma_shift = 3                     # fixed
    alpha_decay_timestep = { low = 0.5, high = 4.0, times_epochs = true }

This module does not need Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoegg_mlx.config import Config, fields_marked
from nanoegg_mlx.errors import InputError, check_settings
from nanoegg_mlx.measure.bench import work_of_token
from nanoegg_mlx.store.tokens import Lanes, load_tokens
from nanoegg_mlx.sweeps.ranges import Range, Value, read_range
from nanoegg_mlx.training.caches import Caches

BUDGETS = ("tokens", "seconds", "multiply_adds")
SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")

_SET_BY_SWEEP = ("seed", "num_epochs", "validate_every", "checkpoint_every", "name", "checkpoints", "keep")
"""Fields that each trial gets from the sweep."""
_SAME_FOR_ALL = (*fields_marked("may_change"), "validation_batch_size")
"""Fields that do not decide the results, or decide what is measured: a range of them has no meaning."""
_COMBINATIONS = 4000
"""Combinations of the ranges' ends that are checked; of more a sample is."""
_POINTS = 10_000
"""Largest grid."""


@dataclass(frozen=True)
class Spec:
    """A checked sweep."""

    path: Path
    name: str
    base: Config
    """With the fixed values of [ranges]."""
    ranges: tuple[Range, ...]
    budget: str
    """One of BUDGETS."""
    amount: float
    """Of the budget, for each run of a trial."""
    trials: int
    sampler: str = "tpe"
    pruner: str = "none"
    seeds: int = 1
    """Runs of a trial, with the seeds base.seed, base.seed + 1, ...; their mean is the trial's figure."""
    sampler_seed: int = 0
    validations: int = 10
    """Of a run, evenly spaced; a pruner compares trials at these."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Sizes and SHA-256 of the caches."""

    def __post_init__(self) -> None:
        whole = {
            name: (type(value := getattr(self, name)) is int and value >= least, f"a whole number of at least {least}")
            for name, least in (("trials", 1), ("seeds", 1), ("sampler_seed", 0), ("validations", 1))
        }
        named = {
            name: (getattr(self, name) in values, " or ".join(repr(value) for value in values))
            for name, values in (("sampler", SAMPLERS), ("pruner", PRUNERS))
        }
        check_settings(self, {**whole, **named})

    def default_folder(self) -> Path:
        """The sweep's folder, unless the user names another."""
        return Path(self.base.checkpoints) / f"sweep-{self.name}"

    def config(self, values: Mapping[str, Value], epochs: int | None = None) -> Config:
        """The config of a trial.

        Args:
            values: of the fields with a range.
            epochs: of the trial; needed where the budget is in seconds.

        Raises:
            InputError: the values do not fit together, or the budget is less than one epoch.
        """
        of_epochs = {one.name for one in self.ranges if one.times_epochs}
        config = self.base.replace(**{name: value for name, value in values.items() if name not in of_epochs})
        epochs = self.epochs(config) if epochs is None else epochs
        every = math.ceil(epochs / self.validations)
        return config.replace(
            num_epochs=epochs,
            validate_every=every,
            checkpoint_every=every,
            **{name: max(1, round(float(values[name]) * epochs)) for name in of_epochs & values.keys()},
        )

    def epochs(self, config: Config) -> int:
        """Epochs that the budget pays for. Raises InputError if it is less than one."""
        cost = tokens = config.population * config.tokens_per_update
        if self.budget == "multiply_adds":
            cost = tokens * work_of_token(config)
        if self.amount < cost:
            raise InputError(
                f"budget.{self.budget} is {self.amount:.12g}; it must be at least {cost}, one epoch with population = "
                f"{config.population} and tokens_per_update = {config.tokens_per_update}."
            )
        return int(self.amount // cost)

    def run_name(self, number: int, seed: int) -> str:
        """The folder's name of a trial's run; `seed` counts from 0."""
        return f"trial-{number:04d}" if self.seeds == 1 else f"trial-{number:04d}-seed-{self.base.seed + seed}"

    def step(self, config: Config, epoch: int) -> int:
        """The number of a validation, equal for trials that have spent equal shares of their budgets."""
        return round(self.validations * epoch / config.num_epochs)

    def points(self) -> Iterator[dict[str, Value]]:
        """All combinations of values of a grid."""
        for values in itertools.product(*(one.points() for one in self.ranges)):
            yield {one.name: value for one, value in zip(self.ranges, values, strict=True)}

    def identity(self) -> dict[str, Any]:
        """All that a trial's figure depends on: equal for the processes, and for the starts, of one sweep.

        Trials, sampler and pruner may change from one start to the next.
        """
        ignored = {*fields_marked("may_change"), *(one.name for one in self.ranges)}
        base = {name: value for name, value in dataclasses.asdict(self.base).items() if name not in ignored}
        return {
            **{f"base.{name}": value for name, value in base.items()},
            **{f"ranges.{one.name}": one.table() for one in self.ranges},
            f"budget.{self.budget}": self.amount,
            "seeds": self.seeds,
            "validations": self.validations,
            **{f"the content of the {name} cache": about["sha256"] for name, about in self.data.items()},
        }


def read_spec(path: str | Path) -> Spec:
    """Reads and checks a SWEEP.toml, and the caches that it names.

    Raises:
        InputError: the file cannot be read, a key or value is not allowed, the ranges' ends do not make a config, or
            the budget or the caches are too small for one of them.
    """
    path = Path(path)
    document = _parsed(path)
    keys = ("name", "base", "trials", "sampler", "pruner", "seeds", "sampler_seed", "validations", "budget", "ranges")
    for key in document:
        if key not in keys:
            raise InputError(f"The sweep {path} has an unknown key {key!r}; it must be one of {', '.join(keys)}.")
    ranges, fixed = _ranges(document.get("ranges"), path)
    base = _base(document.get("base"), path).replace(**fixed)
    budget, amount = _budget(document.get("budget"), path)
    options = {key: document[key] for key in keys[3:8] if key in document}
    name = document.get("name", path.stem)
    base.replace(name=name)  # a folder's name
    grid = options.get("sampler") == "grid"
    trials = _grid_size(ranges, document) if grid else document.get("trials")
    if trials is None:
        raise InputError(f"The sweep {path} has no `trials`; it must have their number.")
    spec = Spec(path, name, base, ranges, budget, amount, trials, **options)
    base.replace(seed=base.seed + spec.seeds - 1)
    _check_trials(spec)
    return dataclasses.replace(spec, data=Caches(base).identity())


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"The sweep {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The sweep {path} is not valid TOML: {error}.") from error


def _base(given: Any, path: Path) -> Config:
    """The base config, of a file or of tables. A relative path is one from the working folder, or the sweep's."""
    if isinstance(given, str):
        return Config.from_toml(given if Path(given).exists() else path.parent / given)
    if not isinstance(given, dict):
        raise InputError(f"The sweep {path} has base = {given!r}; it must be the path of a config, or tables.")
    config = Config.from_document(given, f"[base] of the sweep {path}")
    beside = {name: path.parent / getattr(config, name) for name in ("train", "valid")}
    return config.replace(
        **{
            name: str(found)
            for name, found in beside.items()
            if found.exists() and not Path(getattr(config, name)).exists()
        }
    )


def _budget(given: Any, path: Path) -> tuple[str, float]:
    names = " or ".join(BUDGETS)
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in BUDGETS:
        have = " and ".join(given) if isinstance(given, dict) and given else repr(given)
        raise InputError(f"The budget of the sweep {path} is {have}; it must be exactly one of {names}.")
    kind, amount = next(iter(given.items()))
    if type(amount) not in (int, float) or not 0 < amount < math.inf:
        raise InputError(f"budget.{kind} is {amount!r}; it must be a number above 0.")
    return kind, float(amount)


def _ranges(given: Any, path: Path) -> tuple[tuple[Range, ...], dict[str, Any]]:
    """The ranges, and the fixed values."""
    if not isinstance(given, dict) or not given:
        raise InputError(f"The sweep {path} has no ranges; it must have a table [ranges].")
    fields = {one.name: one for one in dataclasses.fields(Config)}
    ranges, fixed = [], {}
    for name, entry in given.items():
        if name not in fields:
            raise InputError(f"[ranges] has an unknown field {name!r}; it must be one of {', '.join(fields)}.")
        if name in _SET_BY_SWEEP:
            remedy = "`seeds` says how many" if name == "seed" else "the sweep sets it"
            raise InputError(f"[ranges] has {name!r}; it must be left out, since {remedy}.")
        if not isinstance(entry, dict):
            fixed[name] = entry
        elif name in _SAME_FOR_ALL:
            raise InputError(f"ranges.{name} is a range; it must be one value, since no result may depend on it.")
        else:
            ranges.append(read_range(fields[name], entry))
    if not ranges:
        raise InputError(f"[ranges] of the sweep {path} has fixed values only; it must have at least one range.")
    return tuple(ranges), fixed


def _grid_size(ranges: tuple[Range, ...], document: Mapping[str, Any]) -> int:
    size = math.prod(len(one.points()) for one in ranges)
    if size > _POINTS:
        raise InputError(f"The grid has {size} points; it must have at most {_POINTS}.")
    if document.get("trials", size) != size:
        raise InputError(f"trials is {document['trials']!r}; it must be left out, since the grid has {size} points.")
    return size


def _check_trials(spec: Spec) -> None:
    """Raises InputError if the ends of the ranges do not make a config that the budget and the caches suffice for."""
    tokens = load_tokens(spec.base.train)
    known = set()
    for values in _corners(spec):
        config = spec.config(values, epochs=1 if spec.budget == "seconds" else None)
        reading = (config.lanes, config.tokens_per_update)
        if reading not in known:
            known.add(reading)
            Lanes(tokens, config)


def _corners(spec: Spec) -> Iterator[dict[str, Value]]:
    """All combinations of the ends and choices; if they are too many, each value once, and a sample."""
    ends = {one.name: one.ends() for one in spec.ranges}
    if math.prod(map(len, ends.values())) <= _COMBINATIONS:
        yield from (dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values()))
        return
    first = {name: values[0] for name, values in ends.items()}
    yield from ({**first, name: value} for name, values in ends.items() for value in values)
    draws = random.Random(0)
    for _ in range(_COMBINATIONS):
        yield {name: draws.choice(values) for name, values in ends.items()}
