"""Tries on the home's file system what leases, results and checkpoints rely on, with other processes or nodes."""

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from qwen_align.align.doctor.finding import Finding
from qwen_align.align.doctor.peers import Peer, PeerLost, ask_all
from qwen_align.align.doctor.trials import Trials
from qwen_align.align.store.lease_record import VISIBILITY_S

TRIALS = ".doctor-"  # begins the name of the folder in the home, which is deleted at the end
_N_CREATED = 64  # files that all try to create
_MOST_TURNS = 5  # on a busy machine one process may be done before another begins
_REPLACING_S = 0.4
_TASK_S = 30.0  # for what a local disk does in milliseconds
_SEEN_S = 5.0  # above it a file that is seen late is said: nodes then wait as long at each stage
_SKEW_S = 5.0  # of two clocks, above which times in logs do not fit together; nothing else compares them
_SYNC_S = 2.0  # for a megabyte: a checkpoint of gigabytes then takes hours
_EXCLUSIVE, _SEEN, _CONFIRMED = 1, 1_000_000, 1_000_001  # numbers of files


@contextlib.contextmanager
def make_trial_folder(home: Path) -> Iterator[Path]:
    """Makes the folder of the trials in a home, for the time of the `with` block. Raises OSError."""
    folder = home.resolve() / f"{TRIALS}{secrets.token_hex(6)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_file_system(folder: Path, peers: Sequence[Peer], own: Trials | None = None) -> Iterator[Finding]:
    """Yields findings of the trials in a folder that this process and the peers see.

    `own`: this process's part, another than the usual one in tests.
    """
    own, where = own or Trials(folder), "nodes" if len(peers) > 1 or peers[0].name.startswith("node") else "processes"
    trials: tuple[Callable[[], Finding], ...] = (
        lambda: _check_sight(own, peers),
        lambda: _check_exclusive_creation(own, peers, where),
        lambda: _check_replacing(own, peers),
        lambda: _check_syncing(own, peers),
        lambda: _check_clocks(own, peers),
    )
    try:
        for trial in trials:
            finding = trial()
            yield finding
            if finding.is_bad and finding.what == "visibility":
                return  # all others would fail after it, for the same reason
    except PeerLost as error:
        yield Finding("home", f"the trial of its file system did not end: {error}", "run doctor again", is_bad=True)
    except OSError as error:
        found = f"{error.filename or folder}: {error.strerror or error}"
        yield Finding("home", found, "take a home on another file system, with --home", is_bad=True)


def _check_exclusive_creation(own: Trials, peers: Sequence[Peer], where: str) -> Finding:
    """All create the same files: each has to be created by one alone. Again until each process was the first once."""
    for turn in range(_MOST_TURNS):
        first = _EXCLUSIVE + turn * _N_CREATED
        tasks = [{"do": "create_all", "name": one.name, "first": first, "count": _N_CREATED} for one in peers]
        made = ask_all(peers, tasks, partial(own.create_all, "this", first, _N_CREATED), _TASK_S)
        finding = _judge_creations(made, where)
        if finding.is_bad or all(made):
            break
    return finding


def _judge_creations(made: Sequence[Sequence[int]], where: str) -> Finding:
    """Judges which files each process says that it has created."""
    numbers = [number for each in made for number in each]
    twice, none = len(numbers) - len(set(numbers)), _N_CREATED - len(set(numbers))
    said = f"{_N_CREATED} files that {len(made)} {where} created at once"
    if twice or none:
        wrong = f"{said}: {twice} by more than one, {none} by none"
        advice = "two runs would write in one folder: take a home on a file system that creates exclusively (O_EXCL)"
        return Finding("exclusive", wrong, advice, is_bad=True)
    return Finding("exclusive", f"{said}: each by one alone ({', '.join(str(len(each)) for each in made)})")


def _check_replacing(own: Trials, peers: Sequence[Peer]) -> Finding:
    """One replaces a file by renaming others over it, and the rest read it: never torn, never missing."""
    own.replace(0.0)
    for peer in peers:
        peer.ask({"do": "read_while_replaced", "seconds": 0.01}, _TASK_S)
    tasks = [{"do": "read_while_replaced", "seconds": _REPLACING_S}] * len(peers)
    count, *read = ask_all(peers, tasks, lambda: own.replace(_REPLACING_S), _TASK_S)
    torn, missing, stale, whole = (sum(each[name] for each in read) for name in ("torn", "missing", "stale", "whole"))
    said = f"a file that was replaced {count:,} times was read whole {whole:,} times"
    if torn or missing:
        advice = "take a home on a file system that renames atomically"
        return Finding("rename", f"{said}, torn {torn:,}, missing {missing:,}", advice, is_bad=True)
    advice = "a report that is read while it is written may have to be read again" if stale else ""
    return Finding("rename", said + (f", refused as stale {stale:,}" if stale else ""), advice)


def _check_sight(own: Trials, peers: Sequence[Peer]) -> Finding:
    """A file is made, written in place and deleted; the others say when they see it. They have looked for it before."""
    slowest = 0.0
    changes = (("made", "first"), ("written in place", "other"), ("deleted", None))
    for peer in peers:
        peer.ask({"do": "look", "number": _SEEN}, _TASK_S)
    for what, text in changes:
        if text is None:
            own.delete(_SEEN)
        else:
            own.overwrite(_SEEN, text)
        tasks = [{"do": "wait_for", "number": _SEEN, "text": text, "limit_s": VISIBILITY_S}] * len(peers)
        seen = ask_all(peers, tasks, lambda: 0.0, VISIBILITY_S + _TASK_S)
        for peer, seconds in zip(peers, seen[1:], strict=True):
            if seconds is None:
                found = f"{peer.name} does not see within {VISIBILITY_S:.0f} s that a file of this one was {what}"
                advice = (
                    "leases rely on it: is --home the same shared folder everywhere? NFS: mount with actimeo=60 or less"
                )
                return Finding("visibility", found, advice, is_bad=True)
            slowest = max(slowest, seconds)
    own.overwrite(_CONFIRMED, "mine")
    peers[0].ask({"do": "delete", "number": _CONFIRMED}, _TASK_S)
    if own.confirm(_CONFIRMED, "mine"):
        found = f"a file that {peers[0].name} has deleted is said to be there"
        return Finding("visibility", found, "take a home on another file system", is_bad=True)
    found = f"what one makes, writes in place and deletes the others see within {slowest:.2f} s"
    advice = (
        f"each stage waits so long for files; up to {VISIBILITY_S:.0f} s are allowed for" if slowest > _SEEN_S else ""
    )
    return Finding("visibility", found, advice)


def _check_syncing(own: Trials, peers: Sequence[Peer]) -> Finding:
    """All bring a megabyte to disk at once."""
    seconds = max(ask_all(peers, [{"do": "sync"}] * len(peers), own.sync, _TASK_S))
    advice = "checkpoints are brought to disk: this home will make them slow" if seconds > _SYNC_S else ""
    return Finding("fsync", f"a megabyte is on disk after {seconds:.2f} s", advice)


def _check_clocks(own: Trials, peers: Sequence[Peer]) -> Finding:
    """Compares this machine's clock with the file server's, by a file's time, and with the peers'."""
    path = own.folder / "clock"
    path.write_bytes(b"now")
    written, differences = time.time(), {}
    differences["the file server"] = path.stat().st_mtime - written
    for peer in peers:
        before = time.time()
        there = peer.ask({"do": "say_time"}, _TASK_S)
        differences[peer.name] = there - (before + time.time()) / 2
    name, worst = max(differences.items(), key=lambda item: abs(item[1]))
    found = f"{name} is {abs(worst):.2f} s {'ahead' if worst > 0 else 'behind'}"
    return Finding("clocks", found, "times in logs will not fit together: set up NTP" if abs(worst) > _SKEW_S else "")
