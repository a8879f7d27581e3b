"""`nanoegg plot`: runs drawn on one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nanoegg_mlx.show.page import plot_runs

HELP = "runs drawn on one page, as PNG or SVG"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.description = (
        "Draws one run or several on one page: loss and validation against tokens and training time beside unigram, "
        "bigram and gzip figures of the validation cache, updates, weight histograms, throughput. A run may be in "
        "progress."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="image to write, .png or .svg")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")


def run(options: argparse.Namespace) -> int:
    """Draws the page, and prints its notes and the labels of the runs."""
    output = Path(options.output)
    scene = plot_runs(options.runs, output, options.force)
    for note in scene.notes:
        print(note, file=sys.stderr)
    print(f"{output}: {', '.join(scene.labels)}")
    return 0
