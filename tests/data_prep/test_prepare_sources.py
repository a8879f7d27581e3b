"""The documents and splits of each source: files, the hub, the standard library."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.__main__ import main
from data_prep.pipeline import prepare
from data_prep.sources import (
    Fractions,
    Source,
    files_source,
    hub_source,
    row_hashes,
    split_files_source,
    stdlib_source,
)
from nanoegg_mlx.errors import InputError

HALF = Fractions(0.25, 0.25)
HUB = {
    "train": [f"train {i} €\n" * (i % 7) for i in range(3000)],
    "validation": ["v", "", "nul \0 inside"],
    "test": ["test document"],
}


def splits_of(source: Source) -> dict[str, list[str]]:
    """The documents of each split, separated at 0x00."""
    found: dict[str, bytes] = {}
    for split, piece in source.read(source):
        found[split] = found.get(split, b"") + piece.tokens.tobytes()
    return {split: data.decode().split("\0")[1:] for split, data in sorted(found.items())}


def test_row_hashes_are_splitmix64():
    # seed: the first 8 bytes of sha256(b"abc"); plain integers for the recurrence
    state, expected = int.from_bytes(bytes.fromhex("ba7816bf8f01cfea"), "little"), []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(((z ^ (z >> 31)) >> 11) / 2**53)
    assert row_hashes("abc", 0, 5).tolist() == expected
    assert row_hashes("abc", 3, 2).tolist() == expected[3:]


def test_fractions_are_as_requested():
    assigned = Fractions(0.05, 0.1).assign("file", 0, 100_000)
    assert np.allclose(np.bincount(assigned) / 100_000, [0.85, 0.05, 0.1], atol=0.005)
    assert not Fractions(0, 0).assign("file", 0, 1000).any()


def write_folder(root: Path, count: int) -> dict[str, str]:
    texts = {f"{'deep/er/' * (i % 2)}n{i:03}.txt": f"text {i}" for i in range(count)}
    for key, text in texts.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_text(text)
    return texts


def test_a_folder_is_split_by_paths_in_sorted_order(tmp_path):
    texts = write_folder(tmp_path / "a", 60)
    (tmp_path / "a" / "image.png").write_bytes(b"\xff")
    (tmp_path / "a" / ".hidden.txt").write_text("hidden")
    expected: dict[str, list[str]] = {"test": [], "train": [], "valid": []}
    for key in sorted(texts):
        share = row_hashes(key, 0, 1)[0]
        expected["test" if share < 0.25 else "valid" if share < 0.5 else "train"].append(texts[key])
    assert all(expected.values())
    assert splits_of(files_source([tmp_path / "a"], "text", HALF)) == expected

    more = write_folder(tmp_path / "b", 80)
    again = splits_of(files_source([tmp_path / "b"], "text", HALF))
    for split, documents in expected.items():
        assert [text for text in again[split] if text in texts.values()] == documents
    assert sum(map(len, again.values())) == len(more)


def test_rows_of_a_table_are_split_by_index_whatever_the_chunks(tmp_path):
    rows = [None if i % 50 == 7 else f"row {i}" for i in range(20_000)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=700)
    shares = row_hashes("a.parquet", 0, len(rows))
    found = splits_of(files_source([tmp_path / "a.parquet"], "text", Fractions(0.3, 0.2)))
    for split, low, high in (("test", 0, 0.2), ("valid", 0.2, 0.5), ("train", 0.5, 1)):
        chosen = (low <= shares) & (shares < high)
        assert found[split] == [row for row, take in zip(rows, chosen, strict=True) if take and row]


def test_inputs_named_for_each_split(tmp_path):
    write_folder(tmp_path / "a", 4)
    (tmp_path / "v.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    paths = {"train": [tmp_path / "a"], "valid": [tmp_path / "v.jsonl"]}
    source = split_files_source(paths, "body")
    assert source.splits == ["train", "valid"]
    assert splits_of(source) == {
        "train": ["text 1", "text 3", "text 0", "text 2"],
        "valid": ["one", "two"],
    }
    with pytest.raises(InputError, match=r"n000\.txt is named twice"):
        split_files_source({"train": [tmp_path / "a"], "valid": [tmp_path / "a/n000.txt"]}, "text")


def test_the_request_changes_with_the_files(tmp_path):
    write_folder(tmp_path, 3)
    before = files_source([tmp_path], "text", HALF).request
    assert files_source([tmp_path], "text", HALF).request == before
    (tmp_path / "n000.txt").write_text("something else")
    assert files_source([tmp_path], "text", HALF).request != before


def test_files_left_out_of_the_standard_library(tmp_path):
    for key in ("a.py", "json/b.py", "test/c.py", "x/tests/d.py", "site-packages/e.py", "f.txt"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_text(key)
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    source = stdlib_source(Fractions(0, 0), tmp_path)
    assert splits_of(source) == {"train": ["a.py", "json/b.py"]}
    assert source.remarks == ["Left out as not UTF-8: 1 (latin.py)."]
    (tmp_path / "test" / "c.py").unlink()
    with pytest.raises(InputError, match=r"has no \.py files"):
        stdlib_source(HALF, tmp_path / "test")


def test_the_standard_library_of_this_interpreter(tmp_path, naive_tokens):
    manifest, _ = prepare(stdlib_source(Fractions(0.05, 0.05)), tmp_path, "python-stdlib")
    train = np.load(tmp_path / "python-stdlib_train.npy")
    splits = [np.load(tmp_path / f"python-stdlib_{s}.npy") for s in ("train", "valid", "test")]
    assert (train.dtype, train.ndim) == (np.uint8, 1)
    assert train.size == manifest["splits"]["train"]["bytes"] > 4_000_000
    assert all(split.size > 20_000 for split in splits)
    source = naive_tokens([Path(json.__file__).read_text()]).tobytes()
    assert sum(source in split.tobytes() for split in splits) == 1


@pytest.fixture
def stub_hub(tmp_path, monkeypatch):
    """A hub that serves parquet files of MiniPile's shape, through the real load_dataset."""
    calls = []
    load_dataset = datasets.load_dataset
    (tmp_path / "hub").mkdir()
    for split, rows in HUB.items():
        file = tmp_path / "hub" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table({"text": rows, "id": range(len(rows))}), file)

    def serve(repository: str, **options: object) -> datasets.DatasetDict:
        calls.append((repository, options))
        return load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", serve)
    return calls


def test_minipile(tmp_path, stub_hub, naive_cache, read_set, capsys):
    out = tmp_path / "out"
    assert main(["--source", "minipile", "--out", str(out)]) == 0
    assert stub_hub == [("JeanKaddour/minipile", {"name": None, "revision": None})]
    assert sorted(path.name for path in out.iterdir()) == [
        "minipile_manifest.json", "minipile_test.npy", "minipile_train.npy", "minipile_valid.npy",
    ]  # fmt: skip
    assert read_set(out, "minipile") == {
        "train": naive_cache(HUB["train"]),
        "valid": naive_cache(HUB["validation"]),
        "test": naive_cache(HUB["test"]),
    }
    assert "contain a 0 byte: 1, kept" in capsys.readouterr().out

    assert main(["--source", "minipile", "--out", str(out)]) == 0
    assert len(stub_hub) == 1
    assert "minipile: already prepared" in capsys.readouterr().out


def test_a_hub_data_set_without_valid_and_test(tmp_path, stub_hub, naive_cache, read_set, capsys):
    (tmp_path / "hub" / "validation-00000-of-00001.parquet").unlink()
    (tmp_path / "hub" / "test-00000-of-00001.parquet").unlink()
    command = ["--source", "hub:some/set", "--out", str(tmp_path / "out"), "--revision", "v1"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "error: The data set set has no split 'validation', only 'train'; --valid must name one of them, or "
        "--valid-fraction 0.05 take it from the train rows.\n"
    )
    assert not (tmp_path / "out").exists()

    assert main([*command, "--valid-fraction", "0.1", "--test-fraction", "0"]) == 0
    assert stub_hub[-1] == ("some/set", {"name": None, "revision": "v1"})
    chosen = row_hashes("train", 0, len(HUB["train"])) < 0.1
    rows = list(zip(HUB["train"], chosen, strict=True))
    assert read_set(tmp_path / "out", "set") == {
        "train": naive_cache([row for row, valid in rows if not valid]),
        "valid": naive_cache([row for row, valid in rows if valid]),
    }


def test_hub_splits_by_name_and_columns_that_are_missing(tmp_path, stub_hub, naive_cache, capsys):
    command = ["--source", "hub:a/b", "--out", str(tmp_path / "out"), "--test-fraction", "0"]
    assert main([*command, "--train", "validation", "--valid", "test"]) == 0
    cache = (tmp_path / "out" / "b_train.npy").read_bytes()
    assert cache == naive_cache(HUB["validation"])
    capsys.readouterr()
    for options, message in (
        (["--valid", "nope"], "error: The data set b has no split 'nope', only 'train', 'validation', 'test'"),
        (["--column", "body"], "error: The split train of b has no column 'body' (its columns are 'te"),
        (["--column", "id"], "error: The split train of b has int64, not text, in column 'id'"),
    ):
        assert main([*command, "--name", "other", *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1


def test_a_hub_data_set_that_lost_rows_on_disk(stub_hub, monkeypatch):
    monkeypatch.setattr(datasets.Dataset, "num_rows", property(lambda _: 5))
    source = hub_source("a/b", "text", None, None, {}, {})
    with pytest.raises(InputError, match=r"has 3000 rows on disk, not the declared 5"):
        list(source.read(source))


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach 'a/b' on the Hub\nlong story"), RuntimeError()])
def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch, capsys, error):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    assert main(["--source", "hub:a/b", "--out", str(tmp_path / "out")]) == 2
    reason = str(error).partition("\n")[0] or "RuntimeError"
    assert capsys.readouterr().err == (
        f"error: The data set a/b is unavailable ({reason}); its name, --config, --revision and the network must be "
        "right (--source PATH needs none of them).\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_with_the_library_as_it_is(tmp_path, start):
    program = "import os, sys; os.environ['HF_HOME'] = sys.argv.pop(1); "
    program += "from data_prep.__main__ import main; sys.exit(main())"
    process = start("-c", program, tmp_path / "hf", "--source", "minipile", "--out", tmp_path / "o")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: The data set JeanKaddour/minipile is unavailable (")
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_datasets_is_not_imported_for_local_text(tmp_path, start):
    (tmp_path / "a.txt").write_text("text")
    program = (
        "import sys; from data_prep.__main__ import main; "
        "assert main(sys.argv[1:]) == 0; assert 'datasets' not in sys.modules"
    )
    process = start("-c", program, "--train", tmp_path / "a.txt", "--out", tmp_path / "out")
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    assert "datasets" in sys.modules
