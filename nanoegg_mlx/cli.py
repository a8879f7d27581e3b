"""The command line, `nanoegg COMMAND ...`: finds the command's module in commands/ and runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from nanoegg_mlx import terminal
from nanoegg_mlx.commands.options import Parser

COMMANDS = (
    "prepare",
    "train",
    "sweep",
    "eval",
    "sample",
    "inspect",
    "export",
    "baseline",
    "replay",
    "plot",
    "report",
    "compress",
    "decompress",
    "bench",
    "info",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command (sys.argv's by default) and returns its exit code."""
    terminal.repair_streams()
    arguments = sys.argv[1:] if arguments is None else arguments

    def run() -> int:
        options = _parser(arguments[:1]).parse_args(arguments)
        code: int = options.command(options)
        return code

    return terminal.exit_code(run)


def _parser(named: Sequence[str]) -> Parser:
    parser = Parser(prog="nanoegg", description="Integer-only language models, pretrained with evolution strategies.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=Parser)
    # Importing only the named command saves time and memory; `nanoegg bench` reports the memory of its processes.
    for name in [name for name in named if name in COMMANDS] or COMMANDS:
        module = import_module(f"nanoegg_mlx.commands.{name}")
        command = commands.add_parser(name, help=module.HELP)
        command.set_defaults(command=module.run)
        module.add_arguments(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
