"""Joining the job that a launcher (`mlx.launch`, `mpirun`) started this process into."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from nanoegg_mlx.errors import InputError
from nanoegg_mlx.ranks.world import TIMEOUT, World


def join(timeout: float = TIMEOUT) -> World:
    """The World that the environment variables of a launcher describe; a World of one without them.

    Args:
        timeout: seconds to wait for the other processes.

    Raises:
        InputError: MLX cannot connect, or was built without the back end.
    """
    backend = launched_backend(os.environ)
    if backend is None:
        return World()
    rank = os.environ.get("MLX_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "?"
    try:
        group = wait_for_the_other_ranks_to_start(backend, timeout)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"Rank {rank} cannot join the others through MLX's {backend} back end: {error}.") from error
    return World(group if group.size() > 1 else None, timeout)


def wait_for_the_other_ranks_to_start(backend: str, timeout: float) -> mx.distributed.Group:
    """The group of all processes. On a timeout it exits with code 1 and a traceback that names this function."""
    # MLX holds the interpreter's lock while it connects, and waits without a limit. So a Python thread, such as the
    # watchdog, could not run; faulthandler's thread does not need the lock.
    faulthandler.dump_traceback_later(timeout, exit=True)
    try:
        return mx.distributed.init(strict=True, backend=backend)
    finally:
        faulthandler.cancel_dump_traceback_later()


def launched_backend(environment: Mapping[str, str]) -> str | None:
    """The MLX back end that a launcher's environment variables select, or None for a process on its own."""
    if "MLX_IBV_DEVICES" in environment and "MLX_JACCL_COORDINATOR" in environment:
        return "jaccl"
    if "NCCL_HOST_IP" in environment and int(environment.get("MLX_WORLD_SIZE") or 1) > 1:
        return "nccl"
    if "MLX_HOSTFILE" in environment and "MLX_RANK" in environment:
        try:
            # `mlx.launch -n 1` writes an empty file, which MLX itself does not accept.
            return "ring" if Path(environment["MLX_HOSTFILE"]).read_text().strip() else None
        except OSError as error:
            raise InputError(f"The file that MLX_HOSTFILE names cannot be read: {error.strerror}.") from error
    if any(int(environment.get(name) or 1) > 1 for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        return "mpi"
    return None
