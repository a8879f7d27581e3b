from nanoegg_mlx.measure.sample import add_arguments, run
HELP = "x"
