"""The native engine and the machine: how many processors it uses, and that Ctrl-C ends a long call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engines import kernels
from tests.engines.inputs import native


def fake_root(folder: Path, groups: str, files: dict[str, str]) -> str:
    """A root folder with /proc/self/cgroup and files under /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(folder)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 0),
        ("0::/\n", {}, 0),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 20000\n"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "cpu.max": "200000 100000\n"}, 2),
        ("0::/of/the/host\n", {"cpu.max": "700000 100000\n"}, 7),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, 0),
        ("0::/a b:c\n", {"a b:c/cpu.max": "100000 100000\n"}, 1),
        ("4:cpu,cpuacct:/a\n1:name=systemd:/b\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n"}, 0),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 0),
        ("4:cpuacct,cpu:/a\n", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ("3:cpuset:/a\n", {"cpuset/a/cpu.cfs_quota_us": "1\n", "cpuset/a/cpu.cfs_period_us": "1\n"}, 0),
        (
            "2:cpu:/a\n0::/c\n",
            {"cpu/a/cpu.cfs_quota_us": "9\n", "cpu/a/cpu.cfs_period_us": "1\n", "unified/c/cpu.max": "8 1\n"},
            8,
        ),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 0),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 0),
        ("nonsense\n\n::\n0::", {"cpu.max": "100000 100000\n"}, 0),
        ("0::/a/../b\n", {"cpu.max": "900000000000000000 1\n"}, 0),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    assert kernels.cgroup_cpus(fake_root(tmp_path, groups, files)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert kernels.cgroup_cpus(str(tmp_path)) == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity masks are Linux's")
def test_threads_are_the_usable_processors() -> None:
    """By default all of the affinity mask, or what the quota grants."""
    code = "import os; from nanoegg_mlx.engines import _native; print(_native.info()['threads'])"
    mask = os.sched_getaffinity(0)
    quota = kernels.cgroup_cpus() or len(mask)
    assert native.info()["threads"] == min(len(mask), quota)
    one = {min(mask)}
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {one}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


LONG_CALLS = """
import json, sys, time
import numpy as np
from nanoegg_mlx import Config, init_params
from nanoegg_mlx.engines import _native
from tests.engines.kernels import epoch_noise

config = Config(n_layer=4, n_embd=256)
params = {name: np.array(value) for name, value in init_params(config).items()}
weights, noise = _native.Weights(params), epoch_noise(config, 0).native()

def score(share):
    tokens = np.zeros((64, int(1e6 * share)), np.uint8)
    _native.score(weights, tokens, tokens, np.zeros((64, 4, 256), np.int8), noise, threads=2)

def update(share):
    _native.update(params, noise, np.ones(int(3e6 * share), np.int8), 1, threads=2)

call = {"score": score, "update": update}[sys.argv[1]]
call(1e-4)
started = time.perf_counter()
call(1e-4)
print(json.dumps(1e4 * (time.perf_counter() - started)), flush=True)
try:
    call(1.0)
    print("done")
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""


@pytest.mark.parametrize("call", ["score", "update"])
def test_ctrl_c_in_the_middle_of_a_call(call: str) -> None:
    """Within a second; five here, for a loaded machine. The calls would take minutes."""
    command = [sys.executable, "-c", LONG_CALLS, call]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert float(process.stdout.readline()) > 60
            time.sleep(0.5)
            assert process.poll() is None
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait() == 0 and rest == "KeyboardInterrupt\n"
            assert time.monotonic() - sent < 5
        finally:
            process.kill()
