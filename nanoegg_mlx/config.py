"""The configuration of a run: one frozen dataclass, checked when it is made, read from and written to TOML.

Field names are flat (`Config(seed=0, n_layer=2)`); in a TOML file they are in the tables [model], [evolution],
[data] and [run]. Each field carries its table, its help text with the unit, and its allowed range, and the
command line's options are generated from the same three. It also states whether a resumed run may change the field
and whether the ranks of a job may differ in it. Defaults are the reference's (spec section 9).
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from nanoegg_mlx.errors import InputError

TABLES = ("model", "evolution", "data", "run")
MOST_COMPARED = 128
"""Members of a lane that are compared with its first one: of so many the sum of credits fits two digits of int8."""
ENGINES = ("auto", "cpu", "mlx", "both")


def _field(
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


@dataclass(frozen=True)
class Config:
    """All settings of a run. Raises InputError, naming the field and its range, for a bad value."""

    n_layer: int = _field("model", 6, "number of layers", low=1, high=1024)
    n_embd: int = _field("model", 256, "width of the residual stream and of a state", low=1, high=16384)
    vocab_size: int = _field("model", 256, "number of byte values in the vocabulary", low=1, high=256)
    zero_head: bool = _field("model", False, "start with an output layer of zeros, which predicts all bytes alike")

    seed: int = _field("evolution", 0, "seed of initial weights and perturbations", low=0, high=2**64 - 1)
    population: int = _field(
        "evolution", 1024, "members scored in an epoch, in antithetic pairs", low=2, high=2**30, even=True
    )
    group_size: int = _field("evolution", 2, "consecutive members that read the same lane of text", low=2, even=True)
    rank: int = _field("evolution", 1, "rank of a matrix's perturbation", low=1, high=4096, only_with="weights")
    num_perturbations: int = _field(
        "evolution",
        0,
        "members with different noise; the others repeat it (0: all)",
        low=0,
        high=2**30,
        even=True,
        only_with="weights",
    )
    noise_reuse: int = _field(
        "evolution", 1, "epochs that share one draw of the noise (0: all of them)", low=0, only_with="weights"
    )
    sigma_shift: int = _field("evolution", 4, "the noise scale is 2^-sigma_shift", low=-4, high=27, only_with="weights")
    alpha: float = _field(
        "evolution",
        4.0,
        "share of entries that pure noise would move: constant up to 1; above 1 it starts at 1 and reaches "
        "2^-alpha after alpha_decay_timestep epochs",
        above=0,
        high=64,
    )
    alpha_decay_timestep: int = _field("evolution", 1000, "epochs until a decaying alpha has reached 2^-alpha", low=1)
    use_clt: bool = _field(
        "evolution", True, "vote with the perturbations themselves (false: with their signs)", only_with="weights"
    )
    fast_fitness: bool = _field(
        "evolution",
        True,
        "a pair's fitness is the sign of its difference (false: normalised by the rms)",
        only_with="weights",
    )

    perturb: str = _field(
        "evolution",
        "weights",
        "perturbed quantity: weights (the reference) or activations (docs/activations.md)",
        choices=("weights", "activations"),
    )
    nudge: int = _field("evolution", 2, "size of an activation's nudge", low=1, high=64, only_with="activations")
    head_nudge: int = _field(
        "evolution", 4, "size of a logit's nudge, with head_rule = perturb", low=1, high=64, only_with="activations"
    )
    credit_decay: int = _field(
        "evolution",
        12,
        "discount of later score differences a token, in sixteenths",
        low=0,
        high=15,
        only_with="activations",
    )
    head_rule: str = _field(
        "evolution",
        "error",
        "learning of the head: from its own error, or perturbed like the other nodes",
        choices=("error", "perturb"),
        only_with="activations",
    )

    decorrelate: bool = _field(
        "evolution",
        False,
        "let matrices learn as if their inputs were uncorrelated (docs/decorrelation.md)",
        only_with="activations",
    )
    antithetic: bool = _field(
        "evolution",
        True,
        "nudge the members of a pair in opposite directions (false: compare a lane's members with its first, which has "
        "no nudges; docs/lane-baseline.md)",
        only_with="activations",
    )

    tokens_per_update: int = _field("data", 100, "bytes that each member reads in an epoch", low=1)
    train: str = _field(
        "data", "data/minipile_train.npy", "training cache (1-D uint8 .npy)", may_change=True, per_rank=True
    )
    valid: str = _field(
        "data", "data/minipile_valid.npy", "validation cache (1-D uint8 .npy)", may_change=True, per_rank=True
    )

    name: str = _field(
        "run", "run", "name of the run's folder; a number is added if it exists", may_change=True, per_rank=True
    )
    checkpoints: str = _field(
        "run", "checkpoints", "folder that holds the runs' folders", may_change=True, per_rank=True
    )
    num_epochs: int = _field("run", 1000, "epochs (updates) to train for", low=0, may_change=True)
    validate_every: int = _field("run", 10, "epochs between validations (0: only at the end)", low=0, may_change=True)
    validation_batch_size: int = _field(
        "run", 1024, "rows that the validation set is cut into, scored in parallel", low=1
    )
    sample_bytes: int = _field(
        "run", 0, "bytes of a sample that each validation shows in the log (0: none)", low=0, may_change=True
    )
    checkpoint_every: int = _field(
        "run", 100, "epochs between checkpoints (0: only at the end)", low=0, may_change=True
    )
    keep: int = _field(
        "run",
        3,
        "newest checkpoints to keep, besides the best on validation",
        low=1,
        may_change=True,
        per_rank=True,
    )
    engine: str = _field(
        "run",
        "auto",
        "code that scores and updates: the CPU's cores, MLX's device, both together, or by measurement",
        choices=ENGINES,
        may_change=True,
        per_rank=True,
    )
    threads: int = _field(
        "run", 0, "threads of the CPU engine (0: all usable cores)", low=0, high=4096, may_change=True, per_rank=True
    )
    chunk: int = _field(
        "run",
        0,
        "members scored at a time, which bounds memory (0: chosen)",
        low=0,
        high=2**30,
        may_change=True,
        per_rank=True,
    )
    update: str = _field(
        "run",
        "auto",
        "in a job of several processes: each sums all votes, or a share of them (auto: the faster one, by measurement)",
        choices=("auto", "replicated", "sharded"),
        may_change=True,
    )
    check_every: int = _field(
        "run",
        100,
        "epochs between comparisons of the processes' parameters (0: only with checkpoints)",
        low=0,
        may_change=True,
    )
    timeout: float = _field(
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
            value = _checked(field, getattr(self, field.name))
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
        beside = {
            name: str(Path(path).parent / getattr(config, name))
            for name in ("train", "valid")
            if name not in overrides and not Path(getattr(config, name)).exists()
        }
        # A relative path is one from the working folder, or else one from the config's.
        return config.replace(**{name: found for name, found in beside.items() if Path(found).exists()})

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
    """The names of the fields whose metadata has this mark (`_field` defines the marks)."""
    return tuple(field.name for field in dataclasses.fields(Config) if field.metadata[mark])


def _field_named(name: str, where: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields:
        raise InputError(f"{where} has an unknown key {name!r}; it must be one of {', '.join(fields)}.")
    return fields[name]


_KINDS = types.MappingProxyType(
    {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a string"}
)


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as the field's plain Python type, or InputError."""
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
