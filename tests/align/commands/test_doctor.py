"""The doctor says what is there, what is wrong, and what to do about it."""

import importlib.metadata
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import doctor
from qwen_align.align.commands.doctor import Finding
from qwen_align.align.store.provenance import LIBRARIES
from qwen_align.reward.code.isolation_report import Isolation, Layer

PROBED = subprocess.CompletedProcess([], 0, stdout='{"torch": "2.13.0", "gpus": [], "threads": 2}', stderr="")
BROKEN = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nImportError: libcudart.so: not found\n")


LAYERS = (Layer("pid namespace", True, "given"), Layer("system call filter", True, "given"))
FULL = Isolation(True, True, LAYERS, "")


@pytest.fixture(autouse=True)
def _probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's answer without the seconds that importing torch takes; one test below asks for real."""
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: PROBED)
    monkeypatch.setattr(doctor, "check_isolation", lambda: FULL)


def found(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_what_is_installed_is_listed_and_well(tmp_path: Path) -> None:
    findings = doctor.examine_machine(tmp_path)
    assert not [finding for finding in findings if finding.is_bad]
    assert set(LIBRARIES) <= {finding.what for finding in findings}
    assert found(findings, "trl").found == importlib.metadata.version("trl")
    assert found(findings, "devices").found == "no GPU, 2 CPU threads"
    assert found(findings, "home").found.startswith(f"{tmp_path}, ")


def test_a_version_that_was_not_tested_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.NEEDED, "trl", "1.1")  # not a prefix of 1.16
    finding = found(doctor.examine_machine(tmp_path), "trl")
    assert finding.is_bad
    assert finding.format_line().startswith("wrong trl")
    assert finding.format_line().endswith("-> 1.1.* is what this was tested with")


def test_a_torch_that_cannot_be_imported_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: BROKEN)
    bad = [finding for finding in doctor.examine_machine(tmp_path) if finding.is_bad]
    assert bad == [Finding("torch", "ImportError: libcudart.so: not found", "reinstall torch", is_bad=True)]


def test_a_home_that_is_not_there_is_wrong(tmp_path: Path) -> None:
    finding = found(doctor.examine_machine(tmp_path / "none"), "home")
    assert finding.is_bad
    assert "name another with --home" in finding.advice


def test_little_room_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GIB", 1e9)
    finding = found(doctor.examine_machine(tmp_path), "home")
    assert not finding.is_bad
    assert finding.format_line().startswith("note  home")


def test_the_command_fails_when_something_is_wrong(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("doctor").code == 0
    assert cli("doctor", home=tmp_path / "none").code == 4
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: BROKEN)
    said = cli("doctor")
    assert said.code == 4
    assert "wrong torch" in said.out


@pytest.mark.slow
def test_torch_is_asked_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (finding,) = doctor._check_devices()
    assert finding.what == "devices"
    assert not finding.is_bad


def test_the_isolation_of_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(doctor.examine_machine(tmp_path), "sandbox").found == "full: pid namespace, system call filter"
    layers = (LAYERS[0], Layer("user namespace", False, "Operation not permitted"))
    monkeypatch.setattr(doctor, "check_isolation", lambda: Isolation(False, True, layers, "set sysctl x=1"))
    finding = found(doctor.examine_machine(tmp_path), "sandbox")
    assert finding.found == "process only (a session and resource limits); no user namespace: Operation not permitted"
    assert finding.advice == "code_tests: set sysctl x=1"
    assert not finding.is_bad
