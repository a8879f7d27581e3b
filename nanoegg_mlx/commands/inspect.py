from nanoegg_mlx.measure.inspect import add_arguments, run
HELP = "x"
