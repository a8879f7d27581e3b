"""Records traces of the options beside the reference's contract, from the naive twins alone.

    python -m tests.record_options      # writes tests/golden/option_*.npz; under a minute

No code of the package computes what is recorded but `Config`, which holds the settings. So the bits of a run with these
options stay what they were when the twins and the package first agreed on them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from nanoegg_mlx import Config
from tests.oracle import Oracle, threshold, validate
from tests.oracle_activations import NudgedOracle
from tests.traces import GOLDEN, pseudo_text, sha256

BASE: dict[str, Any] = {"seed": 0, "alpha": 4.0, "alpha_decay_timestep": 4, "validation_batch_size": 8}
SMALL: dict[str, Any] = {**BASE, "n_layer": 1, "n_embd": 32, "population": 32, "tokens_per_update": 12}
DEEP: dict[str, Any] = {**BASE, "n_layer": 3, "n_embd": 20, "population": 16, "tokens_per_update": 12}
NUDGED: dict[str, Any] = {"perturb": "activations"}
OPTIONS: dict[str, dict[str, Any]] = {
    "option_lane": {**SMALL, **NUDGED, "antithetic": False, "group_size": 8},
    "option_lane_deep": {
        **DEEP, **NUDGED, "antithetic": False, "group_size": 4, "decorrelate": True, "zero_head": True,
    },
    "option_lane_head": {**DEEP, **NUDGED, "antithetic": False, "group_size": 16, "head_rule": "perturb"},
    "option_decorrelated": {**SMALL, **NUDGED, "n_embd": 70, "decorrelate": True},
    "option_weights": {**SMALL, "fast_fitness": False, "sparse_embedding": True, "zero_head": True, "group_size": 4},
}  # fmt: skip
"""Name of the trace -> its config."""
EPOCHS = 6
TRAIN_TOKENS, VALID_TOKENS = 6000, 500


def record(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The meta and the arrays of a trace, with the entries of a recorded trace of nudged activations."""
    config = Config(**settings)
    train, valid = pseudo_text(TRAIN_TOKENS, 1), pseudo_text(VALID_TOKENS, 2)
    twin = (NudgedOracle if config.perturb == "activations" else Oracle)(config, train)
    scores, params, states = [], [], []
    for _ in range(EPOCHS):
        scores.append(twin.step())
        params.append(sha256(*twin.params.values()))
        states.append(sha256(twin.states))
    valid_scores, bits_per_byte = validate(config, twin.params, valid)
    meta = {
        "config": settings,
        "epochs": EPOCHS,
        "train_tokens": TRAIN_TOKENS,
        "valid_tokens": VALID_TOKENS,
        "train_sha256": sha256(train),
        "valid_sha256": sha256(valid),
        "thresholds": [threshold(config, epoch) for epoch in range(EPOCHS)],
        "params_sha256": params,
        "states_sha256": states,
        "final_sha256": {name: sha256(value) for name, value in twin.params.items()},
        "valid_bpb": bits_per_byte,
    }
    return meta, {"scores": np.array(scores, np.int32), "valid_scores": valid_scores.astype(np.int32)}


def main() -> None:
    for name, settings in OPTIONS.items():
        meta, arrays = record(settings)
        np.savez_compressed(GOLDEN / f"{name}.npz", meta=np.array(json.dumps(meta)), **arrays)
        print(f"{name}: {meta['valid_bpb']:.4f} bits per byte", flush=True)


if __name__ == "__main__":
    main()
