"""The doctor says what is there, what is wrong, and what to do about it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import doctor
from qwen_align.align.doctor import machine
from qwen_align.align.doctor.devices import Probed
from qwen_align.align.doctor.finding import Finding
from qwen_align.reward.code.isolation_report import Isolation, Layer

LAYERS = (Layer("pid namespace", True, "given"), Layer("system call filter", True, "given"))
FULL = Isolation(True, True, LAYERS, "")
NO_TORCH = Finding("torch", "ImportError: libcudart.so: not found", "reinstall torch", is_bad=True)


class Probe:
    """The answer of a torch without GPUs, without the seconds that importing it takes."""

    answer: tuple[Probed | None, list[Finding]] = (Probed([], []), [Finding("devices", "no GPU, 2 CPU threads")])

    def collect(self) -> tuple[Probed | None, list[Finding]]:
        return self.answer


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DeviceProbe", Probe)
    monkeypatch.setattr(machine, "check_isolation", lambda: FULL)


def examine(home: Path) -> list[Finding]:
    return list(doctor.examine_machine(home, doctor.Scope()))


def found(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_all_of_a_machine_is_looked_at(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    assert not [finding for finding in findings if finding.is_bad]
    whats = [finding.what for finding in findings]
    assert whats[:2] == ["python", "system"]
    assert whats[-9:] == ["sandbox", "home", "visibility", "exclusive", "rename", "fsync", "clocks", "devices", "fits"]
    assert found(findings, "home").found.startswith(f"{tmp_path}, ")
    assert not list(tmp_path.iterdir())


def test_a_home_that_is_not_there_is_wrong_and_is_not_tried(tmp_path: Path) -> None:
    findings = examine(tmp_path / "none")
    assert found(findings, "home").is_bad
    assert "name another with --home" in found(findings, "home").advice
    assert "exclusive" not in {finding.what for finding in findings}


def test_little_room_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOW_DISK_GIB", 1e9)
    finding = found(examine(tmp_path), "home")
    assert not finding.is_bad
    assert finding.format_line().startswith("note  home")


def test_the_command_fails_when_something_is_wrong(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("doctor").code == 0
    assert cli("doctor", home=tmp_path / "none").code == 4
    monkeypatch.setattr(Probe, "answer", (None, [NO_TORCH]))
    said = cli("doctor")
    assert said.code == 4
    assert "wrong torch" in said.out
    assert "fits" not in said.out


def test_json_holds_the_same(tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_fit", lambda probed: iter(()))
    lines = cli("doctor").out.splitlines()
    said = json.loads(cli("doctor", "--json").out)
    assert said["is_well"] is True
    assert [one["what"] for one in said["findings"]] == [line[6:20].strip() for line in lines]
    monkeypatch.setattr(Probe, "answer", (None, [NO_TORCH]))
    wrong = cli("doctor", "--json")
    assert wrong.code == 4
    assert json.loads(wrong.out)["is_well"] is False
    assert json.loads(wrong.out)["findings"][-1] == {
        "what": "torch",
        "state": "wrong",
        "found": NO_TORCH.found,
        "advice": "reinstall torch",
    }


def test_sums_are_exchanged_unless_they_are_not_asked_for(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(probed: Probed) -> Iterator[Finding]:
        yield Finding("gloo", "no end", "open the port", is_bad=True)

    monkeypatch.setattr(doctor, "check_exchange_here", exchange)
    assert cli("doctor").code == 4
    assert cli("doctor", "--no-network").code == 0
    refused = cli("doctor", "--no-network", "--node-rank", "0", "--rendezvous", "gpu01:29400")
    assert refused.code == 2
    assert "leave out one of the two" in refused.err


def test_the_isolation_of_code_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(examine(tmp_path), "sandbox").found == "full: pid namespace, system call filter"
    layers = (LAYERS[0], Layer("user namespace", False, "Operation not permitted"))
    monkeypatch.setattr(machine, "check_isolation", lambda: Isolation(False, True, layers, "set sysctl x=1"))
    finding = found(examine(tmp_path), "sandbox")
    assert finding.found == "process only (a session and resource limits); no user namespace: Operation not permitted"
    assert finding.advice == "code_tests: set sysctl x=1"
    assert not finding.is_bad
