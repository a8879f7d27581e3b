"""Writes the steps of the truncated normal as a C++ header, for a build of the native sources.

    python write_normal_steps.py FILE

core/normal_thresholds.json is the only copy of the numbers; setup.py, the Makefile and the tests call this script when
they build. It imports nothing but the standard library, because an isolated build has no MLX.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

THRESHOLDS = Path(__file__).parents[2] / "core" / "normal_thresholds.json"


def write_normal_steps(header: Path) -> None:
    """Writes kNormalFirst, the value below the first step, and for each step its draw and the value from there on."""
    steps = json.loads(THRESHOLDS.read_text())["trunc"]
    index, value = (", ".join(map(str, steps[name])) for name in ("index", "value"))
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(
        "// Made by write_normal_steps.py.\n"
        "#pragma once\n\n"
        "#include <stdint.h>\n\n"
        "namespace nanoegg {\n\n"
        f"constexpr int kNormalSteps = {len(steps['index'])};\n"
        f"constexpr int8_t kNormalFirst = {steps['first']};\n"
        f"constexpr uint32_t kNormalIndex[kNormalSteps] = {{{index}}};\n"
        f"constexpr int8_t kNormalValue[kNormalSteps] = {{{value}}};\n\n"
        "} // namespace nanoegg\n"
    )


if __name__ == "__main__":
    write_normal_steps(Path(sys.argv[1]))
