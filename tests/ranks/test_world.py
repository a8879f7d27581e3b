"""Operations of a job without its processes: shares, launchers, damaged messages, one process alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanoegg_mlx import Config, InputError
from nanoegg_mlx.errors import JobError
from nanoegg_mlx.ranks.join import launched_backend
from nanoegg_mlx.ranks.partition import members_of
from nanoegg_mlx.ranks.world import World
from tests.ranks.parts import Part
from tests.traces import ENGINES

CONFIG = Config(n_layer=1, n_embd=8, population=28, group_size=4, tokens_per_update=6, engine=ENGINES[-1])


def test_shares_cover_everything_once() -> None:
    for count in (0, 1, 5, 7, 28):
        for size in (1, 2, 3, 4, 7):
            shares = [Part(rank, size).share(count) for rank in range(size)]
            assert [i for share in shares for i in share] == list(range(count))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            assert shares == [Part(0, size).share(count, rank) for rank in range(size)]
    with pytest.raises(InputError, match="is 8; it must be at most 7"):
        members_of(CONFIG, Part(0, 8))


def test_who_was_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts").write_text('[["127.0.0.1:1"]]\n')
    (tmp_path / "none").write_text("\n")
    ring = {"MLX_RANK": "0", "MLX_HOSTFILE": "hosts"}
    assert launched_backend({}) is None
    assert launched_backend(ring) == "ring"
    assert launched_backend({**ring, "MLX_HOSTFILE": "none"}) is None
    assert launched_backend({"MLX_RANK": "1", "NCCL_HOST_IP": "10.0.0.1", "MLX_WORLD_SIZE": "2"}) == "nccl"
    assert launched_backend({"MLX_RANK": "1", "MLX_IBV_DEVICES": "f", "MLX_JACCL_COORDINATOR": "a:1"}) == "jaccl"
    assert launched_backend({"OMPI_COMM_WORLD_SIZE": "4"}) == "mpi" and launched_backend({"PMI_SIZE": "1"}) is None
    with pytest.raises(InputError, match="MLX_HOSTFILE"):
        launched_backend({**ring, "MLX_HOSTFILE": "missing"})


def test_a_damaged_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing ring has delivered damaged data before it raised an error: no such data becomes a score."""

    class Group:
        def rank(self) -> int:
            return 0

        def size(self) -> int:
            return 2

    def gather(mine: mx.array, group: Group) -> mx.array:
        theirs = np.array(mine)
        theirs[at] ^= flip
        return mx.concatenate([mine, mx.array(theirs)])

    monkeypatch.setattr(mx.distributed, "all_gather", gather)
    at, flip = 0, 0
    world = World(Group())  # type: ignore[arg-type]
    message = np.arange(10, dtype=np.uint8)
    before = world.sent
    assert np.array_equal(world.gather(message, "x"), np.stack([message, message]))
    assert world.sent == before + 14  # with a checksum of 4
    for at in range(14):
        flip = 1 << (at % 8)
        with pytest.raises(JobError, match=r"received damaged data from rank 1 \(the fitness\)"):
            world.gather(message, "the fitness")


def test_one_process_is_a_world_without_messages() -> None:
    world = World()
    array = np.arange(6).reshape(3, 2)
    assert world.gather_shares(array, 3, "x") is array and world.share(3) == range(3)
    assert world.run_on_all(lambda: 5, "x") == world.run_on_root(lambda: 5, "x") == world.broadcast(5, "x") == 5
    world.check_same(asdict(CONFIG), "x")
    world.check_same_digest(lambda: pytest.fail("nothing to compare"), "x")
    assert (world.sent, world.threads(0), world.threads(2)) == (0, 0, 2)
