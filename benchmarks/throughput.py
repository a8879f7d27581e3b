"""Tokens per second of whole epochs and of validation, beside the machine's int8 peak: the same as `nanoegg bench`.

python benchmarks/throughput.py [--scaling] [--engine cpu|mlx|both] [--reference-command COMMAND] [--json FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
