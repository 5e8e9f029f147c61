"""Writes checkpoints atomically and finds the newest undamaged checkpoint.

Every process writes files of its own into a partial folder and digests them, all side by side; the main process, which
need not see the others' files in its own listing yet, seals the folder with all digests and renames it into place. A
checkpoint is verified the same way, each process a share of it, before anything of it is loaded: DeepSpeed and torch's
distributed checkpoints read pickles, which can run code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainerState, TrainingArguments, set_seed

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.settings.runtime import Strategy
from qwen_align.align.store import integrity
from qwen_align.align.store.files import remove_tree
from qwen_align.align.store.integrity import Digest
from qwen_align.align.training.checkpoint_files import SHARD_FOLDERS, find_writer, list_needed_files, require_files
from qwen_align.align.training.distributed import (
    broadcast_from_main,
    gather_objects,
    get_rank,
    get_world_size,
    is_main_process,
    read_shard_names,
    wait_for_all,
    wait_until_visible,
)
from qwen_align.align.training.gathered_weights import gather_state
from qwen_align.align.training.optimizer_states import fill_missing_states
from qwen_align.align.training.resume_rules import (
    SavedBy,
    find_obstacle,
    list_checkpoints,
    parse_checkpoint_step,
    read_saved_by,
)
from qwen_align.align.training.strategies import read_strategy


class ResumePoint(NamedTuple):
    """The checkpoint folder to resume from, by what it was saved, and the faults of newer, damaged checkpoints.

    The folder is None at the beginning.
    """

    folder: Path | None
    damaged: list[str]
    saved_by: SavedBy | None = None

    @property
    def step(self) -> int:
        """Returns the training step of the checkpoint to resume from.

        It is 0 at the beginning.
        """
        return (parse_checkpoint_step(self.folder) or 0) if self.folder else 0

    def log_damaged_checkpoints(self, context: Context) -> None:
        """Logs a note for each damaged checkpoint.

        Call it after `context.truncate_logs`, which would drop them.
        """
        resumed_from = f"going on from {self.folder.name}" if self.folder else "starting from the beginning"
        for problem in self.damaged:
            context.log_note(self.step, "damaged checkpoint", f"{problem}; {resumed_from}")


class AtomicCheckpoints:
    """A mixin for a transformers Trainer that renames a checkpoint into place once it is complete.

    It comes before Trainer among the base classes.
    """

    args: TrainingArguments
    state: TrainerState
    model: Any
    accelerator: Any
    lr_scheduler: Any
    optimizer: Any
    last_saved_step = 0
    weight_files = "*model*.safetensors"  # of a whole model, or of adapters, in a checkpoint
    extra_files: Sequence[str] = ()  # that a subclass's own state is saved in, always
    resumed_from: SavedBy | None = None
    _checkpoint_root: Path | None = None
    handed_on_dtype: torch.dtype | None = (
        None  # of a whole model that is saved for the next stage; checkpoints are fp32
    )

    def _get_output_dir(self, trial: Any) -> str:
        """Returns the folder that transformers writes to.

        While a checkpoint is saved, it is the partial checkpoint's.
        """
        return str(self._checkpoint_root or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint into a partial folder, checks its files and renames it into place."""
        home = Path(str(self.args.output_dir))
        folder = get_partial_folder(home, self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)  # in every process: another node may not see it for a while
        self._checkpoint_root = folder.parent
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._checkpoint_root = None
        if self.args.should_save:
            self._save_extra_state(folder)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing that training goes on from
        wait_for_all()
        digests = digest_own_files(folder)
        if self.args.should_save:
            require_files(str(folder), self._list_needed_files(folder), sorted(digests))
            publish_checkpoint(home, self.state.global_step, digests, self._strategy)
        wait_for_all()
        self.last_saved_step = self.state.global_step

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Saves the optimiser's and the schedule's state."""
        if self._strategy == "fsdp2":
            fill_missing_states(self.optimizer)
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    @property
    def _strategy(self) -> Strategy:
        return read_strategy(self.accelerator)

    def _list_needed_files(self, folder: Path) -> list[str]:
        """Returns the patterns of the files that a checkpoint of this trainer needs."""
        needed = list_needed_files(
            self._strategy,
            get_world_size(),
            weights=self.weight_files,
            others=self.extra_files,
            has_scheduler=type(self.lr_scheduler).__name__ != "DeepSpeedSchedulerWrapper",  # DeepSpeed then saves it
        )
        shards = [folder / name for name in SHARD_FOLDERS if (folder / name / ".metadata").exists()]
        return needed + [f"{one.name}/{name}" for one in shards for name in read_shard_names(one)]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the whole model into a checkpoint; in one of shards nothing, as those hold the weights already."""
        if self._strategy == "ddp":
            super().save_model(output_dir, _internal_call=_internal_call)  # type: ignore[misc]

    def save_trained_model(self, folder: Path) -> None:
        """Saves the trained model for the next stage, cast to `handed_on_dtype`; every process has to call it."""
        state = gather_state(self, self.model)
        self._save(str(folder), state_dict=state)  # type: ignore[attr-defined]  # of transformers' Trainer
        wait_for_all()

    def _save_extra_state(self, folder: Path) -> None:
        """Saves a subclass's own state into the checkpoint folder.

        Called in the main process.
        """

    def load_extra_state(self, folder: Path) -> None:
        """Loads a subclass's own state from the checkpoint folder that training goes on from.

        Called in every process, before training and by ourselves: transformers calls `_load_from_checkpoint` only
        where neither DeepSpeed nor FSDP loads the weights.
        """

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Sets the random numbers' state to that of the checkpoint.

        Saved by another number of processes, it is none of this one's: they are then seeded by step and rank.
        """
        if self.resumed_from is not None and self.resumed_from.n_processes != get_world_size():
            set_seed(self.args.seed + self.state.global_step * get_world_size() + get_rank())
        else:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes no model card, because the stage's manifest describes the model."""


def get_partial_folder(home: Path, step: int) -> Path:
    """Returns the folder that a checkpoint's files are written to before it is published."""
    return home / "partial" / f"checkpoint-{step}"


def remove_partial_checkpoint(home: Path) -> None:
    """Removes what a checkpoint that was never published has left."""
    remove_tree(home / "partial")


def digest_own_files(folder: Path) -> dict[str, Digest]:
    """Digests the files of a folder that this process has written, and returns the digests of all processes' files.

    Names and sizes are those that each process sees of its own files.
    """
    own = [name for name in integrity.list_files(folder) if find_writer(name, get_world_size()) == get_rank()]
    parts = gather_objects(integrity.digest_files(folder, own))
    return {name: digest for part in parts for name, digest in sorted(part.items())}


def publish_checkpoint(home: Path, step: int, digests: Mapping[str, Digest], strategy: Strategy) -> None:
    """Seals the partial checkpoint, renames it into place and deletes older checkpoints."""
    folder = get_partial_folder(home, step)
    integrity.seal_folder(folder, digests, step=step, world_size=get_world_size(), strategy=strategy)
    remove_tree(home / folder.name)
    folder.rename(home / folder.name)
    for old in list_checkpoints(home):
        if old.name != folder.name:
            remove_tree(old)


def find_newest_checkpoint(home: Path, strategy: Strategy = "ddp") -> ResumePoint:
    """Finds the newest undamaged checkpoint in the folder, which all processes verify together.

    Raises StageError when what saved it had another strategy, or a number of processes that this run cannot go on from.
    """
    if is_main_process():
        remove_partial_checkpoint(home)
    candidates, damaged = broadcast_from_main(_list_candidates(home) if is_main_process() else None)
    for folder, record in candidates:
        damage = _find_damage(folder, record)
        if damage is None:
            saved_by = read_saved_by(record)
            if obstacle := find_obstacle(saved_by, SavedBy(strategy, get_world_size())):
                raise StageError(f"{folder}: {obstacle}")
            for name in record["files"]:  # this process reads others than it has verified
                wait_until_visible(folder / name)
            return ResumePoint(folder, damaged, saved_by)
        damaged.append(f"{folder}: {damage}")
    return ResumePoint(None, damaged)


def _list_candidates(home: Path) -> tuple[list[tuple[Path, dict[str, Any]]], list[str]]:
    """Returns the checkpoints whose seal is whole, with it and from the newest on, and the faults of the others."""
    steps = {folder: parse_checkpoint_step(folder) for folder in list_checkpoints(home)}
    damaged = [f"{folder}: its name has no step" for folder, step in sorted(steps.items()) if step is None]
    candidates = []
    for step, folder in sorted(((step, folder) for folder, step in steps.items() if step is not None), reverse=True):
        try:
            record = integrity.read_seal(folder)
            integrity.verify_names(folder, record["files"])
        except integrity.Damaged as error:
            damaged.append(f"{folder}: {error}")
            continue
        if record["step"] == step:
            candidates.append((folder, record))
        else:
            damaged.append(f"{folder}: holds step {record['step']}")
    return candidates, damaged


def _find_damage(folder: Path, record: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a checkpoint's files, None if nothing is. Each process verifies its share of them."""
    shares = share_out(record["files"], record.get("sizes", {}), get_world_size())
    try:
        for name, digest in shares[get_rank()].items():
            wait_until_visible(folder / name)
            integrity.verify_digests(folder, {name: digest})
        damage = None
    except FileNotFoundError:
        damage = f"{name} is missing"
    except integrity.Damaged as error:
        damage = str(error)
    return next((one for one in gather_objects(damage) if one is not None), None)


def share_out(digests: Mapping[str, str], sizes: Mapping[str, int], n_processes: int) -> list[dict[str, str]]:
    """Divides the files of a checkpoint among processes, so that all have about as many bytes to verify."""
    shares: list[dict[str, str]] = [{} for _ in range(n_processes)]
    loads = [0] * n_processes
    for name in sorted(digests, key=lambda name: (-sizes.get(name, 0), name)):
        rank = loads.index(min(loads))
        shares[rank][name] = digests[name]
        loads[rank] += sizes.get(name, 0) + 1
    return shares
