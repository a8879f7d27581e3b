"""Both engines together give the bits of one, at any share; shares follow the measured speeds."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from nanoegg_mlx import Config, InputError, Trainer, init_params
from nanoegg_mlx import engines as chosen
from nanoegg_mlx.engines import make_engine, training_engine
from tests import test_golden
from tests.engines.inputs import native
from tests.tiny import resume, tiny_config, tiny_run
from tests.traces import pseudo_text

assert native
from nanoegg_mlx.engines.both import Balance, BothEngine, balance_of  # noqa: E402
from nanoegg_mlx.engines.cpu import CPUEngine  # noqa: E402
from nanoegg_mlx.engines.mlx import MLXEngine  # noqa: E402

CONFIG = Config(n_layer=2, n_embd=9, vocab_size=32, population=14, tokens_per_update=5, engine="both")
PARAMS = init_params(CONFIG)
CPU = CPUEngine(CONFIG)


@pytest.fixture(params=[2, 10, 12])
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """MLX gets this many members of each call that has more."""
    monkeypatch.setattr(
        Balance, "mlx_members", lambda self, members, tokens, grain=2: min(request.param, members // 2 * 2)
    )
    return int(request.param)


def batch(rows: int, members: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and states."""
    rng = np.random.default_rng(rows + members)
    states = rng.integers(-127, 128, (members, 2, 9)).astype(np.int8)
    return *rng.integers(0, 32, (2, rows, 5)).astype(np.uint8), states  # type: ignore[return-value]


@pytest.mark.parametrize("epoch", [3, None])
def test_scores_of_any_share(forced: int, epoch: int | None) -> None:
    """Also of an odd number of rows, as validation may have; the members need not begin with the first one."""
    members = range(6, 20) if epoch else range(13)
    arguments = batch(len(members), len(members))
    expected = CPU.score(PARAMS, members, epoch, *arguments, exact=True)
    engine = BothEngine(CONFIG)
    scored = engine.score(PARAMS, members, epoch, *arguments, exact=True)
    assert np.array_equal(scored.scores, expected.scores) and scored.scores.dtype == expected.scores.dtype
    assert np.array_equal(scored.states, expected.states)
    by_mlx = MLXEngine(CONFIG).score(PARAMS, members, epoch, *arguments, exact=True)
    assert scored.code_lengths is not None and by_mlx.code_lengths is not None and expected.code_lengths is not None
    # The engines add float64 in different orders, so code lengths are those of the engine that has a member.
    assert np.array_equal(scored.code_lengths[:forced], by_mlx.code_lengths[:forced])
    assert np.array_equal(scored.code_lengths[forced:], expected.code_lengths[forced:])
    assert engine.figures() == ({"mlx_share": forced / 14} if epoch else {})


@pytest.mark.parametrize("decorrelate", [False, True])
def test_votes_of_any_share(forced: int, decorrelate: bool) -> None:
    config = CONFIG.replace(perturb="activations", decorrelate=decorrelate)
    arguments = batch(7, 14)
    expected = CPUEngine(config).nudge(PARAMS, range(6, 20), 3, *arguments)
    nudged = BothEngine(config).nudge(PARAMS, range(6, 20), 3, *arguments)
    assert np.array_equal(nudged.scores, expected.scores) and np.array_equal(nudged.states, expected.states)
    for sums, sums_expected in zip(nudged.sums, expected.sums, strict=True):
        assert set(sums) == set(sums_expected)
        for name in sums:
            assert np.array_equal(np.array(sums[name]), np.array(sums_expected[name])), name


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Members of each engine in its latest call of `nudge`."""
    calls: dict[str, int] = {}
    by_mlx, prepare = MLXEngine.nudge, CPUEngine.nudge_call

    def nudge(self: MLXEngine, params: Any, members: range, *given: Any) -> Any:
        calls["mlx"] = len(members)
        return by_mlx(self, params, members, *given)

    def nudge_call(self: CPUEngine, params: Any, members: range, *given: Any) -> Any:
        calls["cpu"] = len(members)
        return prepare(self, params, members, *given)

    monkeypatch.setattr(MLXEngine, "nudge", nudge)
    monkeypatch.setattr(CPUEngine, "nudge_call", nudge_call)
    return calls


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize(("group", "lanes"), [(2, 7), (4, 5), (6, 7), (128, 3)])
def test_votes_of_whole_lanes(
    group: int, lanes: int, speeds: tuple[float, float], monkeypatch: pytest.MonkeyPatch, asked: dict[str, int]
) -> None:
    """With a baseline for each lane, no share cuts a lane, whatever the speeds; the lanes need not begin with the
    first one."""
    monkeypatch.setattr("nanoegg_mlx.engines.both.balance_of", lambda kind, config: Balance(*speeds))
    changes = {"perturb": "activations", "antithetic": False, "decorrelate": True}
    config = CONFIG.replace(**changes, group_size=group, population=group * (lanes + 3))
    arguments = batch(lanes, lanes * group)
    members = range(3 * group, config.population)
    expected = CPUEngine(config).nudge(PARAMS, members, 3, *arguments)
    asked.clear()
    nudged = BothEngine(config).nudge(PARAMS, members, 3, *arguments)
    assert asked["mlx"] % group == asked["cpu"] % group == 0 and sum(asked.values()) == len(members)
    assert np.array_equal(nudged.scores, expected.scores) and np.array_equal(nudged.states, expected.states)
    for sums, sums_expected in zip(nudged.sums, expected.sums, strict=True):
        assert all(np.array_equal(np.array(sums[name]), np.array(sums_expected[name])) for name in sums_expected)


def test_the_last_share_of_pairs_does_not_cut_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process trains pairs, then lanes with a baseline, of the same number of members."""
    monkeypatch.setattr("nanoegg_mlx.engines.both._BALANCES", {})
    for group in (2, 4, 6):
        changes = {"population": 12, "group_size": group, "antithetic": group == 2}
        config = CONFIG.replace(perturb="activations", **changes)
        arguments = batch(12 // group, 12)
        expected = CPUEngine(config).nudge(PARAMS, range(12), 3, *arguments)
        for _ in range(2):
            balance = balance_of("nudge", config)
            balance.mlx_speed = balance.cpu_speed = 1.0
            assert balance.mlx_members(12, 5, group) % group == 0
            result = BothEngine(config).nudge(PARAMS, range(12), 3, *arguments)
            assert np.array_equal(result.scores, expected.scores)


def test_the_calls_of_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions, coding and updates, whatever engine makes them."""
    engine, rng = BothEngine(CONFIG), np.random.default_rng(1)
    inputs, _, states = batch(4, 4)
    for ours, expected in zip(engine.logits(PARAMS, inputs, states), CPU.logits(PARAMS, inputs, states), strict=True):
        assert np.array_equal(ours, expected)
    fitness = rng.integers(-1, 2, 7).astype(np.int8)
    reads = rng.integers(0, 2, (7, 32)) == 0
    expected_params, expected_votes = CPU.update(PARAMS, fitness, 2), CPU.votes(PARAMS, fitness, range(2, 5), 2)
    for mlx_speed in (1.0, 3.0):
        balance = Balance(mlx_speed, 2.0)
        monkeypatch.setattr("nanoegg_mlx.engines.both.balance_of", lambda kind, config, balance=balance: balance)
        for ours, expected in (
            (engine.update(PARAMS, fitness, 2), expected_params),
            (engine.votes(PARAMS, fitness, range(2, 5), 2), expected_votes),
            (engine.update(PARAMS, fitness, 2, reads), CPU.update(PARAMS, fitness, 2, reads)),
            (engine.votes(PARAMS, fitness, range(2, 5), 2, reads), CPU.votes(PARAMS, fitness, range(2, 5), 2, reads)),
        ):
            assert all(np.array_equal(np.array(ours[name]), np.array(expected[name])) for name in expected)
    config = Config(n_layer=1, n_embd=8, engine="both")
    both, params, lanes = make_engine(config), init_params(config), [b"the ", b"same", b"bit"]
    streams = make_engine(config.replace(engine="mlx")).encode(params, lanes)
    assert both.encode(params, lanes) == streams and both.decode(params, streams, [4, 4, 3]) == lanes


@pytest.mark.parametrize("forced", [6], indirect=True)
def test_recorded_traces(forced: int) -> None:
    """The reference's runs, with validations; chunks of MLX and blocks of the CPU engine as chosen."""
    test_golden.test_trace("small", "both")
    test_golden.test_trace_of_scores_and_parameters("act_small", "both")


@pytest.mark.parametrize("forced", [4], indirect=True)
@pytest.mark.parametrize(
    "changes", [{}, {"perturb": "activations", "antithetic": False, "group_size": 4}], ids=["weights", "lanes"]
)
def test_a_run_whose_engine_changes(changes: dict[str, Any], forced: int, tmp_path: Any) -> None:
    expected, folder = tmp_path / "expected", tmp_path / "both"
    for place in (expected, folder):
        place.mkdir()
    tiny_run(expected, **changes)
    run = tiny_run(folder, engine="both", num_epochs=4, **changes)
    resume(run, {"num_epochs": 8, "engine": "cpu"})
    resume(run, {"num_epochs": 12, "engine": "both", "threads": 1, "chunk": 2})
    assert (run / "votes.bin").read_bytes()[-100:] == (expected / "runs/t/votes.bin").read_bytes()[-100:]
    newest = "epoch-00000012/model.safetensors"
    assert (run / newest).read_bytes() == (expected / "runs/t" / newest).read_bytes()


def test_they_work_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other to begin; MLX has the calling thread, since its arrays belong to a thread."""
    monkeypatch.setattr(Balance, "mlx_members", lambda self, members, tokens, grain=2: 4)
    began = {"cpu": threading.Event(), "mlx": threading.Event()}
    threads = {}

    def meet(name: str, other: str) -> None:
        threads[name] = threading.current_thread()
        began[name].set()
        assert began[other].wait(30)

    prepare, score = CPUEngine.score_call, MLXEngine.score

    def prepared(*given: Any, **named: Any) -> Any:
        call = prepare(*given, **named)
        return lambda: (meet("cpu", "mlx"), call())[1]

    monkeypatch.setattr(CPUEngine, "score_call", prepared)
    monkeypatch.setattr(MLXEngine, "score", lambda *given, **named: (meet("mlx", "cpu"), score(*given, **named))[1])
    arguments = batch(14, 14)
    scored = BothEngine(CONFIG).score(PARAMS, range(14), 0, *arguments)
    monkeypatch.undo()
    assert np.array_equal(scored.scores, CPU.score(PARAMS, range(14), 0, *arguments).scores)
    assert threads["mlx"] is threading.current_thread() is not threads["cpu"]
    assert not threads["cpu"].is_alive()


class Stopped(Exception):
    """Raised by a handler, as after Ctrl-C."""


def test_an_interrupt_ends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the main thread waits for native code, which alone would go on for minutes; and from within MLX."""
    monkeypatch.setattr(Balance, "mlx_members", lambda self, members, tokens, grain=2: 2)
    config = Config(n_layer=4, n_embd=256, engine="both", threads=1)
    params, tokens = init_params(config), np.zeros((64, 200_000), np.uint8)
    arguments = (params, range(64), 0, tokens, tokens, np.zeros((64, 4, 256), np.int8))

    def slow(self: MLXEngine, *given: Any, **named: Any) -> Any:
        time.sleep(60)

    def failing(self: MLXEngine, *given: Any, **named: Any) -> Any:
        raise Stopped

    def stop(number: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for score in (slow, failing):
            monkeypatch.setattr(MLXEngine, "score", score)
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Stopped):
                BothEngine(config).score(*arguments)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert time.monotonic() - started < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_epoch_that_fails_never_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Balance, "mlx_members", lambda self, members, tokens, grain=2: 4)
    trainer = Trainer(CONFIG, pseudo_text(600, 1) % 32)
    expected = Trainer(CONFIG.replace(engine="cpu"), pseudo_text(600, 1) % 32)
    with monkeypatch.context() as patch:

        def failing(self: MLXEngine, *given: Any, **named: Any) -> Any:
            raise RuntimeError("no memory")

        patch.setattr(MLXEngine, "score", failing)
        with pytest.raises(RuntimeError, match="no memory"):
            trainer.step()
    for _ in range(2):
        assert np.array_equal(trainer.step().scores, expected.step().scores)


def share_after(balance: Balance, calls: int, mlx: Any, cpu: Any, members: int = 1024) -> list[float]:
    """MLX's shares of calls in which the engines take mlx(members) and cpu(members) seconds for one token each."""
    shares = []
    for _ in range(calls):
        count = balance.mlx_members(members, 1)
        assert count % 2 == 0 or count == members
        seconds = mlx(count) if count else 0.0, cpu(members - count) if count < members else 0.0
        balance.record(count, members, 1, *seconds, max(seconds))
        shares.append(count / members)
    return shares


def linear(per_second: float) -> Any:
    return lambda members: members / per_second


def test_shares_follow_the_speeds() -> None:
    balance = Balance()
    assert abs(share_after(balance, 30, linear(3000), linear(1000))[-1] - 0.75) <= 1 / 64
    assert abs(share_after(balance, 30, linear(500), linear(1500))[-1] - 0.25) <= 1 / 64
    # A cost of MLX that does not depend on its members: both end together, 0.1 + x / 9000 = (1024 - x) / 1000.
    (*_, share) = share_after(balance, 40, lambda members: 0.1 + members / 9000, linear(1000))
    assert abs(share * 1024 - 831.6) <= 2 * 1024 / 64
    # The share stays while the speeds vary by a few per cent: MLX compiles for each number of members.
    rng = np.random.default_rng(1)
    shares = share_after(balance, 50, lambda m: m / 1000 * rng.uniform(0.98, 1.02), linear(1000))
    assert len(set(shares[20:])) == 1


def test_an_engine_that_is_too_slow_gets_nothing_but_trials() -> None:
    for start in (0.0, 0.5):
        balance = Balance(start=start)
        shares = share_after(balance, 3000, linear(2), linear(1000))
        assert set(shares[10:]) == {0.0, 16 / 1024} and 1 <= sum(share > 0 for share in shares[10:]) < 10
    # When it is fast again, it is found, and so is the CPU engine.
    assert abs(share_after(balance, 3000, linear(1000), linear(1000))[-1] - 0.5) <= 1 / 64
    shares = share_after(balance, 3000, linear(1000), linear(2))
    assert shares[-1] in (1.0, 1008 / 1024) and 1.0 in shares
    assert abs(share_after(balance, 3000, linear(1000), linear(1000))[-1] - 0.5) <= 1 / 64


@pytest.mark.parametrize("grain", [2, 4, 10, 128])
@pytest.mark.parametrize("lanes", [1, 2, 3, 63, 64, 65, 130, 1023])
def test_shares_are_whole_lanes(grain: int, lanes: int) -> None:
    members = grain * lanes
    for speeds in ((0.0, 0.0), (1.0, 1.0), (2.0, 3.0), (1.0, 1e6), (1e6, 1.0), (1.0, 0.0)):
        for start in (0.0, 0.3, 1.0):
            balance = Balance(*speeds, start=start)
            for seconds in (1e-3, 1.0, 1e3):
                count = balance.mlx_members(members, 7, grain)
                assert 0 <= count <= members and count % grain == 0
                balance.record(count, members, 7, seconds, 1.0, max(seconds, 1.0))


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 63, 64, 130, 1023])
def test_shares_of_any_number_of_members(members: int) -> None:
    for speeds in ((0.0, 0.0), (1.0, 1.0), (1.0, 1e6), (1e6, 1.0), (1.0, 0.0)):
        count = Balance(*speeds).mlx_members(members, 7)
        assert 0 <= count <= members and (count % 2 == 0 or count == members)
    assert Balance(1.0, 1.0).mlx_members(4, 7) == 2
    assert Balance(1e6, 1.0).mlx_members(members, 7) == members and Balance(1.0, 1e6).mlx_members(members, 7) == 0


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chosen, "native_problem", lambda: "its extension was not built.")
    with pytest.raises(InputError, match=r"^engine is 'both', which is unavailable: its extension was not built\.$"):
        make_engine(Config(engine="both"))
    assert make_engine(Config()).name == training_engine(Config()).name == "mlx"


def test_the_config_of_a_run_with_both(tmp_path: Any) -> None:
    config = tiny_config(tmp_path, engine="both")
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "c.toml").engine == "both"
