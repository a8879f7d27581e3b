"""`nanoegg report`: one run as an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from nanoegg_mlx.show.report import write_report

HELP = "one run as a self-contained HTML page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Writes one HTML page about a run: its figures, config, data, machine and checkpoints. It opens without a "
        "network, in light and in dark. The run may be in progress."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="page to write, .html")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")


def run(options: argparse.Namespace) -> int:
    """Writes the page and prints its name."""
    output = Path(options.output)
    write_report(Path(options.run), output, options.force)
    print(output)
    return 0
