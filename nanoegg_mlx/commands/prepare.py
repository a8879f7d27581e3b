"""`nanoegg prepare`: text to token caches, by the package data_prep."""

import argparse

import data_prep.__main__ as command

HELP = "convert text to uint8 token caches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `nanoegg prepare`."""
    command.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Prepares the caches; returns the exit code."""
    return command.run(options)
