"""There is one table of tested versions, it agrees with pyproject.toml and constraints.txt, and others are told."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from qwen_align.align.doctor import libraries
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.store.provenance import LIBRARIES
from qwen_align.align.tested_versions import TESTED_VERSIONS

ROOT = Path(__file__).parents[3]


def find(name: str) -> Finding:
    return next(finding for finding in libraries.check_libraries() if finding.what == name)


@pytest.mark.parametrize("name", TESTED_VERSIONS)
def test_the_table_says_what_pyproject_and_the_constraints_say(name: str) -> None:
    tested = TESTED_VERSIONS[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["optional-dependencies"][tested.extra] if tested.extra else project["dependencies"]
    assert tested.requirement in listed
    requirement = Requirement(tested.requirement)
    assert requirement.name == name
    assert requirement.specifier.contains(tested.version)
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {str(pin.specifier) for pin in pins if pin.name == name}
    assert pinned <= {f"=={tested.version}"}


def test_what_is_pinned_and_matters_to_results_is_in_the_table() -> None:
    pins = {Requirement(line).name for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert pins - {"datasets"} <= set(TESTED_VERSIONS)


def test_what_is_installed_is_listed_and_well() -> None:
    findings = list(libraries.check_libraries())
    assert not [finding for finding in findings if finding.is_bad]
    assert set(LIBRARIES) | set(TESTED_VERSIONS) == {finding.what for finding in findings}
    assert find("trl").found == importlib.metadata.version("trl")


@pytest.mark.parametrize(
    ("name", "version", "state", "said"),
    [
        ("trl", "1.17.0", "wrong", "==1.16.* is asked for: pip install -c constraints.txt 'trl==1.16.*'"),
        ("torch", "2.13.0+cu130", "ok", ""),
        ("torch", "2.14.1", "note", "2.13.0 is what this was tested with"),
        ("torch", "2.8.0", "wrong", "is asked for"),
        ("peft", None, "wrong", "pip install 'peft>=0.21,<0.22'"),
        ("deepspeed", None, "ok", ""),
        ("deepspeed", "0.18.2", "wrong", "pip install -c constraints.txt 'qwen-align[deepspeed]'"),
        ("datasets", None, "wrong", "pip install"),
    ],
)
def test_other_versions_are_told(
    name: str, version: str | None, state: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "_read_version", lambda one: version if one == name else "0")
    finding = find(name)
    assert finding.state == state
    assert said in finding.advice
    assert bool(finding.advice) == bool(said)


def test_a_finding_is_read_as_it_was_written() -> None:
    finding = Finding("home", "full", "make room", is_bad=True)
    assert Finding.from_record(finding.to_record()) == finding
    assert finding.format_line() == "wrong home          full  -> make room"
