"""Workers of a sweep: this process, or several that share out the machine's cores.

A worker of several is `python -m nanoegg_mlx.sweeps.workers`, in a session of its own: Ctrl-C in a terminal reaches the
command only, which passes it on once. A worker ends when its standard input does, so none outlives the command.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoegg_mlx import terminal
from nanoegg_mlx.config import Config
from nanoegg_mlx.engines import native_problem
from nanoegg_mlx.errors import InputError, JobError, ReportedElsewhere
from nanoegg_mlx.sweeps.ranges import Value
from nanoegg_mlx.sweeps.spec import Spec, read_spec
from nanoegg_mlx.sweeps.study import Claimed, Sweep, is_complete, one_sentence
from nanoegg_mlx.sweeps.trial import Figure, Workplace, train_trial
from nanoegg_mlx.training.signals import StopSignals


def run_sweep(
    spec: Spec, folder: Path, storage: str | None = None, workers: int = 1, track: Sequence[str] = ()
) -> signal.Signals | None:
    """Trains the trials of a sweep until all have begun, or until SIGINT or SIGTERM; prints a line for each.

    Args:
        spec: checked.
        folder: the sweep's.
        storage: an Optuna storage URL or a journal's path; by default a journal in the folder.
        workers: processes that share out the cores.
        track: names of trackers, as for `nanoegg train --track`.

    Returns:
        The signal that ended it. Every run has a checkpoint of its last whole epoch, and the next call continues it.

    Raises:
        InputError: as `Sweep` does, or a trial cannot be trained.
        JobError: a worker was killed.
    """
    if "wandb" in track:
        os.environ.setdefault("WANDB_RUN_GROUP", spec.name)  # wandb shows the runs of a group together
    sweep = Sweep(spec, folder, storage)
    with StopSignals() as stop:
        if workers == 1:
            stopped = _work(sweep, Workplace(folder, spec.base.threads, track, stop))
        else:
            stopped = _work_in_processes(spec, folder, storage, workers, track, stop)
    if not stopped:
        print(_summary(sweep))
    return stopped


def _work_in_processes(
    spec: Spec, folder: Path, storage: str | None, workers: int, track: Sequence[str], stop: StopSignals
) -> signal.Signals | None:
    """Trains trials in several processes; returns the signal that ended them."""
    shares = thread_shares(spec.base, workers)
    given = {"sweep": str(spec.path), "folder": str(folder), "storage": storage, "track": list(track)}
    processes = [_start({**given, "threads": threads}) for threads in shares]
    try:
        _wait(processes, stop)
    finally:
        for process in processes:  # none is left after an error here
            process.kill()
            process.wait()
    if not stop.received:
        _check_exits([process.returncode for process in processes])
    return stop.received


def thread_shares(config: Config, workers: int) -> list[int]:
    """The threads of each worker: the cores, or `config.threads`, shared out; at least 1."""
    whole = config.threads or _cores()
    return [max(1, whole // workers + (number < whole % workers)) for number in range(workers)]


def _cores() -> int:
    """The cores that this process may use."""
    if native_problem() is None:
        from nanoegg_mlx.engines.cpu import instruction_sets

        return int(instruction_sets()["threads"])
    return os.cpu_count() or 1


def _work(sweep: Sweep, place: Workplace) -> signal.Signals | None:
    """Trains trials until all have begun; returns the signal that ended it before."""
    from optuna.exceptions import OptunaError

    while not place.stop.received:
        claimed = sweep.claim()
        if claimed is None:
            return None
        try:
            with one_sentence(sweep.storage, OptunaError):
                figure = _train(sweep, claimed, place)
        finally:
            claimed.lock.release()
        if figure and figure.stopped:
            return figure.stopped
    return place.stop.received


def _train(sweep: Sweep, claimed: Claimed, place: Workplace) -> Figure | None:
    """Trains a claimed trial, and prints its line; None if its values do not fit together."""
    try:
        sweep.spec.config(claimed.values, epochs=1 if sweep.spec.budget == "seconds" else None)
    except InputError as error:
        sweep.refuse(claimed, error)
        print(f"trial {claimed.trial.number}: refused: {error}", flush=True)
        return None
    figure = train_trial(sweep.spec, claimed.trial, claimed.values, place)
    sweep.finish(claimed, figure)
    print(_line(sweep, claimed, figure), flush=True)
    return figure


def _line(sweep: Sweep, claimed: Claimed, figure: Figure) -> str:
    best = sweep.best()
    if figure.stopped:
        end = f"stopped by {figure.stopped.name}; it goes on when the sweep is started again"
    elif figure.pruned:
        done = sweep.study.trials[claimed.trial.number].intermediate_values
        last = max(done)
        end = f"pruned at {done[last]:.4f} after {last} of {sweep.spec.validations} validations"
    else:
        end = f"{figure.bits_per_byte:.4f} bits per byte"
    if best is not None and is_complete(best):
        end += f" (best {best.value:.4f}, trial {best.number})"
    return f"trial {claimed.trial.number}: {end}: {_shown(claimed.values)}"


def _summary(sweep: Sweep) -> str:
    """The end of a sweep: other processes may still train the last trials."""
    best = sweep.best()
    if best is None:
        return "All trials have begun; none is complete."
    run = sweep.folder / sweep.spec.run_name(best.number, 0)
    return f"All trials have begun. Best: {best.value:.4f} bits per byte, trial {best.number}: {run}"


def _shown(values: Mapping[str, Value]) -> str:
    """The values of a trial as text."""
    texts = ((name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in values.items())
    return ", ".join(f"{name} {text}" for name, text in texts)


def _start(given: Mapping[str, object]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "nanoegg_mlx.sweeps.workers"], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(given).encode() + b"\n")
    process.stdin.flush()
    return process


def _wait(processes: Sequence[subprocess.Popen[bytes]], stop: StopSignals) -> None:
    """Waits for the workers, and passes the first signal on."""
    passed = False
    while any(process.poll() is None for process in processes):
        if stop.received and not passed:
            passed = True
            for process in processes:
                process.send_signal(stop.received)
        time.sleep(0.05)


def _check_exits(codes: Sequence[int]) -> None:
    """Raises an error if a worker has failed; one that reports bad input has printed its sentence."""
    killed = [code for code in codes if code < 0]
    if killed:
        raise JobError(
            f"{len(killed)} of {len(codes)} workers were killed by signal {-killed[0]}; what they have left goes on "
            "when the sweep is started again."
        )
    if any(codes):
        raise ReportedElsewhere("A worker has failed.")


def _end_with(stream: int) -> None:
    """Waits until the command that started this worker has ended, then requests the worker's end."""
    while os.read(stream, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """A worker: reads its part, one line of JSON, from standard input. Returns the exit code."""
    terminal.repair_streams()

    def work() -> int:
        with StopSignals() as stop:
            with open(0, "rb", buffering=0, closefd=False) as stream:  # unbuffered, since the thread reads on
                given = json.loads(stream.readline())
            threading.Thread(target=_end_with, args=(0,), daemon=True).start()
            sweep = Sweep(read_spec(given["sweep"]), Path(given["folder"]), given["storage"])
            _work(sweep, Workplace(sweep.folder, given["threads"], given["track"], stop))
        return 0

    return terminal.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
