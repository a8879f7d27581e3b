from data_prep.__main__ import add_arguments, run
HELP = "x"
