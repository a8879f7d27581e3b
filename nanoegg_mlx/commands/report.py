from nanoegg_mlx.show.report import add_arguments, run
HELP = "x"
