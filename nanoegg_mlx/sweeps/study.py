"""A sweep in progress: an Optuna study that any number of processes and machines work on, and the claims on its trials.

<sweep>/sweep.json          what all figures depend on; a start with other ranges is refused
        journal.log         Optuna's storage, unless a URL names another
        trial-0007/         an ordinary run (store/checkpoint.py), with several seeds trial-0007-seed-0 and so on
        claims/             locks: the system releases a dead worker's, and another worker continues its trial
"""

from __future__ import annotations

import json
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.store import checkpoint
from nanoegg_mlx.store.durable import Lock, create_file
from nanoegg_mlx.sweeps.ranges import Range, Value
from nanoegg_mlx.sweeps.spec import Spec
from nanoegg_mlx.sweeps.trial import Figure

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"
_PLACE = "folder"
"""Attribute of a trial: the sweep's folder that has its runs, by the token in sweep.json."""
_ERROR = "error"
"""Attribute of a trial whose values do not fit together."""
_FIRST = {"claims", JOURNAL, f"{JOURNAL}.lock", ".sweep.json.tmp"}
"""Files of a folder whose sweep.json a kill prevented."""
_LOST = timedelta(minutes=1)
"""Age of a trial that its process was killed before claiming; claiming takes milliseconds."""


def need_optuna() -> None:
    """Raises InputError, with the name of the extra, if Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise InputError("Optuna is not installed; a sweep needs it: `pip install 'nanoegg-mlx[sweep]'`.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass
class Claimed:
    """A trial that this process, and no other, may train."""

    trial: Trial
    values: dict[str, Value]
    """Of the fields with a range."""
    lock: Lock


class Sweep:
    """The trials of a sweep, as one worker sees them."""

    def __init__(self, spec: Spec, folder: Path, storage: str | None = None) -> None:
        """Begins or continues a sweep.

        Args:
            spec: checked.
            folder: the sweep's; created if it does not exist.
            storage: an Optuna storage URL, or the path of a journal; by default the journal in the folder.

        Raises:
            InputError: Optuna is not installed, the storage cannot be reached, or the folder or the storage has a sweep
                of other ranges.
        """
        need_optuna()
        self.spec, self.folder = spec, checkpoint.outside_checkpoints(folder)
        self.storage = storage or str(folder / JOURNAL)
        known = _recorded(folder)
        if known:
            _check_same(spec, known["sweep"], f"the sweep in {folder}")
        elif folder.is_dir() and not {path.name for path in folder.iterdir()} <= _FIRST:
            raise InputError(f"The folder {folder} has other files and no sweep.json; it must be a sweep's, or new.")
        if not storage:
            folder.mkdir(parents=True, exist_ok=True)
        with one_sentence(self.storage):
            opened = _open_storage(self.storage)
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._place = _record(spec, folder)["place"]
            with one_sentence(self.storage):
                self.study = _begin_study(spec, opened)
            _check_same(spec, self.study.user_attrs["sweep"], f"the sweep {spec.name!r} in {self.storage}")

    def claim(self) -> Claimed | None:
        """The next trial: one whose worker has died, or else a new one; None if there is no more to begin."""
        with one_sentence(self.storage), self._alone():
            trials = self.study.get_trials(deepcopy=False)
            claimed = self._orphan(trials) or self._new(trials)
        if claimed is None:
            return None
        with one_sentence(self.storage):
            self.study.sampler = _sampler(self.spec, claimed.trial.number)
            claimed.values.update({one.name: _draw(claimed.trial, one) for one in self.spec.ranges})
        return claimed

    def finish(self, claimed: Claimed, figure: Figure) -> None:
        """Records the end of a trial, unless a signal has stopped it."""
        from optuna.trial import TrialState

        if figure.stopped:
            return
        with one_sentence(self.storage):
            if figure.pruned:
                self.study.tell(claimed.trial, state=TrialState.PRUNED)
            else:
                self.study.tell(claimed.trial, figure.bits_per_byte)

    def refuse(self, claimed: Claimed, error: InputError) -> None:
        """Records that the values of a trial do not fit together."""
        from optuna.trial import TrialState

        with one_sentence(self.storage):
            claimed.trial.set_user_attr(_ERROR, str(error))
            self.study.tell(claimed.trial, state=TrialState.FAIL)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the least bits per byte."""
        complete = [trial for trial in self.study.get_trials(deepcopy=False) if is_complete(trial)]
        return min(complete, key=lambda trial: trial.value or 0.0, default=None)

    def _orphan(self, trials: list[FrozenTrial]) -> Claimed | None:
        """A running trial of this folder that no process holds."""
        from optuna.trial import Trial, TrialState

        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            if _PLACE not in trial.user_attrs:
                if trial.datetime_start and datetime.now() - trial.datetime_start > _LOST:
                    self.study.tell(trial.number, state=TrialState.FAIL)
            elif trial.user_attrs[_PLACE] == self._place and (lock := self._lock(trial.number)):
                # Its worker may have finished it since the trials were read.
                if self.study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
                    return Claimed(Trial(self.study, trial._trial_id), {}, lock)
                lock.release()
        return None

    def _new(self, trials: list[FrozenTrial]) -> Claimed | None:
        from optuna.trial import TrialState

        begun = [trial for trial in trials if trial.state != TrialState.FAIL or _ERROR in trial.user_attrs]
        if self.spec.sampler == "grid":
            done = [trial.system_attrs.get("fixed_params") for trial in begun]
            missing = next((point for point in self.spec.points() if point not in done), None)
            if missing is None:
                return None
            self.study.enqueue_trial(missing)
        elif len(begun) >= self.spec.trials:
            return None
        trial = self.study.ask()
        trial.set_user_attr(_PLACE, self._place)
        lock = self._lock(trial.number)
        assert lock is not None  # claims are made one at a time
        return Claimed(trial, {}, lock)

    def _lock(self, number: int) -> Lock | None:
        """The claim on a trial; None if another process has it."""
        folder = self.folder / "claims" / f"trial-{number:04d}"
        folder.mkdir(exist_ok=True)
        try:
            return Lock(folder)
        except InputError:
            return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process of this folder is claiming."""
        while True:
            try:
                lock = Lock(self.folder / "claims")
                break
            except InputError:
                time.sleep(0.02)
        try:
            yield
        finally:
            lock.release()


def is_complete(trial: FrozenTrial) -> bool:
    """Whether the trial has a figure at the end of its budget."""
    from optuna.trial import TrialState

    return trial.state == TrialState.COMPLETE and trial.value is not None


def read_study(spec: Spec, folder: Path, storage: str | None = None) -> optuna.Study:
    """Opens the study of a sweep to read it. Raises InputError if there is none, or as `Sweep` does."""
    need_optuna()
    import optuna

    known = _recorded(folder)
    if known is None:
        raise InputError(f"The folder {folder} has no sweep; it must be the one of `nanoegg sweep {spec.path}`.")
    _check_same(spec, known["sweep"], f"the sweep in {folder}")
    storage = storage or str(folder / JOURNAL)
    if "://" not in storage and not Path(storage).exists():
        raise InputError(f"The journal {storage} does not exist; it must be the one of `nanoegg sweep {spec.path}`.")
    with one_sentence(storage):
        return optuna.load_study(study_name=spec.name, storage=_open_storage(storage))


def _recorded(folder: Path) -> dict[str, Any] | None:
    """The content of sweep.json; None if there is no such file."""
    path = folder / "sweep.json"
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict) or not isinstance(known.get("sweep"), dict) or "place" not in known:
        raise InputError(f"{path} is damaged; it must be as `nanoegg sweep` wrote it.")
    return known


def _record(spec: Spec, folder: Path) -> dict[str, Any]:
    """The content of sweep.json, which is written if it does not exist."""
    known = _recorded(folder)
    if known is None:
        known = {"place": secrets.token_hex(8), "sweep": spec.identity()}
        create_file(folder / "sweep.json", json.dumps(known, indent=2).encode())
    return known


def _check_same(spec: Spec, recorded: Mapping[str, Any], where: str) -> None:
    """Raises InputError, naming the first difference, if the recorded sweep is another one."""
    now = json.loads(json.dumps(spec.identity()))
    for name in {**recorded, **now}:
        given, needed = now.get(name), recorded.get(name)
        if given != needed:
            raise InputError(
                f"{name} is {_shown(given)} in {spec.path}; it must be {_shown(needed)} as in {where}, or the sweep "
                "must have another name or --folder."
            )


def _shown(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


@contextmanager
def one_sentence(storage: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turns a storage's errors of a class into InputError; what opening one raises depends on the storage."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except kind as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"The storage {storage} cannot be used ({reason}); it must be an Optuna storage URL or a journal's path."
        ) from error


def _open_storage(storage: str) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if "://" in storage:
        return RDBStorage(storage)
    path = Path(storage).absolute()
    lock = JournalFileOpenLock(str(path))
    backend = JournalFileBackend(str(path), lock)
    _end_last_line(path, lock)
    return JournalStorage(backend)


def _end_last_line(path: Path, lock: Any) -> None:
    """Cuts off an incomplete last line, which a power cut may leave: the next one would be appended to it."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        lock.acquire()
        try:
            content = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        finally:
            lock.release()


def _begin_study(spec: Spec, storage: optuna.storages.BaseStorage) -> optuna.Study:
    import optuna

    rules: Any = {"study_name": spec.name, "storage": storage, "pruner": _pruner(spec)}
    try:
        study = optuna.load_study(**rules)
    except KeyError:  # there is none yet
        study = optuna.create_study(**rules, direction="minimize", load_if_exists=True)
    if "sweep" not in study.user_attrs:
        if study.trials:
            raise InputError(f"The study {spec.name!r} of the storage has other trials; it must be a sweep's, or new.")
        study.set_user_attr("sweep", spec.identity())
    return study


def _pruner(spec: Spec) -> optuna.pruners.BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if spec.pruner == "median":
        # The first quarter of a run, where most of the entries still move, says little about its end.
        return MedianPruner(n_startup_trials=_startup(spec), n_warmup_steps=spec.validations // 4 + 1)
    if spec.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=spec.validations, reduction_factor=3)
    return NopPruner()


def _sampler(spec: Spec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial: its draws follow from its number and the finished trials, for any number of workers."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = (spec.sampler_seed * 1_000_003 + number) % 2**32
    if spec.sampler == "tpe":
        # The liar lets simultaneous workers try different places.
        return TPESampler(seed=seed, n_startup_trials=_startup(spec), constant_liar=True)
    return RandomSampler(seed=seed)


def _startup(spec: Spec) -> int:
    """Trials drawn at random, and not pruned, before the others are compared with them."""
    return min(10, max(1, spec.trials // 3))


def _draw(trial: Trial, one: Range) -> Any:
    if one.choices:
        return trial.suggest_categorical(one.name, one.choices)
    if one.kind == "int":
        step = 1 if one.step is None else int(one.step)
        return trial.suggest_int(one.name, int(one.low), int(one.high), step=step, log=one.log)
    return trial.suggest_float(one.name, one.low, one.high, step=one.step, log=one.log)
