"""Data sets of the Hugging Face hub, through the `datasets` library.

Notable: the data set is downloaded, not streamed. `datasets` then checks the sizes that its card declares, resumes
broken downloads, and the next run needs no network. The downloaded Arrow files are read like any others: chunk by
chunk, without the row interface of `datasets`. It is imported on first use, since the import takes a second.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from data_prep.formats import check_column, read_table
from nanoegg_mlx.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

USUAL_NAMES = {
    "train": ["train"],
    "valid": ["validation", "valid", "val", "dev"],
    "test": ["test"],
}


def load(repository: str, config: str | None, revision: str | None, progress: bool) -> "DatasetDict":
    """Downloads a data set, or opens an earlier download.

    progress: whether `datasets` shows its progress bars.
    Raises InputError when the hub cannot be reached or has no such data set.
    """
    import datasets
    from huggingface_hub.utils import logging

    # Its warnings about each retry would hide our error message.
    logging.set_verbosity_error()
    if not progress:
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(repository, name=config, revision=revision)
    except Exception as error:
        # There is no common class: `datasets` raises its own errors, the HTTP client's and built-in ones.
        reason = str(error).strip().partition("\n")[0][:160].rstrip(".: ") or type(error).__name__
        raise InputError(
            f"The data set {repository} is unavailable ({reason}); its name, --config, --revision and the network must "
            "be right (--source PATH needs none of them)."
        ) from None


def find_split(repository: str, data: "DatasetDict", split: str, named: str | None) -> str:
    """Returns the data set's own name of the split 'train', 'valid' or 'test'.

    named: the name that the user gave, if any; otherwise the usual names are tried.
    Raises InputError when the data set has no such split.
    """
    for name in [named] if named else USUAL_NAMES[split]:
        if name in data:
            return name
    remedy = f"--{split} must name one of them"
    if split != "train":
        remedy += f", or --{split}-fraction 0.05 take it from the train rows"
    raise InputError(
        f"The data set {repository} has no split {named or USUAL_NAMES[split][0]!r}, only "
        f"{', '.join(map(repr, data))}; {remedy}."
    )


def read(data: "Dataset", column: str, label: str) -> Iterator[pa.Array]:
    """Yields the rows of a text column, in order, as string or large_string arrays of valid UTF-8.

    label: subject of error messages.
    Raises InputError for a column that is missing or not text, for a row that is not UTF-8, and when the number of rows
    on disk is not the declared one.
    """
    check_column(data.data.schema, column, label)
    rows = 0
    for file in data.cache_files:
        for array in read_table(Path(file["filename"]), column, label):
            yield array
            rows += len(array)
    if rows != data.num_rows:
        raise InputError(
            f"{label} has {rows} rows on disk, not the declared {data.num_rows}; it must be removed from the cache of "
            "`datasets` and downloaded again."
        )


def stored_bytes(data: "Dataset") -> int:
    """Returns the size of the data set's Arrow files in bytes."""
    return sum(Path(file["filename"]).stat().st_size for file in data.cache_files)


def fingerprint(data: "Dataset") -> str:
    """Returns the identifier that `datasets` gives this version of the data."""
    return data._fingerprint
