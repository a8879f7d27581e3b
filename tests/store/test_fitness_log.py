"""votes.bin and the replay of a run from it: the same bits as training, for any damage at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer
from nanoegg_mlx.store.fitness_log import (
    config_frame,
    epoch_frame,
    frame,
    pack_fitness,
    read_fitness_log,
    size_before,
    start_fitness_log,
    unpack_fitness,
)
from nanoegg_mlx.training.replay import params_at, replay
from tests.traces import ENGINES, pseudo_text

CONFIG = Config(n_layer=2, n_embd=8, population=14, tokens_per_update=5)
TEXT = pseudo_text(600, 1)


@pytest.mark.parametrize("pairs", [1, 4, 5, 6, 512, 1003])
@pytest.mark.parametrize("fast", [True, False])
def test_packing(pairs: int, fast: bool) -> None:
    largest = 1 if fast else 127
    fitness = np.random.default_rng(pairs).integers(-largest, largest + 1, pairs).astype(np.int8)
    packed = pack_fitness(fitness, fast)
    assert len(packed) == (-(-pairs // 5) if fast else pairs)
    unpacked = unpack_fitness(packed, pairs, fast)
    assert unpacked.dtype == np.int8 and np.array_equal(unpacked, fitness)
    with pytest.raises(ValueError):
        unpack_fitness(packed + b"\0", pairs, fast)


def test_an_epoch_of_population_1024_takes_116_bytes() -> None:
    frame = epoch_frame(Config(), 3, np.ones(512, np.int8))
    assert len(frame) == 116


def record(path: Path, config: Config, epochs: int) -> list[dict[str, np.ndarray]]:
    """Trains and writes votes; the parameters after 0, 1, ... epochs."""
    trainer = Trainer(config, TEXT)
    file = start_fitness_log(path, config)
    history = [{name: np.array(value) for name, value in trainer.params.items()}]
    for epoch in range(epochs):
        file.append(epoch_frame(config, epoch, trainer.step().fitness))
        history.append({name: np.array(value) for name, value in trainer.params.items()})
    file.close()
    return history


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("changes", [{}, {"fast_fitness": False, "rank": 2}, {"use_clt": False, "noise_reuse": 3}])
def test_replay_is_the_run(tmp_path: Path, engine: str, changes: dict) -> None:
    history = record(tmp_path / "votes.bin", CONFIG.replace(**changes), 6)
    replayed = list(replay(tmp_path / "votes.bin", engine))
    assert [epochs for epochs, _, _ in replayed] == [1, 2, 3, 4, 5, 6]
    for epochs, _, params in replayed:
        assert all(np.array_equal(np.array(params[name]), history[epochs][name]) for name in history[0])
    _, params = params_at(tmp_path / "votes.bin", 4, engine)
    assert all(np.array_equal(np.array(params[name]), history[4][name]) for name in history[0])
    for epochs in (0, 7):
        with pytest.raises(InputError, match=f"epoch is {epochs}; it must be from 1 to 6"):
            params_at(tmp_path / "votes.bin", epochs, engine)


def test_the_config_may_change(tmp_path: Path) -> None:
    path, other = tmp_path / "votes.bin", CONFIG.replace(population=6, alpha=0.5, fast_fitness=False)
    record(path, CONFIG, 2)
    first = params_at(path, 2)[1]
    trainer = Trainer(other, TEXT, params=first, epoch=2)
    path.write_bytes(path.read_bytes() + config_frame(other, 2))
    assert size_before(path, 2) == path.stat().st_size  # the new config stays, also if no epoch follows it yet
    path.write_bytes(path.read_bytes() + epoch_frame(other, 2, trainer.step().fitness))
    assert [logged.config for logged in read_fitness_log(path)] == [CONFIG, CONFIG, other]
    config, params = params_at(path, 3)
    assert config == other
    assert all(np.array_equal(np.array(params[name]), np.array(trainer.params[name])) for name in params)


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "votes.bin"
    record(path, CONFIG, 3)
    whole = path.read_bytes()
    ends = [size_before(path, epoch) for epoch in range(3)] + [len(whole)]
    assert ends == sorted(set(ends))
    for size in range(ends[0], len(whole)):
        path.write_bytes(whole[:size])
        epochs = sum(end <= size for end in ends) - 1
        assert len(list(read_fitness_log(path))) == epochs
        assert [size_before(path, epoch) for epoch in range(4)] == [*ends[: epochs + 1], *[None] * (3 - epochs)]
    for position in range(ends[0], len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 16
        path.write_bytes(flipped)
        assert len(list(read_fitness_log(path))) == sum(end <= position for end in ends) - 1


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_fitness_log(tmp_path / "none"))
    for content in (b"", b"eggvote", b"something else"):
        (tmp_path / "votes.bin").write_bytes(content)
        with pytest.raises(InputError, match="not a fitness log"):
            list(read_fitness_log(tmp_path / "votes.bin"))
    later = epoch_frame(CONFIG, 5, np.zeros(7, np.int8)) + epoch_frame(CONFIG, 7, np.zeros(7, np.int8))
    (tmp_path / "votes.bin").write_bytes(b"eggvotes" + config_frame(CONFIG, 5) + later)
    with pytest.raises(InputError, match="an epoch is 7; it must be 6"):
        list(read_fitness_log(tmp_path / "votes.bin"))
    with pytest.raises(InputError, match=r"first epoch of .* is 5; it must be 0"):
        list(replay(tmp_path / "votes.bin"))
    (tmp_path / "votes.bin").write_bytes(b"eggvotes" + later)
    with pytest.raises(InputError, match="must begin with a config"):
        list(read_fitness_log(tmp_path / "votes.bin"))


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        (frame(b"C", b""), "a frame has 0 bytes"),
        (frame(b"E", b"abc"), "a frame has 3 bytes"),
        (frame(b"C", bytes(4) + b"= \xff"), "the config of epoch 0 is not TOML"),
        (frame(b"C", bytes(4) + b"a=" + b"[" * 99999), "the config of epoch 0 is not TOML"),
        (frame(b"C", bytes(4) + b"[model]\nn_layer = 0\n"), "n_layer is 0; it must be"),
        (frame(b"E", bytes(4)), "it must begin with a config"),
        (config_frame(CONFIG, 0) + frame(b"E", bytes(4) + b"\0"), "epoch 0 has 1 bytes for 7 ternary pairs"),
        (config_frame(CONFIG, 0) + frame(b"E", bytes(4) + b"\xff\0"), "epoch 0 has 2 bytes for 7 ternary pairs"),
    ],
)
def test_frames_with_a_right_checksum_and_anything_in_them(tmp_path: Path, frames: bytes, sentence: str) -> None:
    path = tmp_path / "votes.bin"
    start_fitness_log(path, CONFIG).close()
    magic = path.read_bytes().removesuffix(config_frame(CONFIG, 0))
    path.write_bytes(magic + frames)
    with pytest.raises(InputError, match=sentence):
        list(read_fitness_log(path))
