"""Tokens per second of whole epochs and of validation, beside the machine's int8 peak: the same as `nanoegg bench`.

python benchmarks/throughput.py [--scaling] [--engine mlx|cpu] [--json FILE]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanoegg_mlx import bench

parser = argparse.ArgumentParser()
bench.add_arguments(parser)
sys.exit(bench.run(parser.parse_args()))
