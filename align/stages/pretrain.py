"""Runs a pretrain stage: trains a tokenizer and a small Qwen3 from Text rows, in one plain loop.

Killed and resumed it ends bit for bit as if it had never been killed: the checkpoint holds model, optimisers
and step, the order of the data is a function of seed and epoch, and nothing else is random.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError, StageError
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.loading import choose_device
from qwen_align.align.models.model_description import MODEL
from qwen_align.align.rendering.tiny_tokenizer import END_OF_TEXT, TURN_END, save_tokenizer, train_tokenizer
from qwen_align.align.rows import RowError, Text, read_rows
from qwen_align.align.settings.pretrain import Architecture, Pretrain
from qwen_align.align.store.files import write_json
from qwen_align.align.training import checkpoints

STATE = "state.pt"  # in a checkpoint
ENCODED_AT_ONCE = 10_000  # documents; keeps the tokenizer's bookkeeping out of memory


def run(settings: Pretrain, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a tokenizer and a model from scratch into `out/model/` and returns the summary.

    Raises Preempted after a checkpoint.
    """
    texts = read_texts(inputs[settings.from_data] / "rows.jsonl")
    tokenizer = train_tokenizer(texts[: settings.tokenizer.texts], settings.tokenizer.vocab_size)
    documents = encode_documents(tokenizer, texts)
    torch.manual_seed(context.seed)
    device = choose_device(context.runtime)
    model = Qwen3ForCausalLM(build_model_config(settings.architecture, tokenizer)).to(device)
    set_attention(model, context.runtime.attention, device.type)
    loss = train_model(settings, model, documents, out / "checkpoints", context)
    folder = out / "model"
    model.generation_config = build_generation_config(tokenizer)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, max_tokens=settings.architecture.max_tokens)
    write_json(out / MODEL, {"model": "model"})
    return {
        "parameters": model.num_parameters(),
        "vocabulary": tokenizer.get_vocab_size(),
        "documents": len(documents),
        "document_tokens": sum(map(len, documents)),
        "steps": settings.steps,
        "tokens": settings.steps * settings.batch * settings.sequence_length,
        "loss": loss,
    }


def train_model(
    settings: Pretrain, model: Qwen3ForCausalLM, documents: list[list[int]], checkpoint_folder: Path, context: Context
) -> float:
    """Trains `model` in place, resuming from the newest checkpoint if any, and returns the last logged loss."""
    optimizers = build_optimizers(settings, model)
    resume_point = checkpoints.find_newest_checkpoint(checkpoint_folder)
    done, losses = load_checkpoint(resume_point.folder, model, optimizers)
    context.truncate_logs(done)
    resume_point.log_damaged_checkpoints(context)
    batches = itertools.islice(stream_batches(documents, settings, context.seed), done, None)
    n_tokens = settings.batch * settings.sequence_length
    model.train()
    for step in range(done + 1, settings.steps + 1):
        with context.work_on("update", step=step, rows=settings.batch, longest_row=settings.sequence_length):
            losses.append(train_on_batch(model, optimizers, next(batches), compute_rate_factor(settings, step)))
        context.report_progress(step, settings.steps, step * n_tokens)
        if step % settings.log_every == 0 or step == settings.steps:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(loss):
                raise StageError(f"step {step}: the loss is {loss}; lower muon.lr or adamw.lr")
            context.log_metrics(
                {"step": step, "loss": loss, "rate": compute_rate_factor(settings, step), "tokens": step * n_tokens}
            )
        # Not after the last step, so that a run that continues always has a step left to log.
        if step < settings.steps and (context.is_stop_requested() or step % context.runtime.checkpoint_every == 0):
            save_checkpoint(checkpoint_folder, model, optimizers, step, losses)
            context.stop_if_requested()
    return loss


def train_on_batch(model: Qwen3ForCausalLM, optimizers: list[Optimizer], batch: Tensor, rate_factor: float) -> Tensor:
    """Updates the model on one batch and returns the mean loss per token before the update.

    `batch`: (rows, block + 1) token ids.
    """
    batch = batch.to(model.device)
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * rate_factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def compute_rate_factor(settings: Pretrain, step: int) -> float:
    """Returns the learning-rate factor at a training step: linear warm-up, then constant, then linear decay.

    Steps count from 1; the decay ends at nearly zero.
    """
    warmup = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    decay = (settings.steps + 1 - step) / (settings.steps * settings.decay_share) if settings.decay_share else 1.0
    return min(warmup, decay, 1.0)


def build_optimizers(settings: Pretrain, model: Qwen3ForCausalLM) -> list[Optimizer]:
    """Builds the two optimisers of pretraining: Muon for the layers' matrices, AdamW for embeddings and norms.

    The embeddings are tied.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    matrix_ids = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in matrix_ids]
    muon, adamw = settings.muon, settings.adamw
    return [
        torch.optim.Muon(matrices, lr=muon.lr, momentum=muon.momentum, weight_decay=muon.weight_decay),
        torch.optim.AdamW(rest, lr=adamw.lr, betas=(adamw.betas[0], adamw.betas[1]), weight_decay=0.0),
    ]


def build_model_config(shape: Architecture, tokenizer: Tokenizer) -> Qwen3Config:
    """Builds the Qwen3 model config from its shape and tokenizer.

    Pad differs from the end of a turn, see `save_tokenizer`.
    """
    return Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=look_up_token_id(tokenizer, TURN_END),
        pad_token_id=look_up_token_id(tokenizer, END_OF_TEXT),
        dtype="float32",
    )


def build_generation_config(tokenizer: Tokenizer) -> GenerationConfig:
    """Builds a generation config that stops at the end of a turn or of a document.

    A base model's own format ends with a document.
    """
    ends = [look_up_token_id(tokenizer, TURN_END), look_up_token_id(tokenizer, END_OF_TEXT)]
    return GenerationConfig(eos_token_id=ends, pad_token_id=ends[1], do_sample=True, temperature=1.0)


def read_texts(path: Path) -> list[str]:
    """Reads the documents of a `rows.jsonl` with Text rows, in order."""
    texts = []
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row, Text):
            raise RowError(f"{path}:{number}: a '{row.row}' row; pretrain reads text rows (rows: text)")
        texts.append(row.text)
    return texts


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Returns the token ids of each document, with an end-of-text token appended."""
    end = look_up_token_id(tokenizer, END_OF_TEXT)
    documents: list[list[int]] = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        encodings = tokenizer.encode_batch(texts[start : start + ENCODED_AT_ONCE], add_special_tokens=False)
        documents += [[*encoding.ids, end] for encoding in encodings]
    return documents


def look_up_token_id(tokenizer: Tokenizer, token: str) -> int:
    """Returns the token id of a special token that `train_tokenizer` has added."""
    look_up_token_id = tokenizer.token_to_id(token)
    assert look_up_token_id is not None, f"{token} is added by train_tokenizer"
    return look_up_token_id


def stream_batches(documents: list[list[int]], settings: Pretrain, seed: int) -> Iterator[Tensor]:
    """Yields an endless stream of (rows, block + 1) batches of token ids.

    Each epoch's order is a function of seed and epoch.
    """
    length = settings.sequence_length + 1
    if sum(map(len, documents)) < settings.batch * length:
        raise DataError(f"{len(documents)} documents do not fill one batch of {settings.batch} x {length} tokens")
    pending: list[list[int]] = []
    for epoch in itertools.count():
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for block in pack_documents((documents[i] for i in order.tolist()), length):
            pending.append(block)
            if len(pending) == settings.batch:
                yield torch.tensor(pending)
                pending.clear()


def pack_documents(documents: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """Packs documents into rows of `length` token ids.

    Each row opens with the start of a document and is cut where it is full.

    Rows that open in the middle of a document make the model learn to copy numbers from a question far later.
    """
    row: list[int] = []
    for document in documents:
        row += document
        if len(row) >= length:
            yield row[:length]
            row = []


def save_checkpoint(
    home: Path, model: Qwen3ForCausalLM, optimizers: list[Optimizer], step: int, losses: list[Tensor]
) -> None:
    """Saves a checkpoint atomically in place of the last one.

    A kill leaves the old one or the new one.

    `losses` are those not logged yet, or the log of a resumed run would differ.
    """
    folder = checkpoints.get_partial_folder(home, step)
    folder.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"step": step, "model": model.state_dict(), "optimizers": states, "losses": losses}, folder / STATE)
    checkpoints.publish_checkpoint(home, step, checkpoints.digest_own_files(folder), "ddp")


def load_checkpoint(
    folder: Path | None, model: Qwen3ForCausalLM, optimizers: list[Optimizer]
) -> tuple[int, list[Tensor]]:
    """Restores model and optimisers in place from a checkpoint and returns the step and the losses not logged yet.

    Returns (0, []) without a checkpoint.
    """
    if folder is None:
        return 0, []
    saved = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"], saved["losses"]
