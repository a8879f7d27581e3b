"""The configuration of a run: one frozen dataclass, checked when it is made, read from and written to TOML.

Field names are flat (`Config(seed=0, n_layer=2)`); in a TOML file they are in the tables [model], [evolution],
[data] and [run]. Each field carries its table, help text, allowed range and rules (fields.py), and the command line's
options are generated from them. Defaults are the reference's (spec section 9).
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.fields import checked, setting

TABLES = ("model", "evolution", "data", "run")
MOST_COMPARED = 128
"""Members of a lane that are compared with its first one: of so many the sum of credits fits two digits of int8."""
ENGINES = ("auto", "cpu", "mlx", "both")


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises InputError, naming the field and its range, for a bad value."""

    n_layer: int = setting("model", 6, "number of layers", low=1, high=1024)
    n_embd: int = setting("model", 256, "width of the residual stream and of a state", low=1, high=16384)
    vocab_size: int = setting("model", 256, "number of byte values in the vocabulary", low=1, high=256)
    zero_head: bool = setting("model", False, "start with an output layer of zeros, which predicts all bytes alike")

    seed: int = setting("evolution", 0, "seed of initial weights and perturbations", low=0, high=2**64 - 1)
    population: int = setting(
        "evolution", 1024, "members scored in an epoch, in antithetic pairs", low=2, high=2**30, even=True
    )
    group_size: int = setting("evolution", 2, "consecutive members that read the same lane of text", low=2, even=True)
    rank: int = setting("evolution", 1, "rank of a matrix's perturbation", low=1, high=4096, only_with="weights")
    num_perturbations: int = setting(
        "evolution",
        0,
        "members with different noise; the others repeat it (0: all)",
        low=0,
        high=2**30,
        even=True,
        only_with="weights",
    )
    noise_reuse: int = setting(
        "evolution", 1, "epochs that share one draw of the noise (0: all of them)", low=0, only_with="weights"
    )
    sigma_shift: int = setting(
        "evolution", 4, "the noise scale is 2^-sigma_shift", low=-4, high=27, only_with="weights"
    )
    alpha: float = setting(
        "evolution",
        4.0,
        "share of entries that pure noise would move: constant up to 1; above 1 it starts at 1 and reaches "
        "2^-alpha after alpha_decay_timestep epochs",
        above=0,
        high=64,
    )
    alpha_decay_timestep: int = setting("evolution", 1000, "epochs until a decaying alpha has reached 2^-alpha", low=1)
    use_clt: bool = setting(
        "evolution", True, "vote with the perturbations themselves (false: with their signs)", only_with="weights"
    )
    fast_fitness: bool = setting(
        "evolution",
        True,
        "a pair's fitness is the sign of its difference (false: normalised by the rms)",
        only_with="weights",
    )
    sparse_embedding: bool = setting(
        "evolution",
        False,
        "let only pairs that have read a byte vote on its embedding (docs/perturbed-weights.md)",
        only_with="weights",
    )

    perturb: str = setting(
        "evolution",
        "weights",
        "perturbed quantity: weights (the reference) or activations (docs/activations.md)",
        choices=("weights", "activations"),
    )
    nudge: int = setting("evolution", 2, "size of an activation's nudge", low=1, high=64, only_with="activations")
    head_nudge: int = setting(
        "evolution", 4, "size of a logit's nudge, with head_rule = perturb", low=1, high=64, only_with="activations"
    )
    credit_decay: int = setting(
        "evolution",
        12,
        "discount of later score differences a token, in sixteenths",
        low=0,
        high=15,
        only_with="activations",
    )
    head_rule: str = setting(
        "evolution",
        "error",
        "learning of the head: from its own error, or perturbed like the other nodes",
        choices=("error", "perturb"),
        only_with="activations",
    )

    decorrelate: bool = setting(
        "evolution",
        False,
        "let matrices learn as if their inputs were uncorrelated (docs/decorrelation.md)",
        only_with="activations",
    )
    antithetic: bool = setting(
        "evolution",
        True,
        "nudge the members of a pair in opposite directions (false: compare a lane's members with its first, which has "
        "no nudges; docs/lane-baseline.md)",
        only_with="activations",
    )

    average: bool = setting(
        "evolution",
        False,
        "validate, show and export the moving average of the parameters (docs/averaging.md)",
        only_with="activations",
    )

    tokens_per_update: int = setting("data", 100, "bytes that each member reads in an epoch", low=1)
    train: str = setting(
        "data", "data/minipile_train.npy", "training cache (1-D uint8 .npy)", may_change=True, per_rank=True
    )
    valid: str = setting(
        "data", "data/minipile_valid.npy", "validation cache (1-D uint8 .npy)", may_change=True, per_rank=True
    )

    name: str = setting(
        "run", "run", "name of the run's folder; a number is added if it exists", may_change=True, per_rank=True
    )
    checkpoints: str = setting(
        "run", "checkpoints", "folder that holds the runs' folders", may_change=True, per_rank=True
    )
    num_epochs: int = setting("run", 1000, "epochs (updates) to train for", low=0, may_change=True)
    validate_every: int = setting("run", 10, "epochs between validations (0: only at the end)", low=0, may_change=True)
    validation_batch_size: int = setting(
        "run", 1024, "rows that the validation set is cut into, scored in parallel", low=1
    )
    sample_bytes: int = setting(
        "run", 0, "bytes of a sample that each validation shows in the log (0: none)", low=0, may_change=True
    )
    checkpoint_every: int = setting(
        "run", 100, "epochs between checkpoints (0: only at the end)", low=0, may_change=True
    )
    keep: int = setting(
        "run",
        3,
        "newest checkpoints to keep, besides the best on validation",
        low=1,
        may_change=True,
        per_rank=True,
    )
    engine: str = setting(
        "run",
        "auto",
        "code that scores and updates: the CPU's cores, MLX's device, both together, or by measurement",
        choices=ENGINES,
        may_change=True,
        per_rank=True,
    )
    threads: int = setting(
        "run", 0, "threads of the CPU engine (0: all usable cores)", low=0, high=4096, may_change=True, per_rank=True
    )
    chunk: int = setting(
        "run",
        0,
        "members scored at a time, which bounds memory (0: chosen)",
        low=0,
        high=2**30,
        may_change=True,
        per_rank=True,
    )
    update: str = setting(
        "run",
        "auto",
        "in a job of several processes: each sums all votes, or a share of them (auto: the faster one, by measurement)",
        choices=("auto", "replicated", "sharded"),
        may_change=True,
    )
    check_every: int = setting(
        "run",
        100,
        "epochs between comparisons of the processes' parameters (0: only with checkpoints)",
        low=0,
        may_change=True,
    )
    timeout: float = setting(
        "run",
        60.0,
        "seconds beyond the expected that a process waits for the others",
        above=0,
        high=86400,
        may_change=True,
        per_rank=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.population % self.group:
            raise InputError(
                f"population is {self.population}; it must be a multiple of group_size = {self.group_size}."
            )
        for field in dataclasses.fields(self):
            needed, value = field.metadata["only_with"], getattr(self, field.name)
            if needed not in (None, self.perturb) and value != field.default:
                raise InputError(
                    f"{field.name} is {value!r}; it must be {field.default!r} with perturb = {self.perturb!r}, since "
                    f"it belongs to perturb = {needed!r}."
                )
        if not self.antithetic and self.group > MOST_COMPARED:
            raise InputError(
                f"group_size is {self.group_size}; it must be at most {MOST_COMPARED} with antithetic = false."
            )
        if not self.name or Path(self.name).name != self.name or self.name in {".", ".."}:
            raise InputError(f"name is {self.name!r}; it must be a folder's name without slashes.")

    @property
    def pairs(self) -> int:
        """N/2, the number of antithetic pairs."""
        return self.population // 2

    @property
    def group(self) -> int:
        """G = min(group_size, population), the members that share a lane (spec section 6)."""
        return min(self.group_size, self.population)

    @property
    def lanes(self) -> int:
        """S = N // G, the number of lanes of text (spec section 6)."""
        return self.population // self.group

    @property
    def cohort(self) -> int:
        """Consecutive members whose scores are compared: a pair, or without `antithetic` the members of a lane."""
        return 2 if self.antithetic else self.group

    @property
    def samples(self) -> int:
        """Score differences of a cohort at a token: a pair's one, or one for each member but the first of a lane."""
        return 1 if self.antithetic else self.group - 1

    @property
    def shift(self) -> int:
        """Right shift of a perturbation term: the 4 fractional bits and sigma_shift (spec section 3)."""
        return 4 + self.sigma_shift

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed, checked like a new one."""
        return from_dict({**dataclasses.asdict(self), **changes})

    def with_estimator(self, perturb: str) -> Config:
        """A copy for another value of `perturb`; the fields that belong to the present one get their defaults."""
        fields = dataclasses.fields(self)
        reset = {field.name: field.default for field in fields if field.metadata["only_with"] not in (None, perturb)}
        return self.replace(perturb=perturb, **reset)

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Config:
        """Reads a TOML file with the tables [model], [evolution], [data], [run]; all keys are optional.

        Raises:
            InputError: the file cannot be read or parsed, or a table, key or value is not allowed.
        """
        try:
            # utf-8-sig: some editors write a byte-order mark.
            document = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InputError(f"The config {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"The config {path} is not valid TOML: {error}.") from error
        config = cls.from_document(document, f"The config {path}", **overrides)
        # Unlike Path.exists, os.path.exists takes names that are too long for a file.
        beside = {
            name: str(Path(path).parent / getattr(config, name))
            for name in ("train", "valid")
            if name not in overrides and not os.path.exists(Path(getattr(config, name)))
        }
        # A relative path is one from the working folder, or else one from the config's.
        return config.replace(**{name: found for name, found in beside.items() if os.path.exists(found)})

    @classmethod
    def from_document(cls, document: dict[str, Any], where: str, **overrides: Any) -> Config:
        """Reads a parsed TOML document; `where` names it in errors. Raises InputError as `from_toml` does."""
        values: dict[str, Any] = {}
        for table, entries in document.items():
            if table not in TABLES or not isinstance(entries, dict):
                raise InputError(
                    f"{where} has {table!r} at its top level; it must be one of the tables {', '.join(TABLES)}."
                )
            for name, value in entries.items():
                home = _field_named(name, where).metadata["table"]
                if home != table:
                    raise InputError(f"{where} has {name!r} in [{table}]; it must be in [{home}].")
                values[name] = value
        return from_dict({**values, **overrides})

    def to_toml(self) -> str:
        """The config as TOML text that `from_toml` reads back to an equal config."""
        document: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
        for field in dataclasses.fields(self):
            document[field.metadata["table"]][field.name] = getattr(self, field.name)
        return tomli_w.dumps(document)


def from_dict(values: dict[str, Any]) -> Config:
    """A Config from flat names. Raises InputError for a name that no field has."""
    for name in values:
        _field_named(name, "The config")
    return Config(**values)


def fields_marked(mark: Literal["may_change", "per_rank"]) -> tuple[str, ...]:
    """The names of the fields whose metadata has this mark (`fields.setting` defines the marks)."""
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata[mark])


def _field_named(name: str, where: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields:
        raise InputError(f"{where} has an unknown key {name!r}; it must be one of {', '.join(fields)}.")
    return fields[name]
