"""Computes the reference's log-probs of all pairs before training starts, and stores them for a resumed run.

The reference is the policy itself, which has not been trained yet: no second model is ever in memory.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from qwen_align.align.training.distributed import is_main_process, is_true_in_any_process

FILE = "reference_logps.safetensors"  # beside the checkpoints, which a stage loses when it is finished
COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")  # what TRL calls them


def add_reference_logps(trainer: Any, dataset: Any, batch_size: int, score: Callable[[Any], tuple[Tensor, ...]]) -> Any:
    """Returns a data set of pairs with the reference's log-probs of both sides, in nats, as two more columns.

    `score` computes those of a padded batch of `batch_size` pairs. What was stored is used again if it is of the same
    token ids in the same order.
    """
    path = Path(str(trainer.args.output_dir)) / FILE
    digest = compute_digest(dataset)
    logps = _read_stored(path, digest)
    if is_true_in_any_process(logps is None) or logps is None:  # another node may not see the file yet
        logps = _score_all(trainer, dataset, batch_size, score)
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{FILE}")
            save_file(logps, partial, metadata={"of": digest})
            os.replace(partial, path)
    for name in COLUMNS:
        dataset = dataset.add_column(name, logps[name].tolist())
    return dataset


def compute_digest(dataset: Any) -> str:
    """Returns the SHA-256 of a data set's token ids, in their order."""
    digest = hashlib.sha256()
    for row in dataset:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            digest.update(f"{name} {row[name]}\n".encode())
    return digest.hexdigest()


def _read_stored(path: Path, digest: str) -> dict[str, Tensor] | None:
    """Returns stored log-probs, or None if there are none of this digest or the file is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            is_same = (file.metadata() or {}).get("of") == digest
            return {name: file.get_tensor(name) for name in COLUMNS} if is_same else None
    except (SafetensorError, OSError):
        return None


def _score_all(
    trainer: Any, dataset: Any, batch_size: int, score: Callable[[Any], tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """Scores all pairs, shared out to the processes, and returns the log-probs of both sides on the CPU."""
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=trainer.data_collator)

    def score_batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in trainer.accelerator.prepare(loader):
            chosen, rejected = trainer.accelerator.gather_for_metrics(score(batch))
            yield chosen.float().cpu(), rejected.float().cpu()

    chosen, rejected = zip(*score_batches(), strict=True)
    return dict(zip(COLUMNS, (torch.cat(chosen), torch.cat(rejected)), strict=True))
