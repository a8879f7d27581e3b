"""Options that several commands share: the config's fields, and a parser with one-sentence errors."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any, NoReturn

from nanoegg_mlx.config import ENGINES, TABLES, Config
from nanoegg_mlx.fields import describe_range


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error as one sentence, as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


class Help(argparse.HelpFormatter):
    """Help with room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds --config FILE, and an option for each field of Config, grouped by its TOML table."""
    parser.add_argument("--config", metavar="FILE", help="TOML file; options override its keys")
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
            kind = {"int": _number(int), "float": _number(float), "str": str}[str(field.type)]
            group.add_argument(option, type=kind, metavar=str(field.type).upper(), help=about)


def given_config(options: argparse.Namespace) -> dict[str, Any]:
    """The config's fields that were given as options."""
    fields = [field.name for field in dataclasses.fields(Config)]
    return {name: getattr(options, name) for name in fields if getattr(options, name) is not None}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Adds --engine and --threads, for commands without the other config fields."""
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="(default: auto)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of the CPU engine (0: all usable cores)")


def _number(kind: type) -> Any:
    """Parses a number; other text is passed on, so that Config refuses it with the field's range."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return parse
