from nanoegg_mlx.measure.bench import add_arguments, run
HELP = "x"
