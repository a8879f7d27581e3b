"""Jobs of several processes on this machine: the ranks of MLX's ring, over loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = ("-m", "nanoegg_mlx.cli", "train")


class Job:
    """The ranks of one job, each with a log file for its output."""

    def __init__(self, ranks: int, *arguments: str, own: Callable[[int], list[str]] = lambda rank: []) -> None:
        """Starts `python ARGUMENTS own(rank)` in the working folder for each rank, as `mlx.launch` does."""
        hosts = Path(f"hosts-{time.monotonic_ns()}.json")
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(ranks)]))
        self.logs = [Path(f"{hosts.stem}-rank-{rank}.log") for rank in range(ranks)]
        self.ranks = []
        for rank, log in enumerate(self.logs):
            environment = {
                **os.environ,
                "MLX_RANK": str(rank),
                "MLX_HOSTFILE": str(hosts),
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
            }
            with log.open("wb") as file:
                self.ranks.append(
                    subprocess.Popen(
                        [sys.executable, *arguments, *own(rank)], env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def wait(self, timeout: float = 60) -> list[int]:
        """The ranks' exit codes. If one runs for too long, ends all and raises AssertionError with their output."""
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(deadline - time.monotonic(), 0.01)) for process in self.ranks]
        except subprocess.TimeoutExpired as error:
            raise AssertionError("\n".join([str(error), *map(self.output, range(len(self.ranks)))])) from error
        finally:
            self.end()

    def end(self) -> None:
        """Kills the ranks that still run."""
        for process in self.ranks:
            process.kill()
            process.wait()

    def output(self, rank: int) -> str:
        """The output of a rank so far."""
        return self.logs[rank].read_text(errors="replace")

    def wait_for(self, text: str, rank: int = 0, timeout: float = 60) -> None:
        """Waits until a rank has printed `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.output(rank):
            if time.monotonic() > deadline or self.ranks[rank].poll() is not None:
                self.end()
                raise AssertionError(
                    f"{text!r} was not printed:\n" + "\n".join(map(self.output, range(len(self.ranks))))
                )
            time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    """Different ports without a listener."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
