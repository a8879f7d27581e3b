"""Data sets of the `datasets` library and the hub that lie in a local folder: their splits and files, not their README.

Notable: three layouts are recognised by their own index files, and read without the library: a folder that
`save_to_disk` wrote, a data set built in the cache of `datasets`, and a repository in the hub's cache (or a snapshot in
it). A folder with none of these is a folder of text.
"""

import json
import re
from pathlib import Path

from data_prep.streams import kind_of
from nanoegg_mlx.errors import InputError

_SPLIT_IN_PATH = re.compile(r"(?:^|[^a-zA-Z0-9])(train|training|validation|valid|val|dev|test|testing)(?![a-zA-Z0-9])")
_USUAL = {"training": "train", "testing": "test"}
_LEVELS = 5


def find_splits(folder: Path) -> dict[str, list[Path]] | None:
    """Returns the data set's splits, by its own names, with their files in order; None if the folder is no data set.

    Raises InputError when its index is damaged or names files that are not there.
    """
    if not folder.is_dir():
        return None
    if snapshot := _snapshot(folder):
        return _snapshot_splits(snapshot)
    for _ in range(_LEVELS):
        if (folder / "dataset_dict.json").is_file():
            names = _names(_index(folder / "dataset_dict.json").get("splits"), folder / "dataset_dict.json")
            return {name: _saved_files(folder / name) for name in names}
        if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            return {"train": _saved_files(folder)}
        if (folder / "dataset_info.json").is_file():
            return _built_splits(folder)
        # The cache of `datasets` keeps a data set some folders deep: owner___name/configuration/version/hash.
        inner = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
        if len(inner) != 1 or any(kind_of(path) for path in folder.iterdir() if path.is_file()):
            return None
        folder = inner[0]
    return None


def name_of(folder: Path) -> str:
    """Returns the data set's name: NAME of a hub cache's datasets--OWNER--NAME, else the folder's."""
    folder = folder.resolve()
    for path in (folder, *folder.parents[:2]):
        if path.name.startswith("datasets--"):
            return path.name.rpartition("--")[2]
    return folder.name


def _saved_files(folder: Path) -> list[Path]:
    """Returns the files of a data set that save_to_disk wrote."""
    state = folder / "state.json"
    entries = _index(state).get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or []]
    return [folder / name for name in _names(names, state)]


def _built_splits(folder: Path) -> dict[str, list[Path]] | None:
    """Returns the splits of a data set that `datasets` built: NAME-SPLIT.arrow, or NAME-SPLIT-00000-of-00002.arrow."""
    splits = _index(folder / "dataset_info.json").get("splits")
    files = sorted(path for path in folder.iterdir() if path.suffix == ".arrow")
    if not isinstance(splits, dict) or not files:
        return None
    found = {}
    for name in splits:
        ours = re.compile(rf".*-{re.escape(name)}(-\d+-of-(?P<count>\d+))?\.arrow")
        matches = [match for match in (ours.fullmatch(path.name) for path in files) if match]
        expected = max((int(match["count"] or 1) for match in matches), default=1)
        if len(matches) != expected:
            raise InputError(
                f"The data set {folder} has {len(matches)} files of the split {name!r}; it must have {expected}."
            )
        found[name] = [folder / match.string for match in matches]
    return found


def _snapshot(folder: Path) -> Path | None:
    """Returns the snapshot of a hub cache's repository, or of the only repository in a hub cache."""
    repositories = sorted(path for path in folder.glob("datasets--*") if (path / "snapshots").is_dir())
    if len(repositories) > 1:
        names = ", ".join(path.name for path in repositories)
        raise InputError(f"The folder {folder} has several data sets ({names}); --source must name one of them.")
    folder = repositories[0] if repositories else folder
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("datasets--"):
        return folder
    if not (folder.name.startswith("datasets--") and (folder / "snapshots").is_dir()):
        return None
    snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime)
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except (OSError, ValueError):
        main = snapshots[-1] if snapshots else folder / "snapshots"
    if main not in snapshots:
        raise InputError(f"The folder {folder} has no whole download; the data set must be downloaded again.")
    return main


def _snapshot_splits(snapshot: Path) -> dict[str, list[Path]]:
    """Returns the splits by the names of files and folders, as the hub finds them; a file without one is in train."""
    paths = sorted(path for path in snapshot.rglob("*") if path.is_file() and kind_of(path))
    tables = [path for path in paths if kind_of(path) != "text"]
    papers = ("readme", "license", "changelog", "contributing", "citation")
    found: dict[str, list[Path]] = {}
    for path in tables or [path for path in paths if not path.name.lower().startswith(papers)]:
        match = _SPLIT_IN_PATH.search(path.relative_to(snapshot).as_posix())
        name = match[1] if match else "train"
        found.setdefault(_USUAL.get(name, name), []).append(path)
    if not found:
        raise InputError(f"The data set {snapshot} has no files to read; --source hub:OWNER/NAME must be used.")
    return found


def _index(path: Path) -> dict:
    try:
        index = json.loads(path.read_bytes())
        if isinstance(index, dict):
            return index
    except (OSError, ValueError, RecursionError):
        pass
    raise InputError(f"The file {path} is damaged; it must be the index of a data set that save_to_disk wrote.")


def _names(names: object, path: Path) -> list[str]:
    """Returns names of files or folders from an index. Raises InputError unless each is a plain name."""
    if isinstance(names, list) and names and all(isinstance(n, str) and re.fullmatch(r"[^/\0]+", n) for n in names):
        return [name for name in names if name not in (".", "..")]
    raise InputError(f"The file {path} is damaged; it must be the index of a data set that save_to_disk wrote.")
