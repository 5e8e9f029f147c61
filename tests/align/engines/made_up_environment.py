"""An engine's environment as an installation leaves it, without an engine in it."""

from pathlib import Path
from typing import Any

from qwen_align.align.engines import locks
from qwen_align.align.engines.catalogue import Device, EngineName
from qwen_align.align.engines.environments import RECORD, EngineRecord
from qwen_align.align.store.files import write_json

PLATFORM = "linux_x86_64"


def make_environment(
    root: Path, name: EngineName = "vllm", device: Device = "cpu", changes: dict[str, Any] | None = None
) -> Path:
    """Makes an environment, as far as anything looks at it, and returns its Python: an empty file."""
    lock = locks.read_lock(name, device, PLATFORM, "3.11")
    python = root / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    record = EngineRecord(
        name=name,
        device=device,
        platform=PLATFORM,
        python="3.11.7",
        versions={package.name: package.version for package in lock.packages},
        lock=lock.path.name,
        lock_sha256=lock.sha256,
        installed_at="2026-11-30T12:00:00+00:00",
        qwen_align="0.1.0",
    )
    write_json(root / name / RECORD, {**record._asdict(), **(changes or {})})
    return python
