"""Names the files of a checkpoint: who writes which, and without which training would go on otherwise. No torch."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from qwen_align.align.errors import StageError
from qwen_align.align.settings.runtime import Strategy
from qwen_align.align.settings.strategy import ZERO_STAGES

# What transformers, DeepSpeed and torch's distributed checkpoints call the files that a process writes for itself.
_WITH_RANK = re.compile(r"(?:^|/)(?:rng_state_|(?:bf16_|fp16_)?zero_pp_rank_|__)(\d+)[_.]")
_MODEL_SHARDS, _OPTIMIZER_SHARDS = "pytorch_model_fsdp_0", "optimizer_0"  # accelerate's folders under FSDP2
SHARD_FOLDERS = (_MODEL_SHARDS, _OPTIMIZER_SHARDS)
SCHEDULER = "scheduler.pt"


def find_writer(name: str, n_processes: int) -> int:
    """Returns the rank of the process that writes a checkpoint's file: the one in its name, else the main process."""
    found = _WITH_RANK.search(name)
    rank = int(found[1]) if found else 0
    return rank if rank < n_processes else 0


def list_needed_files(
    strategy: Strategy, n_processes: int, *, weights: str, others: Sequence[str] = (), has_scheduler: bool = True
) -> list[str]:
    """Returns the patterns of the files without which training would go on otherwise, such as with a new Adam.

    `weights`: those that a whole model is saved as, of which there is at least one. `others`: the trainer's own.
    """
    ranks = range(n_processes)
    rng = [f"rng_state_{rank}.pth" for rank in ranks] if n_processes > 1 else ["rng_state.pth"]
    needed = ["trainer_state.json", *([SCHEDULER] if has_scheduler else []), *rng, *others]
    if strategy in ZERO_STAGES:
        needed += ["latest", *(f"global_step*/*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks)]
        if strategy == "zero3":
            return needed + [f"global_step*/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks]
        return [*needed, "global_step*/mp_rank_00_model_states.pt"]
    if strategy == "fsdp2":
        return needed + [f"{folder}/.metadata" for folder in SHARD_FOLDERS]
    return [*needed, "optimizer.pt", weights]


def require_files(where: str, needed: Sequence[str], found: Sequence[str]) -> None:
    """Raises StageError where files that a checkpoint needs have not been written."""
    missing = [pattern for pattern in needed if not any(fnmatchcase(name, pattern) for name in found)]
    if missing:
        raise StageError(f"{where}: no {', '.join(missing)} was saved; see align/training/checkpoint_files.py")
