"""The command line, `nanoegg COMMAND ...`: finds the command's module in commands/, runs it, and reports errors.

Exit codes: 0 done, 2 bad input (one sentence after `error: `), 3 a process of the job was lost, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from nanoegg_mlx.commands.options import Parser
from nanoegg_mlx.errors import InputError, JobError, ReportedElsewhere

COMMANDS = ("prepare", "train", "eval", "sample", "inspect", "baseline", "replay", "plot", "report", "bench", "info")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command (sys.argv's by default) and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[:1]).parse_args(arguments)
    return _exit_code(lambda: options.command(options))


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


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except ReportedElsewhere:
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}:{where}; nothing was overwritten.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
