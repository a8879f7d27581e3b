"""`nanoegg compress` and `nanoegg decompress`: files as people know it from gzip and zstd, and every mistake."""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoegg_mlx import init_params
from nanoegg_mlx.cli import main
from nanoegg_mlx.measure.compress import compress, decompress
from nanoegg_mlx.store import checkpoint
from tests.tiny import skilled_checkpoint
from tests.traces import pseudo_text

TEXT = bytes(pseudo_text(2500, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return skilled_checkpoint(tmp_path_factory.mktemp("run"), TEXT)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(TEXT)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def refuses(arguments: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """One sentence, exit 2, and the folder as before."""
    before = {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in Path().iterdir()}
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith(".\n"), err
    assert all(part in err for part in parts), err
    after = {path: (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in Path().iterdir()}
    assert after == before


def test_there_and_back(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chmod("a.txt", 0o640)
    os.utime("a.txt", ns=(1_000_000_007, 2_000_000_009))
    assert main(["compress", model, "a.txt"]) == 0
    opened = checkpoint.load(model)
    packed = (folder / "a.txt.egg").read_bytes()
    assert packed == compress(TEXT, opened.params, opened.config)
    out = capsys.readouterr().out
    share = len(packed) / len(TEXT)
    assert out.startswith(f"a.txt: 2,500 -> {len(packed):,} bytes ({100 * share:.2f} %, {8 * share:.2f} bits per byte)")
    assert out.endswith(" MB/s\n") and names(folder) == ["a.txt", "a.txt.egg"]
    (folder / "a.txt").unlink()
    assert main(["decompress", "a.txt.egg", "--model", model, "--rm"]) == 0
    assert capsys.readouterr().out.startswith(f"a.txt.egg: {len(packed):,} -> 2,500 bytes, ")
    assert names(folder) == ["a.txt"] and (folder / "a.txt").read_bytes() == TEXT
    status = os.stat("a.txt")
    assert stat.S_IMODE(status.st_mode) == 0o640 and status.st_mtime_ns == 2_000_000_009


def test_many_files_and_options(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"b\xff\n.txt")
    contents = {"a.txt": TEXT, "empty": b"", "-one": b"x", odd: TEXT[:100]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    assert main(["compress", model, "a.txt", "empty", odd, "./-one", "--rm", "--lanes", "9", "--engine=mlx"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and out[1].startswith("empty: 0 -> 88 bytes, ") and "\\udcff\\n.txt: 100 -> " in out[2]
    assert names(folder) == sorted(f"{name}.egg" for name in contents)
    assert main(["decompress", "--model", model, *(f"./{name}.egg" for name in contents), "--threads=1"]) == 0
    for name, content in contents.items():
        assert (folder / name).read_bytes() == content
    assert len(names(folder)) == 8
    (folder / "a.txt").write_bytes(b"other")
    assert main(["compress", model, "a.txt", "-f", "--verify"]) == 0
    assert main(["decompress", "a.txt.egg", "--model", model, "-o", "c.txt", "-k"]) == 0
    assert (folder / "c.txt").read_bytes() == b"other"


def test_standard_streams(
    model: str, folder: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(content: bytes, *arguments: str, code: int = 0) -> tuple[bytes, bytes]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(arguments) == code
        return capsysbinary.readouterr()

    packed, message = run(TEXT, "compress", model, "-", "--verify")
    assert message.startswith(b"Standard input: 2,500 -> ") and len(packed) < 2000
    assert run(b"", "compress", model, "a.txt", "-o-")[0] == packed
    assert run(packed, "decompress", "--model", model, "-")[0] == TEXT
    # Nothing is written unless all is right.
    out, message = run(packed[:-1], "decompress", "--model", model, "-", code=2)
    assert (out, message) == (b"", b"error: Standard input is truncated; it must be whole.\n")
    assert names(folder) == ["a.txt"]
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["compress", model, "-"]) == 2 and b"Standard input is closed" in capsysbinary.readouterr().err


def test_what_is_refused(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.egg", "c.egg", ".egg"):
        (folder / name).write_bytes(b"no")
    (folder / "d").mkdir()
    os.mkfifo(folder / "pipe")
    os.symlink("nowhere", folder / "link")
    to = ["compress", model]
    back = ["decompress", "--model", model]
    refuses([*to, "none"], capsys, "none cannot be read (No such file or directory)")
    refuses([*to, "d"], capsys, "d is a folder; it must be a file")
    refuses([*to, "pipe"], capsys, "pipe is no regular file")
    refuses([*to, "a.txt", "-o", "a.txt"], capsys, "a.txt is the input itself")
    refuses([*to, "a.txt", "-o", "a.txt", "-f"], capsys, "a.txt is the input itself")
    refuses([*to, "a.txt", "-o", "b.egg"], capsys, "b.egg exists; the output must be a new file")
    refuses([*to, "a.txt", "-f", "-o", "d"], capsys, "d exists and is no regular file")
    refuses([*to, "a.txt", "-f", "-o", "link"], capsys, "link exists and is no regular file")
    refuses([*to, "a.txt", "-o", "no/where"], capsys, "no/where cannot be written (No such file or directory)")
    refuses([*to, "a.txt", "b.egg", "-o", "x"], capsys, "-o is given for 2 files")
    refuses([*to, "a.txt", "a.txt"], capsys, "a.txt.egg would be written 2 times")
    refuses([*to, "a.txt", "--rm", "-o", "-"], capsys, "--rm is given with a standard stream")
    refuses([*to, "a.txt", "--lanes=-1"], capsys, "lanes is -1")
    refuses([*to, "a" * 300], capsys, "File name too long")
    refuses(["compress", "none", "a.txt"], capsys, "none")
    refuses([*back, "b.egg"], capsys, "b.egg is no compressed file of nanoegg")
    refuses([*back, "b.egg", "--rm"], capsys, "b.egg is no compressed file of nanoegg")
    refuses([*back, "a.txt"], capsys, "a.txt does not end with .egg")
    refuses([*back, ".egg"], capsys, ".egg does not end with .egg")
    (folder / "b").write_bytes(b"mine")
    refuses([*back, "b.egg"], capsys, "b exists")


def test_the_wrong_model_and_a_damaged_file(model: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = checkpoint.load(model)
    (folder / "w.egg").write_bytes(compress(TEXT, init_params(opened.config), opened.config))
    refuses(["decompress", "w.egg", "--model", model], capsys, "w.egg was compressed with a model whose SHA-256")
    packed = compress(TEXT, opened.params, opened.config)
    (folder / "w.egg").write_bytes(packed[:-40] + b"\0" + packed[-39:])
    refuses(["decompress", "w.egg", "--model", model, "--rm"], capsys, "w.egg is damaged")


def test_checkpoints_that_cannot_compress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("u", "n"):
        (tmp_path / name).mkdir()
    untrained = skilled_checkpoint(tmp_path / "u", TEXT, num_epochs=0)
    refuses(["compress", untrained, "a.txt"], capsys, "is of epoch 0, which is untrained")
    narrow = skilled_checkpoint(tmp_path / "n", TEXT, vocab_size=255)
    for command in (["compress", narrow, "a.txt"], ["decompress", "a.txt", "-o", "b", "--model", narrow]):
        refuses(command, capsys, "vocab_size is 255; it must be 256")


def test_a_result_that_does_not_decode(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --verify and --rm are for: here an engine that writes other streams than it should."""
    from nanoegg_mlx.engines.mlx import MLXEngine

    honest = MLXEngine.encode
    monkeypatch.setattr(MLXEngine, "encode", lambda *given: [stream[:-9] for stream in honest(*given)])
    (folder / "s").write_bytes(TEXT[:200])
    for option in ("--verify", "--rm"):
        refuses(["compress", model, "s", "--engine=mlx", option], capsys, "The result is damaged")
    assert main(["compress", model, "s", "--engine=mlx"]) == 0
    assert names(folder) == ["a.txt", "s", "s.egg"]


def test_an_input_that_changes_is_kept(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanoegg_mlx.measure import compressed_files

    def meddle(*given: Any) -> None:
        rename(*given)
        (folder / "a.txt").write_bytes(b"new")

    rename = compressed_files._rename
    monkeypatch.setattr(compressed_files, "_rename", meddle)
    assert main(["compress", model, "a.txt", "--rm"]) == 2
    assert "a.txt was not deleted: it changed" in capsys.readouterr().err
    assert (folder / "a.txt").read_bytes() == b"new"
    opened = checkpoint.load(model)
    assert decompress((folder / "a.txt.egg").read_bytes(), opened.params, opened.config) == TEXT


def test_a_full_disk_leaves_nothing(
    model: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuses(["compress", model, "a.txt", "--rm"], capsys, "No space left on device")


def test_a_terminal_is_refused(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["compress", model, "a.txt", "-o", "-"]) == 2
    assert "Standard output is a terminal" in capsys.readouterr().err


def test_without_links(model: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems that lack hard links."""

    def no_link(*given: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    assert main(["compress", model, "a.txt"]) == 0 and names(folder) == ["a.txt", "a.txt.egg"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(
    number: int, code: int, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanoegg_mlx.engines.mlx import MLXEngine

    def interrupted(*given: Any) -> list[bytes]:
        assert len(names(folder)) == 2, "the temporary file"
        os.kill(os.getpid(), number)
        return []

    monkeypatch.setattr(MLXEngine, "encode", interrupted)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert main(["compress", model, "a.txt", "--engine=mlx"]) == code and names(folder) == ["a.txt"]
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
