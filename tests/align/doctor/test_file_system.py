"""What leases and results rely on is tried with a second process; a file system that does not have it is found out.

The faults are pretended by this process's part of the trials, as a file system would show them.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_align.align.doctor import file_system, peers
from qwen_align.align.doctor.file_system import check_file_system, make_trial_folder
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.doctor.peers import Peer, PeerLost, start_peer_beside
from qwen_align.align.doctor.trials import BLOCK, Trials
from qwen_align.align.store.lease_files import LeaseFiles

TRIED = ["visibility", "exclusive", "rename", "fsync", "clocks"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with make_trial_folder(tmp_path) as made:
        yield made
    assert not list(tmp_path.iterdir())


@pytest.fixture
def peer(folder: Path) -> Iterator[Peer]:
    with start_peer_beside(folder) as started:
        yield started


def find(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_a_local_disk_is_well(folder: Path, peer: Peer) -> None:
    findings = list(check_file_system(folder, [peer]))
    assert [(finding.what, finding.state) for finding in findings] == [(what, "ok") for what in TRIED]
    assert find(findings, "exclusive").found.startswith("64 files that 2 processes created at once: each by one alone")
    assert "was read whole" in find(findings, "rename").found


def test_a_file_that_two_have_created_is_found_out(folder: Path, peer: Peer) -> None:
    class Own(Trials):
        def create_all(self, name: str, first: int, count: int) -> list[int]:
            self.wait_for(first + count - 1, "a second process", 30.0)  # the other has created all
            return list(range(first, first + count))

    finding = find(list(check_file_system(folder, [peer], Own(folder))), "exclusive")
    assert finding.is_bad
    assert "by more than one, 0 by none" in finding.found
    assert "two runs would write in one folder" in finding.advice


def test_a_file_that_nobody_has_created_is_found_out(folder: Path, peer: Peer) -> None:
    class Own(Trials):
        def create_all(self, name: str, first: int, count: int) -> list[int]:
            for number in range(first, first + count):
                self.overwrite(number, "somebody else")
            return []

    finding = find(list(check_file_system(folder, [peer], Own(folder))), "exclusive")
    assert finding.is_bad
    assert "0 by more than one" in finding.found


def test_a_file_that_is_seen_half_replaced_is_found_out(folder: Path, peer: Peer) -> None:
    class Own(Trials):
        def replace(self, seconds: float) -> int:
            (self.folder / "replaced").write_bytes(b"a" * (BLOCK - 1) + b"b")
            return super().replace(0.0) if not seconds else 1

    finding = find(list(check_file_system(folder, [peer], Own(folder))), "rename")
    assert finding.is_bad
    assert "torn" in finding.found


def test_a_file_that_is_gone_while_it_is_replaced_is_found_out(folder: Path, peer: Peer) -> None:
    class Own(Trials):
        def replace(self, seconds: float) -> int:
            count = super().replace(0.0)
            if seconds:
                (self.folder / "replaced").unlink()  # as of a file system that renames by deleting first
            return count

    finding = find(list(check_file_system(folder, [peer], Own(folder))), "rename")
    assert finding.is_bad
    assert "torn 0, missing" in finding.found


def test_nodes_that_see_different_folders_are_found_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_system, "VISIBILITY_S", 0.1)
    with make_trial_folder(tmp_path) as other, start_peer_beside(other) as peer:
        (finding,) = check_file_system(folder, [peer])
    assert finding.is_bad
    assert finding.found == "a second process does not see within 0 s that a file of this one was made"
    assert "is --home the same shared folder everywhere?" in finding.advice


def test_a_deleted_file_that_is_said_to_be_there_is_found_out(folder: Path, peer: Peer) -> None:
    class Own(Trials):
        def confirm(self, number: int, text: str) -> bool:
            return True

    finding = find(list(check_file_system(folder, [peer], Own(folder))), "visibility")
    assert finding.is_bad


def test_a_disk_that_does_not_sync_is_found_out(folder: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(22, "Invalid argument", "file")

    monkeypatch.setattr(os, "fsync", refuse)
    findings = list(check_file_system(folder, [peer]))
    assert findings[-1].is_bad
    assert findings[-1].found == "file: Invalid argument"


def test_clocks_that_differ_are_noted(folder: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system.time, "time", lambda: 1000.0)
    finding = find(list(check_file_system(folder, [peer])), "clocks")
    assert finding.state == "note"
    assert "ahead" in finding.found


def test_a_process_that_dies_in_a_trial_ends_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def keep(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        started.append(start(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(peers.subprocess, "Popen", keep)
    with start_peer_beside(folder) as peer:
        assert peer.ask({"do": "say_time"}, 30) > 0
        started[0].kill()
        (finding,) = check_file_system(folder, [peer])
    assert finding.is_bad
    assert finding.found == "the trial of its file system did not end: a second process has gone"


def test_a_peer_says_what_it_could_not_do_and_is_not_waited_for_without_end(folder: Path, peer: Peer) -> None:
    LeaseFiles(folder).create(1, b"x")
    with pytest.raises(PeerLost, match="gives no answer within 0 s"):
        peer.ask({"do": "wait_for", "number": 1, "text": "y", "limit_s": 0.3}, 0.01)
    assert peer.receive(10) is None
    folder.joinpath("replaced").mkdir()
    with pytest.raises(PeerLost, match="Is a directory"):
        peer.ask({"do": "replace", "seconds": 0.0}, 10)
