"""The command as a user meets it: exit status, one line for what is wrong, the table."""

import json
from pathlib import Path

import pytest

from data_prep.__main__ import add_arguments, main
from data_prep.sources import row_hashes


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with one file of everything, right and wrong."""
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("text")
    Path("bad.txt").write_bytes(b"abc\xff")
    Path("empty.txt").touch()
    Path("rows.jsonl").write_text('{"text": "a", "id": 1}\n{"text": null, "id": 2}\n')
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("bad.parquet").write_bytes(b"PAR1 and no more")
    Path("table.csv").write_text("text\na\n")
    Path("taken").write_text("a file where a folder should be")
    Path("nothing").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--train gone.txt", "gone.txt does not exist: check the path"),
        ("--source gone.txt", "there is nothing at 'gone.txt': --source takes python-stdlib, "),
        ("--source nothing", "nothing holds no files to read: it takes .txt, .md and .jsonl"),
        ("--source table.csv", "table.csv is not of a known kind, rename or convert it: .txt"),
        ("--train bad.txt", "bad.txt is not valid UTF-8 at byte 3: convert it"),
        ("--train good.txt bad.jsonl", "bad.jsonl is broken in row 1 (counted from 0): "),
        ("--train good.txt bad.parquet", "bad.parquet cannot be read ("),
        ("--train empty.txt", "the train split holds no text: give it more text"),
        ("--train good.txt --valid empty.txt", "the valid split holds no text (train got 1): "),
        ("--source good.txt --valid-fraction 0", "the test split got no document (train got 1): "),
        ("--source rows.jsonl --column body", "rows.jsonl has no column 'body', its first row has "
         "'text', 'id': name the text with --column"),
        ("--source rows.jsonl --column id", "rows.jsonl holds a number, not text, under 'id' in "),
        ("--train good.txt --out taken", "taken cannot be written (File exists): make room"),
        ("--train good.txt --name a/b", "'a/b' cannot be part of a file's name: choose another"),
        ("--train good.txt --valid good.txt", "good.txt is named twice: name every file once"),
        ("--source good.txt --valid bad.txt", "--train, --valid and --test with paths say where"),
        ("--valid good.txt", "--train, --valid and --test with paths say where"),
        ("--valid-fraction 0.6 --test-fraction 0.4", "--valid-fraction and --test-fraction are "),
        ("--valid-fraction nan", "--valid-fraction and --test-fraction are parts of 1"),
        ("--source hub:a/b --valid x --valid-fraction 0.1", "--valid and --valid-fraction exclude"),
        ("--source hub:a/b --train x y", "--train takes one split of a hub data set: name one"),
        ("--source hub:nonsense", "hub:nonsense names no data set: write hub:OWNER/NAME"),
        ("--source good.txt --revision x", "--config and --revision are for hub data sets: leave"),
        ("--column x", "python-stdlib has no columns: leave --column out"),
        ("--check --name x", "data/x_manifest.json does not exist: prepare that set first"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(folder, capsys, command, message):
    before = sorted(folder.iterdir())
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert (out, err.count("\n"), err[-1]) == ("", 1, "\n")
    assert sorted(folder.iterdir()) == before


def test_the_table_and_what_comes_after_it(folder, capsys):
    Path("nul.jsonl").write_text('{"text": "a\\u0000b"}\n{"text": null}\n{"text": "c"}\n')
    assert main(["--train", "nul.jsonl", "good.txt", "--valid", "rows.jsonl", "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "mine: prepared in data\n"
        "split  documents  bytes  file\n"
        "train          3     11  data/mine_train.npy\n"
        "valid          1      2  data/mine_valid.npy\n"
        "Documents that hold a 0 byte of their own: 1, kept as they are; a model takes it for the "
        "start of a document.\n"
        "Rows without a text (null), left out: 2.\n"
    )
    assert err == ""
    assert main(["--train", "nul.jsonl", "--name", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: data/mine_manifest.json was made from somet")
    assert main(["--name", "mine", "--check", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_source_of_one_folder_takes_its_name(folder, capsys):
    Path("notes").mkdir()
    for i in range(40):
        Path(f"notes/{i}.md").write_text(f"note {i}")
    assert main(["--source", "notes", "--valid-fraction", "0.3", "--test-fraction", "0.3"]) == 0
    assert sorted(path.name for path in Path("data").glob("*.npy")) == [
        "notes_test.npy", "notes_train.npy", "notes_valid.npy",
    ]  # fmt: skip
    manifest = json.loads(Path("data/notes_manifest.json").read_text())
    shares = [row_hashes(f"{i}.md", 0, 1)[0] for i in range(40)]
    counts = {split: entry["documents"] for split, entry in manifest["splits"].items()}
    assert counts["test"] == sum(share < 0.3 for share in shares)
    assert counts["valid"] == sum(0.3 <= share < 0.6 for share in shares)


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"], prog="nanoegg prepare")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: nanoegg prepare")
    assert "examples (nanoegg prepare ...)" in text

    class Options:
        seen: list[tuple[str, str]] = []  # noqa: RUF012

        def add_argument_group(self, _: str) -> "Options":
            return self

        def add_argument(self, flag: str, **options: object) -> None:
            self.seen.append((flag, str(options.get("help", ""))))

    add_arguments(Options())
    assert len(Options.seen) == 14
    assert [flag for flag, text in Options.seen if len(text) < 15] == []


def test_as_a_module(folder, start):
    process = start("-m", "data_prep", "--train", "good.txt", "--out", "out", cwd=folder)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[0] == "local: prepared in out"
    process = start("-m", "data_prep", "--source", "gone", cwd=folder)
    assert process.communicate(timeout=60)[1].startswith("error: there is nothing at 'gone'")
    assert process.returncode == 2
