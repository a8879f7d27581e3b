from nanoegg_mlx.show.panels import add_arguments, run
HELP = "x"
