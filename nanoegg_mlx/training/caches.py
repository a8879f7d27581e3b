"""The two token caches of a run, and the check that their content is the same on every rank and after every resume."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from nanoegg_mlx.config import Config
from nanoegg_mlx.errors import InputError
from nanoegg_mlx.measure.evaluate import validation_rows
from nanoegg_mlx.ranks.world import World
from nanoegg_mlx.store.tokens import check_vocabulary, fingerprint, load_tokens

SLOW_DISK = 20e6
"""Bytes per second of a slow disk, for time limits."""


class Caches:
    """The training and the validation cache, checked against the config."""

    def __init__(self, config: Config) -> None:
        """Raises InputError if a cache is missing, damaged, too short or has bytes outside the vocabulary."""
        self.valid = load_tokens(config.valid)
        check_vocabulary(validation_rows(self.valid, config.validation_batch_size).ravel(), config.vocab_size)
        self.train = load_tokens(config.train)
        self._names = {"train": config.train, "valid": config.valid}
        self._identity: dict[str, dict[str, Any]] = {}

    def identity(self) -> dict[str, dict[str, Any]]:
        """Sizes and SHA-256 of both, for checkpoint.json; computed once."""
        if not self._identity:
            self._identity = {"train": fingerprint(self.train), "valid": fingerprint(self.valid)}
        return self._identity

    def check_same(self, world: World) -> None:
        """Checks that all ranks have the same content; of the ranks that read the same files only one computes it.

        Raises:
            InputError: on rank 0, naming a rank that differs; ReportedElsewhere on the others.
        """
        if world.size == 1:
            return
        files = [os.stat(path) for path in self._names.values()]
        mine = [[one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns] for one in files]
        places = world.gather_texts(json.dumps([socket.gethostname(), mine]), "the caches' places")
        first = places.index(places[world.rank])
        known = json.dumps(self.identity() if first == world.rank else {})
        expected = (self.train.size + self.valid.size) / SLOW_DISK
        self._identity = json.loads(world.gather_texts(known, "the caches' SHA-256", expected)[first])
        world.check_same(self._identity, "the content of its caches")

    def check_recorded(self, recorded: Any, run: Path) -> None:
        """Raises InputError if the content differs from the `identity` that the run recorded."""
        now = self.identity()
        for name, path in self._names.items():
            if not isinstance(recorded, dict) or recorded.get(name) != now[name]:
                raise InputError(
                    f"The content of the cache {path} has changed; it must be the same as in the training of {run}."
                )
