"""Caches on disk: np.save's bytes; a set appears whole or not at all, wherever a run is killed."""

import errno
import json
import os
import select
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import cache
from data_prep.__main__ import main
from data_prep.cache import CacheWriter, check, existing, header, read_manifest
from data_prep.pipeline import prepare
from data_prep.sources import Source
from data_prep.tokens import Encoded
from nanoegg_mlx.errors import InputError

TEXTS = {"train": ["abc", "", "d\0e"], "valid": ["€"], "test": ["last"]}


def make_source(texts: dict[str, list[str]] = TEXTS, version: int = 1) -> Source:
    def read(_: Source):
        for split, documents in texts.items():
            for text in documents:
                tokens = np.frombuffer(b"\0" + text.encode(), np.uint8)
                yield split, Encoded(tokens, 1, int("\0" in text))

    return Source("name", {"source": "made up", "version": version}, list(texts), read)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["name_manifest.json", "name_test.npy", "name_train.npy", "name_valid.npy"]


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_a_cache_is_what_np_save_writes(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("cache")
    writer = CacheWriter(folder / "ours.npy")
    for piece in pieces:
        writer.write(Encoded(np.frombuffer(piece, np.uint8), 1))
    entry = writer.finish()
    np.save(folder / "plain.npy", np.frombuffer(b"".join(pieces), np.uint8))
    assert (folder / "ours.npy").read_bytes() == (folder / "plain.npy").read_bytes()
    assert entry["bytes"] == sum(map(len, pieces))
    assert entry["documents"] == len(pieces)


@pytest.mark.parametrize("count", [0, 9, 10, 6_000_000_000, 10**18])
def test_headers_of_any_length(tmp_path, count):
    with open(tmp_path / "header", "w+b") as file:
        fields = {"descr": "|u1", "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, fields)
        file.seek(0)
        assert file.read() == header(count)


def test_a_whole_set_and_its_manifest(tmp_path, naive_cache, read_set):
    manifest, outcome = prepare(make_source(), tmp_path / "new" / "out", "name")
    out = tmp_path / "new" / "out"
    assert outcome == f"prepared in {out}"
    assert names(out) == WHOLE
    assert read_set(out, "name") == {split: naive_cache(TEXTS[split]) for split in TEXTS}
    assert json.loads((out / "name_manifest.json").read_text()) == manifest
    assert manifest["splits"]["train"] == {
        "file": "name_train.npy",
        "documents": 3,
        "bytes": 9,
        "tokens_sha256": "5542267c0bd02345d24b80f9af5f6012604efa1d0fcc3b2ba51f40c659b23c45",
        "documents_with_nul": 1,
        "null_documents": 0,
    }
    assert manifest["created"].endswith("+00:00")
    assert manifest["versions"]["numpy"] == np.__version__
    assert check(out, "name") == manifest


def test_existing_caches_are_kept_unless_forced(tmp_path, read_set):
    first, _ = prepare(make_source(), tmp_path, "name")
    assert prepare(make_source(), tmp_path, "name") == (first, "already prepared")

    other = make_source({"train": ["other"]}, version=2)
    before = read_set(tmp_path, "name")
    with pytest.raises(InputError, match=r"\(version: 1 then, 2 now\); it must be replaced with --force"):
        prepare(other, tmp_path, "name")
    assert read_set(tmp_path, "name") == before
    prepare(other, tmp_path, "another")
    prepare(other, tmp_path, "name", force=True)
    assert [name for name in names(tmp_path) if name.startswith("name")] == [
        "name_manifest.json", "name_train.npy",
    ]  # fmt: skip
    assert np.load(tmp_path / "name_train.npy").tobytes() == b"\0other"


def test_caches_without_a_manifest_and_damaged_sets_are_refused(tmp_path):
    np.save(tmp_path / "name_valid.npy", np.arange(9, dtype=np.uint8))
    with pytest.raises(InputError, match=r"name_valid\.npy exists without a name_manifest"):
        prepare(make_source(), tmp_path, "name")
    assert np.load(tmp_path / "name_valid.npy").tolist() == list(range(9))
    prepare(make_source(), tmp_path, "name", force=True)

    with open(tmp_path / "name_test.npy", "r+b") as file:
        file.seek(130)
        file.write(b"?")
    with pytest.raises(InputError, match=r"name_test\.npy differs from its manifest"):
        check(tmp_path, "name")
    (tmp_path / "name_test.npy").unlink()
    with pytest.raises(InputError, match=r"name_test\.npy cannot be read"):
        check(tmp_path, "name")
    with pytest.raises(InputError, match=r"name_test\.npy is missing or its size differs from name_manifest\.json"):
        prepare(make_source(), tmp_path, "name")
    for nonsense in ("", "[]", '{"format_version": 1, "splits": {}}', '{"splits": {"train": 1}}'):
        (tmp_path / "name_manifest.json").write_text(nonsense)
        with pytest.raises(InputError, match="is unreadable"):
            prepare(make_source(), tmp_path, "name")


def test_another_run_that_was_faster_is_left_alone(tmp_path, monkeypatch):
    """On a file system without locks, which would reveal the other run."""
    monkeypatch.setattr(cache, "_living", lambda folder, name: None)
    slow = make_source()
    inner = slow.read

    def read(source: Source):
        prepare(make_source({"train": ["quick"]}, version=quick), tmp_path, "name")
        yield from inner(source)

    slow.read, quick = read, 1
    manifest, _ = prepare(slow, tmp_path, "name")
    assert manifest["splits"].keys() == {"train"}
    for path in tmp_path.iterdir():
        path.unlink()
    quick = 2
    with pytest.raises(InputError, match="was made from another source"):
        prepare(slow, tmp_path, "name")
    assert names(tmp_path) == ["name_manifest.json", "name_train.npy"]
    assert np.load(tmp_path / "name_train.npy").tobytes() == b"\0quick"


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_every_step_leaves_no_half_set(tmp_path, read_set, start, force, naive_cache):
    """Dies at the n-th call that changes the disk, for each n, and checks the files."""
    program = """
import os, shutil, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_prepare_cache import make_source
from data_prep.pipeline import prepare

def deadly(call):
    def counted(*args, **options):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return call(*args, **options)
    return counted

for owner, name in ((tempfile, "mkdtemp"), (os, "fsync"), (os, "replace"), (Path, "unlink"),
                    (shutil, "rmtree")):
    setattr(owner, name, deadly(getattr(owner, name)))
for step in range(99):
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(step, status, flush=True)
        if status == 0:
            break
    else:
        left = step
        folder = Path(sys.argv[2], str(step))
        prepare(make_source(version=2), folder, "name", force=sys.argv[3] == "1")
        os._exit(0)
"""
    if force:
        for step in range(40):
            prepare(make_source({"train": ["old"]}, version=1), tmp_path / str(step), "name")
    # The children make few calls and do not use Arrow's threads.
    quiet = ("-W", "ignore::DeprecationWarning")
    process = start(*quiet, "-c", program, Path(__file__).parent, tmp_path, int(force))
    out, err = process.communicate(timeout=60)
    assert err == ""
    steps = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(steps) > 12 and steps[-1][1] == 0 and {status for _, status in steps[:-1]} == {9}

    wanted = {split: naive_cache(TEXTS[split]) for split in TEXTS}
    found = []
    for step, _ in steps:
        folder, version = tmp_path / str(step), None
        if (folder / "name_manifest.json").exists():
            version = read_manifest(folder, "name")["request"]["version"]
            old = {"train": naive_cache(["old"])}
            assert read_set(folder, "name") == (old if version == 1 else wanted)
        found.append(version)
        prepare(make_source(version=2), folder, "name", force=version == 1)
        assert names(folder) == WHOLE
        assert read_set(folder, "name") == wanted
    assert found == sorted(found, key=[1 if force else None, *([None] if force else []), 2].index)
    assert set(found) == ({1, None, 2} if force else {None, 2})


def test_kill_9_in_the_middle_of_a_run(tmp_path, start, naive_cache, read_set):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("words " * 100_000)
    program = (
        "import sys; from pathlib import Path; from data_prep import sources as s\n"
        "from data_prep.__main__ import main\n"
        "read = s.read_text\n"
        "def pause(path):\n"
        "    yield from read(path)\n"
        "    print('paused', flush=True); sys.stdin.read()\n"
        "s.read_text = pause; main(sys.argv[1:])\n"
    )
    command = ["--train", text, "--out", out]
    process = start("-c", program, *command, stdin=-1)
    assert process.stdout.readline() == "paused\n"
    (stage,) = out.iterdir()
    assert stage.name.startswith(".local.")
    written, deadline = stage / "local_train.npy", time.monotonic() + 60
    while written.stat().st_size <= 600_000 and time.monotonic() < deadline:
        time.sleep(0.01)  # Another thread writes.
    assert written.stat().st_size > 600_000

    assert main(["--source", str(text), "--test-fraction", "0", "--valid-fraction", "0", "--name",
                 "local2", "--out", str(out)]) == 0  # fmt: skip
    cache.recover(out, "local")
    assert stage.exists(), "the folder of a living run was removed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path for path in names(out) if "local2" not in path] == [stage.name]
    assert existing(out, "local", {}) is None

    assert main([*map(str, command)]) == 0
    assert not stage.exists()
    assert read_set(out, "local") == {"train": naive_cache(["words " * 100_000])}


def test_several_at_once_do_the_work_once(tmp_path, start, naive_cache, read_set):
    """Processes that prepare the same set wait for the first one and use its result; a dead one is replaced."""
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("words")
    program = (
        "import sys; from data_prep import sources as s\n"
        "from data_prep.__main__ import main\n"
        "read = s.read_text\n"
        "def pause(path):\n"
        "    print('reads', flush=True); sys.stdin.readline(); yield from read(path)\n"
        "s.read_text = pause; sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["-c", program, "--train", text, "--out", out]
    first = start(*command, stdin=-1)
    assert first.stdout.readline() == "reads\n"
    others = [start(*command, stdin=-1) for _ in range(3)]
    for other in others:
        assert other.stderr.readline() == "Another process is preparing local; waiting for it.\n"
    first.kill()
    first.communicate()
    # One of them takes over; the others wait for it.
    ready, _, _ = select.select([other.stdout for other in others], [], [], 30)
    (successor,) = [other for other in others if other.stdout in ready]
    assert successor.stdout.readline() == "reads\n"
    successor.stdin.write("\n")
    for other in [successor, *[other for other in others if other is not successor]]:
        output, _ = other.communicate(timeout=30)
        assert other.returncode == 0
        assert output.startswith(f"local: prepared in {out}\n" if other is successor else "local: already prepared\n")
    assert names(out) == ["local_manifest.json", "local_train.npy"]
    assert read_set(out, "local") == {"train": naive_cache(["words"])}


def test_ctrl_c(tmp_path, start):
    text = tmp_path / "text.txt"
    text.write_text("words")
    program = (
        "import sys, time; from data_prep import sources as s\n"
        "from data_prep.__main__ import main\n"
        "def wait(path):\n"
        "    print('paused', flush=True); time.sleep(60); yield\n"
        "s.read_text = wait; sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", program, "--train", text, "--out", tmp_path / "out")
    assert process.stdout.readline() == "paused\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "Interrupted; no cache was made.\n"
    assert not (tmp_path / "out").exists()


def fill_disk(monkeypatch, step: int) -> None:
    """Makes write or fsync number `step`, and all later ones, fail for lack of space."""
    left = iter(range(step))

    def failing(call):
        def counted(*args: object) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            call(*args)

        return counted

    monkeypatch.setattr(cache, "_write_all", failing(cache._write_all))
    monkeypatch.setattr(os, "fsync", failing(os.fsync))


# Headers, 5 documents, (header, fsync) of 3 files, fsync of the manifest and its folder: 16 steps.
@pytest.mark.parametrize("step", range(16))
def test_a_full_disk_leaves_the_old_caches(tmp_path, monkeypatch, step):
    old, _ = prepare(make_source({"train": ["old"]}), tmp_path, "name")
    with monkeypatch.context() as patch:
        fill_disk(patch, step)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            prepare(make_source(version=2), tmp_path, "name", force=True)
    assert names(tmp_path) == ["name_manifest.json", "name_train.npy"]
    assert check(tmp_path, "name") == old


@pytest.mark.parametrize("step", range(16, 20))
def test_a_disk_that_fails_once_all_is_written_is_taken_up_again(tmp_path, monkeypatch, step):
    prepare(make_source({"train": ["old"]}), tmp_path, "name")
    with monkeypatch.context() as patch:
        fill_disk(patch, step)
        with pytest.raises(InputError, match="cannot be written"):
            prepare(make_source(version=2), tmp_path, "name", force=True)
    assert prepare(make_source(version=2), tmp_path, "name")[1] == "already prepared"
    assert names(tmp_path) == WHOLE
    check(tmp_path, "name")


def test_a_file_size_limit_of_the_system(tmp_path, start):
    (tmp_path / "text.txt").write_bytes(b"w" * 3_000_000)
    program = (
        "import resource, sys; from data_prep.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = start("-c", program, "--train", tmp_path / "text.txt", "--out", tmp_path / "out")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "local_train.npy cannot be written (File too large); it must be" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../name_train.npy"}, {"file": "name_valid.npy"}, {"file": 7}, {"bytes": -1}, {"bytes": 2**70},
        {"documents": "2"}, {"documents_with_nul": None}, {"null_documents": 0.5}, {"tokens_sha256": []},
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_a_manifest_that_are_not_its_caches(tmp_path, change):
    manifest, _ = prepare(make_source(), tmp_path, "name")
    manifest["splits"]["train"].update(change)
    (tmp_path / "name_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"name_manifest\.json is unreadable"):
        check(tmp_path, "name")


def test_a_manifest_of_anything(tmp_path):
    manifest, _ = prepare(make_source(), tmp_path, "name")
    splits = [json.dumps({**manifest, "splits": value}) for value in ([], {"x": {}}, {"train": []})]
    for content in ("[" * 100_000, "null", "[]", *splits):
        (tmp_path / "name_manifest.json").write_text(content)
        with pytest.raises(InputError, match=r"name_manifest\.json is unreadable"):
            check(tmp_path, "name")
