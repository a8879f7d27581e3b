"""The command `python -m data_prep`, which `nanoegg prepare` runs too.

Exit codes: 0 done, 2 bad input (one sentence on stderr), 130 interrupted.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data_prep import cache, single
from data_prep.next_step import next_command
from data_prep.options import add_arguments, check_name, choose_source
from data_prep.pipeline import prepare
from nanoegg_mlx import terminal


def main(argv: list[str] | None = None, prog: str = "python -m data_prep") -> int:
    """Parses arguments (sys.argv by default) and runs the command. Returns its exit code."""
    terminal.repair_streams()
    parser = argparse.ArgumentParser(prog=prog)
    add_arguments(parser)
    return terminal.exit_code(lambda: run(parser.parse_args(argv)))


def run(options: argparse.Namespace) -> int:
    """Prepares or checks the caches that the options name. Returns the exit code. Raises InputError for bad input."""
    try:
        source = choose_source(options)
        name = options.name or source.name
        check_name(name)
        if options.check:
            manifest, outcome = cache.check(options.out, name), "checked, the same as the manifest"
        else:
            manifest, outcome = prepare(source, options.out, name, options.force, options.quiet)
    except KeyboardInterrupt:
        print("Interrupted; no cache was made.", file=sys.stderr)
        return 130
    if not options.quiet:
        lines = [f"{name}: {outcome}", table(manifest, options.out), *source.remarks, *remarks(manifest)]
        if manifest["request"].get("split") == single.SPLIT and (command := next_command(manifest, options.out)):
            lines.append(f"Next: {command}")
        print("\n".join(lines))
    return 0


def table(manifest: dict[str, Any], folder: Path) -> str:
    """Split, documents, bytes and file of each cache, in aligned columns."""
    rows = [("split", "documents", "bytes", "file")]
    for split, entry in manifest["splits"].items():
        counts = f"{entry['documents']:,}", f"{entry['bytes']:,}"
        rows.append((split, *counts, str(folder / entry["file"])))
    first, second, third = (max(len(row[i]) for row in rows) for i in range(3))
    return "\n".join(f"{a:<{first}}  {b:>{second}}  {c:>{third}}  {d}" for a, b, c, d in rows)


def remarks(manifest: dict[str, Any]) -> list[str]:
    """Warnings about the documents, one sentence each."""
    entries = manifest["splits"].values()
    sentences = []
    if nul := sum(entry["documents_with_nul"] for entry in entries):
        sentences.append(
            f"Documents that contain a 0 byte: {nul:,}, kept unchanged; a model reads it as the start of a document."
        )
    if null := sum(entry["null_documents"] for entry in entries):
        sentences.append(f"Rows without text (null), left out: {null:,}.")
    return sentences


if __name__ == "__main__":
    sys.exit(main())
