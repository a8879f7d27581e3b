"""The doors of the house open downwards: the import contracts of pyproject.toml hold, and a broken one is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]
REVERSED = """
[importlinter]
root_package = nanoegg_mlx
[importlinter:contract:reversed]
name = Reversed
type = layers
containers = nanoegg_mlx
layers =
    core
    {room}
"""


def test_the_contracts_hold() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("room", ["engines", "store", "ranks", "measure", "training"])
def test_a_door_that_opens_upwards_is_found(room: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every room of the integer model imports core, so core cannot be above it."""
    (tmp_path / "reversed.ini").write_text(REVERSED.format(room=room))
    assert lint_imports(config_filename=str(tmp_path / "reversed.ini"), no_cache=True) != EXIT_STATUS_SUCCESS
    assert f"nanoegg_mlx.{room}" in capsys.readouterr().out
