"""Types of the native extension; native/binding.cpp has the documentation."""

from typing import TypedDict

import numpy as np

class Weights:
    def __init__(self, params: dict[str, np.ndarray], isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...

class Noise:
    def __init__(
        self,
        key: tuple[int, int],
        bases: list[np.ndarray],
        rank: int = 1,
        sigma_shift: int = 4,
        num_perturbations: int = 0,
    ) -> None: ...

def score(
    weights: Weights,
    inputs: np.ndarray,
    targets: np.ndarray,
    states: np.ndarray,
    noise: Noise | None = None,
    first_member: int = 0,
    group_size: int = 1,
    threads: int = 0,
    exact: bool = False,
    block: int = 0,
) -> tuple[np.ndarray, ...]: ...
def logits(
    weights: Weights,
    inputs: np.ndarray,
    states: np.ndarray,
    noise: Noise | None = None,
    first_member: int = 0,
    group_size: int = 1,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]: ...
def update(
    params: dict[str, np.ndarray],
    noise: Noise,
    fitness: np.ndarray,
    bound: int,
    use_clt: bool = True,
    normalised: bool = False,
    threads: int = 0,
    isa: str = "",
) -> tuple[dict[str, np.ndarray], dict[str, int]]: ...
def votes(
    params: dict[str, np.ndarray],
    noise: Noise,
    fitness: np.ndarray,
    use_clt: bool = True,
    normalised: bool = False,
    threads: int = 0,
    isa: str = "",
) -> dict[str, np.ndarray]: ...
def naive_score(
    params: dict[str, np.ndarray],
    inputs: np.ndarray,
    targets: np.ndarray,
    states: np.ndarray,
    noise: Noise | None = None,
    first_member: int = 0,
    group_size: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def draw(key: tuple[int, int], start: int, count: int, isa: str = "") -> np.ndarray: ...
def normals(m: np.ndarray, isa: str = "") -> np.ndarray: ...
def matmul(
    w: np.ndarray,
    x: np.ndarray,
    b: np.ndarray | None = None,
    a: np.ndarray | None = None,
    shift: int = 8,
    isa: str = "",
) -> np.ndarray: ...
def products(w: np.ndarray, x: np.ndarray, isa: str = "") -> np.ndarray: ...
def norm(x: np.ndarray, w: np.ndarray, isa: str = "") -> np.ndarray: ...
def gate(
    fa: np.ndarray, fb: np.ndarray, bf: np.ndarray, h: np.ndarray, isa: str = ""
) -> tuple[np.ndarray, np.ndarray]: ...
def recur(
    ca: np.ndarray, cb: np.ndarray, bh: np.ndarray, fa: np.ndarray, h: np.ndarray, x: np.ndarray, isa: str = ""
) -> tuple[np.ndarray, np.ndarray]: ...
def move(z: np.ndarray, old: np.ndarray, bound: int, isa: str = "") -> tuple[np.ndarray, int]: ...
def log_likelihood(logits: np.ndarray, target: int, isa: str = "") -> int: ...
def cgroup_cpus(root: str = "") -> int: ...
def peak(threads: int = 0, seconds: float = 0.5, isa: str = "") -> float: ...

class Info(TypedDict):
    isa: str
    available: list[str]
    threads: int

def info() -> Info: ...
