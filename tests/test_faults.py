"""The list of planted faults keeps up with the code: every change can still be made, and what should see it exists."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FAULTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "evidence" / "faults.yaml").read_text(encoding="utf-8"))


def test_there_are_at_least_forty_and_no_two_alike() -> None:
    assert len(FAULTS) >= 40
    twice = [name for name, times in Counter(one["name"] for one in FAULTS).items() if times > 1]
    assert not twice


@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one["name"])
def test_a_fault_can_be_planted_and_something_should_see_it(fault: dict[str, Any]) -> None:
    if "file" in fault:
        assert (ROOT / fault["file"]).read_text(encoding="utf-8").count(fault["old"]) == 1
        assert fault["old"] != fault["new"]
    tests = fault.get("caught_by", [])
    tests = [tests] if isinstance(tests, str) else tests
    assert bool(tests) != ("command" in fault), "either tests or an error"
    for test in tests:
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8") or not name
        assert "test_versions" not in path, "it fails at every change, so it says nothing of a fault"
    if "command" in fault:
        assert fault["message"]
        assert f"def {fault['input']}(" in (ROOT / "tests/evidence/broken_inputs.py").read_text(encoding="utf-8")
