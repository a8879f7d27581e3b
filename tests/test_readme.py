"""The README has one line for every module."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_module_has_a_line() -> None:
    """The tree of "Reading the code" lists the modules, but for those of eggroll/claims, and no others."""
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("## Reading the code") : text.index("## From the reference")]
    folders: list[str] = []
    listed = set()
    for indent, name in re.findall(r"^    ( *)([\w./]+)(?:  +\S|$)", tree, re.MULTILINE):
        del folders[len(indent) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        else:
            listed.add("".join(folders) + name)
    modules = {
        str(path.relative_to(ROOT))
        for package in ("nanoegg_mlx", "data_prep")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not {"claims", "native"} & set(path.parts)
    }
    assert listed == modules
