"""Data sets of the Hugging Face hub, through the `datasets` library.

Notable: the data set is downloaded, not streamed. `datasets` then checks the sizes that its card declares, resumes
broken downloads, and the next run needs no network. The downloaded Arrow files are read like any others: chunk by
chunk, without the row interface of `datasets`. It is imported on first use, since the import takes a second.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_prep.formats import checked_arrays, descend, find_column, read_table
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
    # A local folder of the same name would be read in place of the hub's data set.
    path = f"hf://datasets/{repository}" if Path(repository).exists() else repository
    try:
        return datasets.load_dataset(path, name=config, revision=revision)
    except Exception as error:
        # There is no common class: `datasets` raises its own errors, the HTTP client's and built-in ones.
        if names := _configurations(str(error)):
            given = f"has no configuration {config!r}" if config else "has several configurations"
            raise InputError(f"The data set {repository} {given}; --config must name one of them: {names}.") from None
        reason = str(error).strip().partition("\n")[0][:160].rstrip(".: ") or type(error).__name__
        raise InputError(
            f"The data set {repository} is unavailable ({reason}); its name, --config, --revision and the network must "
            "be right (--source PATH needs none of them)."
        ) from None


def _configurations(message: str) -> str | None:
    """Returns the names of configurations that a message of `datasets` lists, None if it lists none."""
    listed = re.search(r"(?:available configs|Available): \[(.*?)\]", message, re.DOTALL)
    return " ".join(listed[1].split()) if listed else None


def has_split(data: Mapping[str, Any], split: str) -> bool:
    """Returns whether the data set has the split 'train', 'valid' or 'test' by one of its usual names."""
    return any(name in data for name in USUAL_NAMES[split])


def find_split(repository: str, data: Mapping[str, Any], split: str, named: str | None) -> str:
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
    find_column(data.data.schema, column, label)
    rows = 0
    for array in _arrays(data, column, label):
        yield array
        rows += len(array)
    if rows != data.num_rows:
        raise InputError(
            f"{label} has {rows} rows on disk, not the declared {data.num_rows}; it must be removed from the cache of "
            "`datasets` and downloaded again."
        )


def _arrays(data: "Dataset", column: str, label: str) -> Iterator[pa.Array]:
    if not data.cache_files:
        # HF_DATASETS_IN_MEMORY_MAX_SIZE keeps small data sets in memory alone.
        path = find_column(data.data.schema, column, label)
        chunks = data.data.column(path[0]).chunks
        yield from checked_arrays((descend(chunk, path[1:]) for chunk in chunks), column, label)
    for file in data.cache_files:
        yield from read_table(Path(file["filename"]), column, label)


def stored_bytes(data: "Dataset") -> int:
    """Returns the size of the data set's Arrow files, or of its tables in memory, in bytes."""
    return sum(Path(file["filename"]).stat().st_size for file in data.cache_files) or data.data.nbytes


def fingerprint(data: "Dataset") -> str:
    """Returns the identifier that `datasets` gives this version of the data."""
    return data._fingerprint
