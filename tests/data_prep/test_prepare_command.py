"""The command: exit codes, one line for each error, the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.options import add_arguments
from data_prep.sources import row_hashes

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with one file of each kind, valid and damaged."""
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("text")
    Path("bad.txt").write_bytes(b"abc\xff")
    Path("empty.txt").touch()
    Path("rows.jsonl").write_text('{"text": "a", "id": 1}\n{"text": null, "id": 2}\n')
    Path("one.jsonl").write_text('{"text": "a"}\n')
    Path("bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    Path("bad.parquet").write_bytes(b"PAR1 and no more")
    Path("table.csv").write_text("text\na\n")
    Path("taken").write_text("a file where a folder should be")
    Path("nothing").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--train gone.txt", "The file gone.txt does not exist; it must be a file"),
        ("--source gone.txt", "The source 'gone.txt' does not exist; it must be python-stdlib, "),
        ("--source nothing", "The folder nothing has no files to read; it must have .txt, .md and .jsonl"),
        ("--source table.csv", "The file table.csv is of an unknown kind; it must be .txt"),
        ("--train bad.txt", "The file bad.txt is not valid UTF-8 at byte 3; it must be converted"),
        ("--train good.txt bad.jsonl", "The file bad.jsonl is broken in row 1 (counted from 0; "),
        ("--train good.txt bad.parquet", "The file bad.parquet cannot be read ("),
        ("--train empty.txt", "The train split has no text; it must have some"),
        ("--train good.txt --valid empty.txt", "The valid split has no text (documents in train: 1); "),
        ("--source one.jsonl --valid-fraction 0", "The test split has no documents (documents in train: 1); "),
        ("--source rows.jsonl --column body", "The file rows.jsonl has no column 'body' (its first row has "
         "'text', 'id'); --column must name the key"),
        ("--source rows.jsonl --column id", "The file rows.jsonl has a number, not text, under 'id' in "),
        ("--train good.txt --out taken", "The path taken cannot be written (File exists); it must be"),
        ("--train good.txt --name a/b", "The name 'a/b' is not allowed; --name must have no slash"),
        ("--train good.txt --valid good.txt", "The file good.txt is named twice; it must be named once"),
        ("--source good.txt --valid bad.txt", "--train, --valid and --test with paths replace all other choices"),
        ("--valid good.txt", "--train, --valid and --test with paths replace all other choices"),
        ("--valid-fraction 0.6 --test-fraction 0.4", "--valid-fraction and --test-fraction are "),
        ("--valid-fraction nan", "--valid-fraction and --test-fraction are out of range"),
        ("--source hub:a/b --valid x --valid-fraction 0.1", "--valid and --valid-fraction are both given"),
        ("--source hub:a/b --train x y", "--train names 2 splits of a hub data set; it must name one"),
        ("--source hub:nonsense", "The source 'hub:nonsense' is not a data set's name; it must be hub:OWNER/NAME"),
        ("--source good.txt --revision x", "--config and --revision are given; they must be left out without"),
        ("--column x", "--column is given, but python-stdlib has no columns; it must be left out"),
        ("--check --name x", "The manifest data/x_manifest.json does not exist; the set must be prepared first"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_line(folder, capsys, command, message):
    before = sorted(folder.iterdir())
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert (out, err.count("\n")) == ("", 1)
    assert "; " in err and err.endswith(".\n")
    assert sorted(folder.iterdir()) == before


def test_the_table_and_the_remarks(folder, capsys):
    Path("nul.jsonl").write_text('{"text": "a\\u0000b"}\n{"text": null}\n{"text": "c"}\n')
    assert main(["--train", "nul.jsonl", "good.txt", "--valid", "rows.jsonl", "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        "mine: prepared in data\n"
        "split  documents  bytes  file\n"
        "train          3     11  data/mine_train.npy\n"
        "valid          1      2  data/mine_valid.npy\n"
        "Documents that contain a 0 byte: 1, kept unchanged; a model reads it as the start of a document.\n"
        "Rows without text (null), left out: 2.\n"
    )
    assert err == ""
    assert main(["--train", "nul.jsonl", "--name", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: The set of data/mine_manifest.json was made from another source")
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
    assert main(["--help"], prog="nanoegg prepare") == 0
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
    assert process.communicate(timeout=60)[1].startswith("error: The source 'gone' does not exist")
    assert process.returncode == 2


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&-", "2>&- >&- <&-", "| true"])
def test_closed_streams(folder, start, streams):
    for number, text in enumerate(("good.txt", "rows.jsonl")):
        command = f'"$0" -m data_prep --train {text} --out out{number} {streams}; exit ${{PIPESTATUS[0]}}'
        assert subprocess.run(["bash", "-c", command, sys.executable], env=ENVIRONMENT, cwd=folder).returncode == 0
        assert main(["--check", "--name", "local", "--out", f"out{number}"]) == 0
    command = f'"$0" -m data_prep --train bad.jsonl --out out2 {streams}; exit ${{PIPESTATUS[0]}}'
    assert subprocess.run(["bash", "-c", command, sys.executable], env=ENVIRONMENT, cwd=folder).returncode == 2
    assert not Path("out2").exists()


def test_an_ascii_terminal(folder):
    Path("café").mkdir()
    Path("café/a.txt").write_text("x")
    ascii_only = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    options = ["--source", "café", "--valid-fraction", "0", "--test-fraction", "0", "--out", "é"]
    done = subprocess.run([sys.executable, "-m", "data_prep", *options], env=ascii_only, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "caf\\xe9: prepared in \\xe9\n" in done.stdout
