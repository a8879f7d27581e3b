"""The commands of `nanoegg`, one module each: HELP (a line), add_arguments(parser) and run(options) -> exit code.

They parse options, call the library and print. The list of them is in cli.py.
"""
