"""Every stage that trains, stopped, damaged and started again: it says so, and ends with the uninterrupted bytes."""

import hashlib
import importlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted
from qwen_align.align.rows import Message, Pair, Row, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store import integrity
from qwen_align.align.training import checkpoints
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

pytestmark = pytest.mark.slow(seconds=5)

TUNED = {"from_model": "base", "max_tokens": 200, "batch": 2, "epochs": 0.5, "learning_rate": 1e-3}
ONLINE = {
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 4,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 12},
    "learning_rate": 1e-3,
}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**TUNED, "from_data": ["traces"]},
    "dpo": {**TUNED, "from_data": ["pairs"], "beta": 0.1},
    "reward_model": {**TUNED, "from_data": ["pairs"]},
    "grpo": {**ONLINE, "kl": {"coefficient": 0.05, "reference_sync_steps": 1}},
    "ppo": {**ONLINE, "steps": 2, "updates": {"epochs": 2}, "critic": {"learning_rate": 1e-2}},
    "pretrain": {
        "from_data": "texts",
        "architecture": {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 16},
        "tokenizer": {"vocab_size": 330, "texts": 50},
        "batch": 4,
        "sequence_length": 32,
        "steps": 4,
        "warmup_steps": 2,
    },
}
STOPPED_AFTER = 3  # of four steps


def pair(row: Any) -> Pair:
    wrong = box_answer(str(int(row.gold) + 1))
    sides = [Message(role="assistant", content=said, thinking=row.thinking) for said in (row.answer, wrong)]
    return Pair(id=row.id, messages=row.messages, chosen=sides[0], rejected=sides[1], mode="think")


@pytest.fixture(scope="module")
def inputs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders that stages read, by reference."""
    home = tmp_path_factory.mktemp("inputs")
    traces = list(Arithmetic(rows="trace", n=16, steps=[1]).generate(0))
    rows: dict[str, list[Row]] = {
        "traces": traces,
        "pairs": [pair(row) for row in traces],
        "problems": list(Arithmetic(rows="problem", n=10, steps=[2]).generate(0)),
        "texts": list(Arithmetic(rows="text", n=50, steps=[1, 2]).generate(0)),
    }
    for name, those in rows.items():
        (home / name).mkdir()
        (home / name / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in those))
    return {"base": tiny_model, **{name: home / name for name in rows}}


def run(kind: str, inputs: dict[str, Path], out: Path, *, stop_after: int | None = None) -> None:
    """Runs the stage in this process; with `stop_after` it is asked to stop after so many steps."""
    settings = {"name": kind, "kind": kind, **STAGES[kind]}
    if kind != "pretrain":
        settings["schedule"] = "constant"
    spec: Any = TypeAdapter[Any](AnyStage).validate_python(settings)
    out.mkdir(parents=True, exist_ok=True)
    context = Context(out, 0, Runtime(device="cpu", micro_batch=4, generation_batch=64, checkpoint_every=100))
    if stop_after is not None:
        looks = itertools.count(1)

        def stopping() -> bool:
            context._is_asked_to_stop = next(looks) >= stop_after
            return context._is_asked_to_stop

        context.is_stop_requested = stopping  # type: ignore[method-assign]
    stage = importlib.import_module(f"qwen_align.align.stages.{kind}")
    stage.run(spec, inputs, out, context)


def made(out: Path) -> dict[str, str]:
    """Digests of what the stage hands on."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "model").iterdir())}


def damaged_notes(out: Path) -> list[str]:
    notes = out / "notes.jsonl"
    said = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return [one["message"] for one in said if one["what"] == "damaged checkpoint"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "removed": lambda path: path.unlink(),
    "flipped": flip,
}


@pytest.mark.parametrize("kind", STAGES)
def test_damaged_and_started_again_equals_uninterrupted(kind: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    run(kind, inputs, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "checkpoints", ignore_errors=True)
    with pytest.raises(Preempted):
        run(kind, inputs, tmp_path / "stopped", stop_after=STOPPED_AFTER)
    (saved,) = (tmp_path / "stopped" / "checkpoints").glob("checkpoint-*")
    assert saved.name == f"checkpoint-{STOPPED_AFTER}"
    files = [str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()]
    for name in files:
        for damage in DAMAGES.values():
            shutil.copytree(saved, tmp_path / "copy" / saved.name)
            damage(tmp_path / "copy" / saved.name / name)
            found = checkpoints.find_newest_checkpoint(tmp_path / "copy")
            assert found.folder is None
            assert name in found.damaged[0] or integrity.COMPLETE in found.damaged[0]
            shutil.rmtree(tmp_path / "copy")
    # Whole, it goes on from the checkpoint; with its largest file damaged, from the beginning. Both end alike.
    shutil.copytree(tmp_path / "stopped", tmp_path / "damaged")
    largest = max(files, key=lambda name: (saved / name).stat().st_size)
    flip(tmp_path / "damaged" / "checkpoints" / saved.name / largest)
    for name, said in (("stopped", []), ("damaged", [f"{largest} is not what was written"])):
        run(kind, inputs, tmp_path / name)
        assert made(tmp_path / name) == made(tmp_path / "whole")
        notes = damaged_notes(tmp_path / name)
        assert len(notes) == len(said)
        assert all(one in note and "starting from the beginning" in note for one, note in zip(said, notes, strict=True))
