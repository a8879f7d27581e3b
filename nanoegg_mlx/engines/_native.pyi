"""Types of the native extension; native/binding.cpp has the documentation."""

from collections.abc import Callable
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
    threads: int = 0,
    exact: bool = False,
    block: int = 0,
    check: Callable[[], None] | None = None,
) -> tuple[np.ndarray, ...]: ...
def logits(
    weights: Weights,
    inputs: np.ndarray,
    states: np.ndarray,
    noise: Noise | None = None,
    first_member: int = 0,
    threads: int = 0,
) -> tuple[np.ndarray, np.ndarray]: ...
def encode(weights: Weights, lanes: list[bytes], threads: int = 0, block: int = 0) -> list[bytes]: ...
def decode(
    weights: Weights, streams: list[bytes], sizes: list[int], threads: int = 0, block: int = 0
) -> list[bytes]: ...
def nudge(
    weights: Weights,
    inputs: np.ndarray,
    targets: np.ndarray,
    states: np.ndarray,
    key: tuple[int, int],
    first_member: int = 0,
    cohort: int = 2,
    antithetic: bool = True,
    nudge: int = 2,
    head_nudge: int = 0,
    credit_decay: int = 12,
    input_products: bool = False,
    threads: int = 0,
    block: int = 0,
    check: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]: ...
def update(
    params: dict[str, np.ndarray],
    noise: Noise,
    fitness: np.ndarray,
    bound: int,
    reads: np.ndarray | None = None,
    embedding_bounds: np.ndarray | None = None,
    use_clt: bool = True,
    normalised: bool = False,
    threads: int = 0,
    isa: str = "",
) -> dict[str, np.ndarray]: ...
def votes(
    params: dict[str, np.ndarray],
    noise: Noise,
    fitness: np.ndarray,
    reads: np.ndarray | None = None,
    use_clt: bool = True,
    normalised: bool = False,
    threads: int = 0,
    isa: str = "",
) -> dict[str, np.ndarray]: ...
def peak(threads: int = 0, seconds: float = 0.5, isa: str = "") -> float: ...

class Info(TypedDict):
    isa: str
    available: list[str]
    threads: int

def info() -> Info: ...
