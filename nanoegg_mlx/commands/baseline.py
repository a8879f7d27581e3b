from nanoegg_mlx.measure import baselines

HELP = "x"


def add_arguments(p):
    kinds = p.add_subparsers(metavar="kind", required=True)
    baselines.add_arguments(kinds)


def run(o):
    pass
