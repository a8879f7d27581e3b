"""Tokens per second of whole epochs and of validation, beside the machine's int8 peak: the same as `nanoegg bench`.

python benchmarks/throughput.py [--scaling] [--engine mlx|cpu] [--reference-command COMMAND] [--json FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx.measure import bench

sys.exit(bench.main("python benchmarks/throughput.py"))
