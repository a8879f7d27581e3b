"""Options that commands share: one for each field of Config, and the layout of the help text."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from nanoegg_mlx.config import TABLES, Config, describe_range


class Help(argparse.HelpFormatter):
    """Help with a wider column for the names of the options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of Config, grouped by its TOML table. The default of each is None."""
    groups = {table: parser.add_argument_group(f"[{table}]") for table in TABLES}
    for field in dataclasses.fields(Config):
        option = "--" + field.name.replace("_", "-")
        about = f"{field.metadata['help']}; {describe_range(field)} (default: {json.dumps(field.default)})"
        about = about.replace("%", "%%")
        group = groups[field.metadata["table"]]
        if field.type == "bool":
            action: Any = argparse.BooleanOptionalAction
            group.add_argument(option, action=action, default=None, help=about)
        else:
            kind: Any = {"int": _number(int), "float": _number(float), "str": str}[str(field.type)]
            group.add_argument(option, type=kind, metavar=str(field.type).upper(), help=about)


def given_config(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the Config fields that the command line sets, by name."""
    fields = [field.name for field in dataclasses.fields(Config)]
    return {name: getattr(options, name) for name in fields if getattr(options, name) is not None}


def _number(kind: type) -> Callable[[str], Any]:
    """Returns a parser of numbers. It leaves other text as it is: Config refuses it and names the field's range."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return parse
