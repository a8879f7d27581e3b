"""Every recorded trace, rebuilt from its seed and compared to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from nanoegg_mlx import Trainer, init_params, validate
from nanoegg_mlx.core.params import leaf_keys
from tests.record_options import OPTIONS
from tests.traces import ENGINES, NAMES, NUDGED_NAMES, Trace, sha256


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_trace(name: str, engine: str) -> None:
    trace = Trace(name)
    config = trace.config.replace(engine=engine)
    assert sha256(trace.train_tokens) == trace.meta["train_sha256"]
    assert sha256(trace.valid_tokens) == trace.meta["valid_sha256"]

    for leaf, keys in leaf_keys(config).items():
        assert np.array_equal(np.array(keys), trace.arrays[f"eskey/{leaf}"]), leaf
    initial = init_params(config)
    assert {leaf: sha256(value) for leaf, value in initial.items()} == trace.meta["init_sha256"]

    trainer = Trainer(config, trace.train_tokens)
    assert trainer.lanes.segments == trace.meta["segments_per_sequence"]
    for epoch in range(trace.epochs):
        result = trainer.step()
        assert result.epoch == epoch
        assert result.threshold == trace.meta["thresholds"][epoch]
        assert np.array_equal(result.scores, trace.arrays["scores"][epoch])
        assert np.array_equal(result.fitness, trace.arrays["fitness"][epoch])
        assert sha256(*trainer.params.values()) == trace.meta["params_sha256"][epoch]
        assert sha256(trainer.states) == trace.meta["states_sha256"][epoch]

    if "final_states" in trace.arrays:
        assert np.array_equal(np.array(trainer.states), trace.arrays["final_states"])

    assert_end(trace, trainer)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*NUDGED_NAMES, *OPTIONS])
def test_trace_of_scores_and_parameters(name: str, engine: str) -> None:
    trace = Trace(name)
    trainer = Trainer(trace.config.replace(engine=engine), trace.train_tokens)
    for epoch in range(trace.epochs):
        result = trainer.step()
        assert result.threshold == trace.meta["thresholds"][epoch]
        assert np.array_equal(result.scores, trace.arrays["scores"][epoch])
        assert len(result.fitness) == (0 if trace.config.perturb == "activations" else trace.config.pairs)
        assert sha256(*trainer.params.values()) == trace.meta["params_sha256"][epoch]
        assert sha256(trainer.states) == trace.meta["states_sha256"][epoch]
    assert_end(trace, trainer)


def assert_end(trace: Trace, trainer: Trainer) -> None:
    """The final parameters and the validation equal the recorded ones."""
    final = {leaf: sha256(value) for leaf, value in trainer.params.items()}
    assert final == trace.meta["final_sha256"]
    for leaf in [key for key in trace.arrays if key.startswith("final/")]:
        assert np.array_equal(np.array(trainer.params[leaf[6:]]), trace.arrays[leaf])
    scores, bits_per_byte = validate(trainer.params, trace.valid_tokens, trainer.config)
    assert np.array_equal(scores, trace.arrays["valid_scores"])
    assert bits_per_byte == trace.meta["valid_bpb"]
