"""`engine = "auto"`: the measurement in a run's first epoch, its record, and the cache of measured speeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, Trainer, engines
from nanoegg_mlx.cli import main
from nanoegg_mlx.engines import make_engine, mlx, training_engine
from nanoegg_mlx.store.metrics import read_metrics
from tests.engines.inputs import native
from tests.tiny import resume, tiny_run
from tests.traces import pseudo_text

assert native
from nanoegg_mlx.engines import auto, both, speeds  # noqa: E402
from nanoegg_mlx.engines.speeds import Speeds, recall, recalled_here, remember  # noqa: E402

CONFIG = Config(n_layer=1, n_embd=8, population=24, tokens_per_update=6, num_epochs=3)
LANES: dict[str, Any] = {"perturb": "activations", "antithetic": False, "group_size": 4}
"""With a baseline for each lane, which one engine scores as a whole."""
TEXT = pseudo_text(600, 1)
SLOW_MLX, FAST_MLX = Speeds(1000.0, 10.0), Speeds(10.0, 1000.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, no memory of earlier measurements, and runs of any length that are measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(speeds, "_KEPT", {})
    monkeypatch.setattr(both, "_BALANCES", {})
    monkeypatch.setattr(auto, "_LEAST_PRODUCTS", 0)
    return tmp_path / "cache/nanoegg/engine-speeds.json"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would begin."""
    monkeypatch.setattr(speeds, "_KEPT", {})


def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement fails the test."""

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(auto, "measure", refuse)


@pytest.mark.parametrize("hopeless", [0.0, 1e9], ids=["both score members", "one scores members"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"perturb": "activations"},
        {"sparse_embedding": True},
        {"population": 2},
        {"tokens_per_update": 1},
        LANES,
        {**LANES, "group_size": 12},
        {**LANES, "group_size": 24},
        {**LANES, "population": 120, "group_size": 6},
    ],
    ids=str,
)
def test_the_scores_of_the_measurement_count(
    changes: dict[str, Any], hopeless: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_HOPELESS", hopeless)
    config = CONFIG.replace(**changes)
    trainer, expected = Trainer(config, TEXT), Trainer(config.replace(engine="cpu"), TEXT)
    assert trainer.engine.name == "auto"
    results = [trainer.step() for _ in range(2)]
    for result in results:
        wanted = expected.step()
        assert np.array_equal(result.scores, wanted.scores) and np.array_equal(result.fitness, wanted.fitness)
    assert np.array_equal(np.array(trainer.states), np.array(expected.states))
    for name, value in expected.params.items():
        assert np.array_equal(np.array(trainer.params[name]), np.array(value)), name
    engines = results[0].figures()["engines"]
    assert engines["cpu"] > 0 and engines["mlx"] > 0 and not engines["cached"]
    assert engines["chosen"] == trainer.engine.name == ("cpu" if engines["cpu"] >= engines["mlx"] else "mlx")
    assert "engines" not in results[1].figures()


def test_later_runs_use_the_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(CONFIG, TEXT).step()
    measured = recall(CONFIG)
    assert measured and cache.exists() and [path.name for path in cache.parent.iterdir()] == [cache.name]
    unmeasured(monkeypatch)
    for _ in range(2):  # from this process's memory, then from the file
        trainer = Trainer(CONFIG, TEXT)
        assert trainer.engine.name == make_engine(CONFIG).name == measured.best
        assert trainer.step().figures()["engines"] == {
            "chosen": measured.best, "cpu": round(measured.cpu), "mlx": round(measured.mlx, 1), "cached": True,
        }  # fmt: skip
        forget(monkeypatch)
    assert recall(CONFIG) == measured


@pytest.mark.parametrize(("measured", "name"), [(SLOW_MLX, "cpu"), (FAST_MLX, "mlx"), (Speeds(4.0, 5.0), "mlx")])
def test_the_choice_on_a_cpu(measured: Speeds, name: str) -> None:
    remember(CONFIG, measured)
    assert training_engine(CONFIG).name == make_engine(CONFIG).name == name


def test_the_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (engines, speeds, both):
        monkeypatch.setattr(module, "mlx_on_cpu", lambda: False)
    assert make_engine(CONFIG).name == "mlx"  # nothing was measured
    cases = [(1000, 10), (1000, 100), (1000, 120), (1000, 1000), (120, 1000), (100, 1000), (10, 1000)]
    chosen = [Speeds(cpu, mlx).best for cpu, mlx in cases]
    assert chosen == ["cpu", "cpu", "both", "both", "both", "mlx", "mlx"]
    remember(CONFIG, Speeds(1000.0, 500.0))
    trainer, expected = Trainer(CONFIG, TEXT), Trainer(CONFIG.replace(engine="cpu"), TEXT)
    assert trainer.engine.name == "both"
    first = trainer.step()
    assert first.figures()["mlx_share"] == 8 / 24  # in proportion from the first epoch on
    assert np.array_equal(first.scores, expected.step().scores)
    assert np.array_equal(trainer.step().scores, expected.step().scores)


@pytest.mark.parametrize("field", ["n_layer", "n_embd", "population", "tokens_per_update", "rank", "threads", "chunk"])
def test_each_shape_has_its_own_measurement(field: str) -> None:
    remember(CONFIG, SLOW_MLX)
    assert recall(CONFIG.replace(seed=5, engine="auto", num_epochs=7)) == SLOW_MLX
    assert recall(CONFIG.replace(**{field: getattr(CONFIG, field) + 4})) is None
    assert recall(CONFIG.replace(perturb="activations")) is None


def test_lanes_of_each_size_have_their_own_measurement() -> None:
    """With a baseline for each lane, its size decides how a call may be cut and how many samples a vote has."""
    remember(CONFIG.replace(perturb="activations", group_size=4), FAST_MLX)
    for group in (4, 6):
        config = CONFIG.replace(**{**LANES, "group_size": group})
        assert recall(config) is None
        remember(config, SLOW_MLX)
    assert recall(CONFIG.replace(perturb="activations", group_size=6)) == FAST_MLX


def test_each_machine_has_its_own_measurement(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(CONFIG, SLOW_MLX)
    here = dict(speeds.machine())
    monkeypatch.setattr(speeds, "machine", lambda: {**here, "processor": "another"})
    assert recall(CONFIG) is None
    remember(CONFIG, FAST_MLX)
    monkeypatch.setattr(speeds, "machine", lambda: here)
    forget(monkeypatch)
    assert recall(CONFIG) == SLOW_MLX and len(json.loads(cache.read_bytes())) == 2


def test_the_cache_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "_MOST", 3)
    for population in (2, 4, 6, 2, 8):
        remember(CONFIG.replace(population=population), SLOW_MLX)
    forget(monkeypatch)
    populations = [size for size in (2, 4, 6, 8) if recall(CONFIG.replace(population=size))]
    assert populations == [2, 6, 8] == sorted(int(name.split()[4]) for name in recalled_here(CONFIG))


DAMAGED = [
    b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"MACHINE": 1}', b'{"MACHINE": {"SHAPE": 5}}',
    b'{"MACHINE": {"SHAPE": {"cpu": 1}}}', b'{"MACHINE": {"SHAPE": {"cpu": "a", "mlx": 1}}}',
    b'{"MACHINE": {"SHAPE": {"cpu": 1, "mlx": -1}}}', b'{"MACHINE": {"SHAPE": {"cpu": NaN, "mlx": 1}}}',
    b'{"MACHINE": {"SHAPE": {"cpu": true, "mlx": Infinity}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_replaced(content: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {b"MACHINE": speeds._machine(CONFIG), b"SHAPE": speeds.shape_of(CONFIG)}
    for name, value in names.items():
        content = content.replace(name, value.encode())
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert recall(CONFIG) is None and recalled_here(CONFIG) == {}
    assert training_engine(CONFIG).name == "auto"
    remember(CONFIG, FAST_MLX)
    forget(monkeypatch)
    assert recall(CONFIG) == FAST_MLX


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is a file, a folder is in the file's place, the user has no home: the process remembers."""
    (tmp_path / "file").touch()
    (tmp_path / "blocked/nanoegg/engine-speeds.json").mkdir(parents=True)
    for place in ("file", "blocked"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
        remember(CONFIG, FAST_MLX)
        assert recall(CONFIG) == FAST_MLX
        forget(monkeypatch)
        assert recall(CONFIG) is None
    assert len(list((tmp_path / "blocked/nanoegg").iterdir())) == 1

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", homeless)
    remember(CONFIG, FAST_MLX)
    assert speeds.cache_folder() is None and recall(CONFIG) == FAST_MLX


def test_the_folder_of_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setattr(speeds.sys, "platform", "linux")
    assert speeds.cache_folder() == Path("/home/ada/.cache/nanoegg")
    monkeypatch.setattr(speeds.sys, "platform", "darwin")
    assert speeds.cache_folder() == Path("/home/ada/Library/Caches/nanoegg")


def test_short_runs_are_not_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not auto.pays(CONFIG) and auto.pays(Config()) and not auto.pays(Config(num_epochs=0))
    assert training_engine(CONFIG.replace(engine="mlx")).name == "mlx"


def test_a_run_records_it(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = tiny_run(tmp_path, engine="auto", num_epochs=2)
    measured = recall(Config.from_toml(run / "config.toml"))
    assert measured is not None
    forget(monkeypatch)
    unmeasured(monkeypatch)
    resume(run, {"num_epochs": 4})
    lines = {line["epoch"]: line["engines"] for line in read_metrics(run / "metrics.jsonl") if "engines" in line}
    assert {epoch: engines["cached"] for epoch, engines in lines.items()} == {1: False, 3: True}
    assert all(engines["cpu"] == round(measured.cpu) for engines in lines.values())
    said = f"engine {measured.best} (tokens/s: cpu {measured.cpu:,.0f}, mlx {measured.mlx:,.0f})"
    err = capsys.readouterr()
    assert said in err.err + err.out
    assert main(["info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["auto: 1 x 8, weights, 16 members x 6 tokens"] == said.removeprefix("engine ")


METAL = {"device_name": "Apple M3", "max_recommended_working_set_size": 24 << 30, "memory_size": 32 << 30}
CUDA = {"device_name": "H100", "total_memory": 80 << 30, "free_memory": 78 << 30}


def test_chunks_follow_the_memory_of_a_gpu() -> None:
    assert mlx.chunk_bytes({}) == mlx.chunk_bytes({"device_name": "x", "architecture": "y"}) == 96 << 20
    assert mlx.chunk_bytes(METAL) == (24 << 30) // 16 and mlx.chunk_bytes({"memory_size": 8 << 30}) == 512 << 20
    assert mlx.chunk_bytes(CUDA) == 4 << 30  # the most
    assert mlx.chunk_bytes({**CUDA, "free_memory": 8 << 30}) == 2 << 30
    assert mlx.chunk_bytes({**CUDA, "free_memory": 0}) == 96 << 20
    assert mlx.chunk_bytes({**METAL, "max_recommended_working_set_size": 1 << 30}) == 96 << 20
    for config in (Config(), Config(n_layer=24, n_embd=2048), Config(n_layer=1, n_embd=8)):
        small, large = (mlx.members_per_chunk(config, mlx.chunk_bytes(info)) for info in ({}, CUDA))
        assert 2 <= small <= large <= 16384 and small % 2 == large % 2 == 0
        assert large >= min(40 * small, 16384)
    assert mlx.cohorts_per_chunk(Config(), 4 << 30) >= 40 * mlx.cohorts_per_chunk(Config()) > 0


def test_a_gpus_chunks_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx, "mlx_on_cpu", lambda: False)
    monkeypatch.setattr(mlx.mx, "device_info", lambda device: METAL)
    engine, budget = mlx.MLXEngine(Config()), mlx.chunk_bytes(METAL)
    assert engine.chunk == mlx.members_per_chunk(Config(), budget) > mlx.members_per_chunk(Config())
    assert engine.cohorts == mlx.cohorts_per_chunk(Config(), budget)
    chunked = mlx.MLXEngine(Config(chunk=7))
    assert (chunked.chunk, chunked.cohorts) == (8, 3)
