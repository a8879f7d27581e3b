"""Data sets of the Hugging Face hub, through the `datasets` library.

Notable: the data set is downloaded and not streamed. `datasets` then holds it to the sizes its
card declares, resumes broken downloads, and the next run needs no network. What it leaves on disk
are Arrow files, which are read here like any other: chunk by chunk, without going through its
row interface. `datasets` is imported when it is needed, since that takes a second.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from data_prep import PrepareError
from data_prep.formats import check_column, read_table

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

USUAL_NAMES = {
    "train": ["train"],
    "valid": ["validation", "valid", "val", "dev"],
    "test": ["test"],
}


def load(repository: str, config: str | None, revision: str | None, progress: bool) -> "DatasetDict":
    """Download a data set, or find it where an earlier download left it.

    progress: let `datasets` show progress bars of its own.
    Raises PrepareError when the hub cannot be reached or has no such data set.
    """
    import datasets
    from huggingface_hub.utils import logging

    # Its warnings about each retry would bury the one sentence that is wanted.
    logging.set_verbosity_error()
    if not progress:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(repository, name=config, revision=revision)
    except Exception as error:
        # There is no common class: its own, the HTTP client's, and plain ones are all raised.
        reason = str(error).strip().partition("\n")[0][:160].rstrip(".: ") or type(error).__name__
        raise PrepareError(
            f"the data set {repository} cannot be had from the hub ({reason}): check its name, "
            "--config, --revision and the network, or prepare local text with --source PATH"
        ) from None


def find_split(repository: str, data: "DatasetDict", split: str, named: str | None) -> str:
    """The data set's own name of the split 'train', 'valid' or 'test'.

    Raises PrepareError when there is none, or none of the name that was given.
    """
    for name in [named] if named else USUAL_NAMES[split]:
        if name in data:
            return name
    advice = f"name one with --{split}"
    if split != "train":
        advice += f" or carve one out of the train rows with --{split}-fraction 0.05"
    raise PrepareError(
        f"{repository} has no split {named or USUAL_NAMES[split][0]!r}, only {', '.join(map(repr, data))}: {advice}"
    )


def read(data: "Dataset", column: str, label: str) -> Iterator[pa.Array]:
    """The rows of a text column, in order, as string or large_string arrays of valid UTF-8.

    Raises PrepareError for a column that is missing or not text, for a row that is not UTF-8, and
    when the files on disk do not hold the rows the data set says it has.
    """
    check_column(data.data.schema, column, label)
    rows = 0
    for file in data.cache_files:
        for array in read_table(Path(file["filename"]), column, label):
            yield array
            rows += len(array)
    if rows != data.num_rows:
        raise PrepareError(
            f"{label} came out with {rows} rows, not the {data.num_rows} it says it has: remove "
            "it from the cache of `datasets` and try again"
        )


def stored_bytes(data: "Dataset") -> int:
    """The size of the data set's Arrow files."""
    return sum(Path(file["filename"]).stat().st_size for file in data.cache_files)


def fingerprint(data: "Dataset") -> str:
    """What `datasets` identifies this version of the data by."""
    return data._fingerprint
