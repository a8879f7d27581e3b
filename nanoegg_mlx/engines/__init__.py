"""Engines carry out the two hot calls, score() and update(); all give the same bits. Chosen here, nowhere else."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nanoegg_mlx.config import Config
from nanoegg_mlx.engines.mlx import MLXEngine
from nanoegg_mlx.params import Params


class Engine(Protocol):
    """Two functions and a name."""

    name: str

    def score(
        self,
        params: Params,
        members: range,
        epoch: int | None,
        inputs: np.ndarray,
        targets: np.ndarray,
        states: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lets each member read its tokens, under its own perturbation of `params`.

        Args:
            params: leaf name -> int8 array.
            members: consecutive members, starting at an even one and ending after an odd one.
            epoch: whose noise perturbs the members; None for the unperturbed model, where a "member" is any
                row of text.
            inputs, targets: (len(members), T) uint8.
            states: (len(members), L, D) int8.

        Returns:
            Scores (len(members),) int64, sums of log-likelihoods in sixteenths of a bit, and the states after
            the last token, (len(members), L, D) int8. The arguments are left as they were.
        """
        ...

    def update(self, params: Params, fitness: np.ndarray, epoch: int) -> Params:
        """The parameters after an epoch in which pair p had fitness[p]; (N/2,) int8. `params` stay as they were."""
        ...


def make_engine(config: Config) -> Engine:
    """The engine that `config.engine` names; `auto` is the fastest that this machine has."""
    return MLXEngine(config)


__all__ = ["Engine", "MLXEngine", "make_engine"]
