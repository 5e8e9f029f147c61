"""Folders are complete with their manifest, held by one process, and never half-written; digests are cached."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_align.align.errors import StageError
from qwen_align.align.store import digest_cache
from qwen_align.align.store.files import compute_sha256, read_json, write_json, write_text
from qwen_align.align.store.stage_folder import StageFolder
from qwen_align.align.store.store import Store

HOLD = """
import sys
from pathlib import Path
from qwen_align.align.store.stage_folder import StageFolder
with StageFolder(Path(sys.argv[1])).hold_lease():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_digested_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    real = compute_sha256
    monkeypatch.setattr(digest_cache, "compute_sha256", counted)
    root = tmp_path / "store"
    root.mkdir()
    path = tmp_path / "big"
    path.write_text("one")

    def digest() -> str:
        kept = Store(root)
        found = kept.compute_file_digest(path)
        kept.save_file_digests()
        return found

    first = digest()
    assert digest() == first
    assert len(read) == 1, "the second store took it from the cache on disk"
    os.utime(path, (1, 1))
    assert digest() == first
    assert len(read) == 2
    assert len(read_json(root / "digests.json")) == 1, "the entry of the older time is gone"
    other = tmp_path / "other"
    other.write_text("two")
    os.utime(other, (1, 1))
    other.replace(path)  # same path, size and time; another file
    assert digest() != first
    (root / "digests.json").write_text("broken")
    assert Store(root).compute_file_digest(path) == real(path)


def test_a_file_overwritten_in_place_with_its_size_and_time_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old weights")
    before, inode = Store(tmp_path).compute_file_digest(path), path.stat().st_ino
    store = Store(tmp_path)
    store.compute_file_digest(path)
    store.save_file_digests()
    time.sleep(0.02)  # the clock of the file system goes on in steps of milliseconds
    kept = path.stat()
    with path.open("r+b") as file:
        file.write(b"new weights")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (kept.st_size, kept.st_mtime_ns, inode)
    assert Store(tmp_path).compute_file_digest(path) == compute_sha256(path) != before


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_is_complete_with_its_manifest_alone(tmp_path: Path) -> None:
    folder = Store(tmp_path).get_folder("sft", "0123456789abcdef0123")
    assert folder.path == tmp_path / "sft-0123456789abcdef"
    with folder.hold_lease():
        (folder.path / "model").mkdir()
        (folder.path / "model" / "weights").write_text("w")
        assert not folder.is_complete
        write_json(folder.path / "manifest.json", {"summary": {}})
        assert folder.is_complete
        folder.delete_contents()
    assert [entry.name for entry in folder.path.iterdir()] == ["lease"]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that works on the folder `tmp_path/stage`."""
    line = [sys.executable, "-c", HOLD, str(tmp_path / "stage")]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_gone(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "stage")
    said = f"process {holder.pid} is working on this stage; wait for it, or stop it"
    with pytest.raises(StageError, match=said), folder.hold_lease():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder.hold_lease():
        assert read_json(tmp_path / "stage" / "lease" / "2.json")["holder"]["pid"] == os.getpid()
