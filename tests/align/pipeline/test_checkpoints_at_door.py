"""A checkpoint that a run cannot go on from is refused before processes are started, with what to do."""

from pathlib import Path

import pytest

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan, check_can_start, plan
from qwen_align.align.store import integrity
from tests.end_to_end.ladder import SFT, TRACES, write_recipe


def plan_with_checkpoint(folder: Path, strategy: str, n_processes: int, **runtime: object) -> Plan:
    """A plan of an SFT stage that has a checkpoint of so many processes under a strategy."""
    planned = plan(write_recipe(folder, TRACES, {**SFT, "batch": 6}, **runtime), folder / "home")
    checkpoint = planned.find_stages("sft")[0].folder.path / "checkpoints" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step5")
    digests = integrity.digest_files(checkpoint, ["latest"])
    integrity.seal_folder(checkpoint, digests, step=5, world_size=n_processes, strategy=strategy)
    return planned


@pytest.mark.parametrize(
    ("strategy", "n_processes", "message"),
    [
        (
            "zero2",
            2,
            r"stage 'sft': .*checkpoint-5: saved by 2 process\(es\) with runtime.strategy: zero2, but this run",
        ),
        (
            "fsdp2",
            3,
            r"stage 'sft': .*but this run has 3 process\(es\) with runtime.strategy: ddp: one strategy cannot",
        ),
    ],
)
def test_one_of_another_strategy_is_refused(tmp_path: Path, strategy: str, n_processes: int, message: str) -> None:
    planned = plan_with_checkpoint(tmp_path, strategy, n_processes, processes=3)
    with pytest.raises(RecipeError, match=f"{message}.*recompute the stage with --force sft$"):
        check_can_start(planned)
    check_can_start(planned, planned.find_stages("sft"))  # --force clears it away


def test_ddps_is_gone_on_from_in_any_number_of_processes(tmp_path: Path) -> None:
    check_can_start(plan_with_checkpoint(tmp_path, "ddp", 2, processes=3))
