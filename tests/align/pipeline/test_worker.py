"""What the process of a stage reports of its end."""

import json
import shutil
from pathlib import Path

import pytest

from qwen_align.align.pipeline import worker


@pytest.mark.parametrize(("free_bytes", "says_so"), [(3 << 20, True), (1 << 30, False)])
def test_a_full_disk_is_named_whatever_the_library_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, says_so: bool
) -> None:
    def fail(folder: Path, **_: float) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 862080 vs 861968")

    monkeypatch.setattr(worker, "_run_stage_in_folder", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free_bytes))
    report = tmp_path / "report.json"
    assert worker.run_stage(tmp_path, report, started=0.0) == 4
    message = json.loads(report.read_text())["message"]
    assert ("no room is left on its disk (3 MiB free" in message) == says_so
    assert message.endswith("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 862080 vs 861968")
