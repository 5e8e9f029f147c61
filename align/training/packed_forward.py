"""Gives models a forward pass over padded rows that computes no padding, for TRL's trainers.

TRL calls the model with padded rows and reads its outputs in the same layout, so its losses run as they are. In
between the padding is dropped: the rows lie behind one another in one sequence, attention runs per row, and the head
is computed only where a token is in the loss.
"""

import functools
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

from qwen_align.align.models.logit_scales import find_logit_scale
from qwen_align.align.models.packed_attention import PackedLayout, can_pack, pack_completions, pack_rows, read_rows
from qwen_align.align.training.token_scores import score_tokens


class PackedRows(NamedTuple):
    """Padded rows of tokens as one sequence without padding.

    `source`: which of the padded (B x T) tokens stands where in the sequence, (N,). `places`: where the sequence has
    each of them, (B, T); the rows of a pair have their common beginning at the same places. Of tokens that are not read
    the place is 0.
    """

    layout: PackedLayout
    source: Tensor
    places: Tensor


def pack_padded_rows(n_read: Sequence[int], n_common: Sequence[int], n_columns: int) -> PackedRows:
    """Packs the first `n_read` tokens of each of B rows padded on the right to `n_columns`.

    `n_common`: how many tokens row i and row i + B / 2 begin with in common, which are then read once; empty for rows
    that are no pairs.
    """
    rows = torch.arange(len(n_read) * n_columns).view(-1, n_columns)
    places = torch.zeros_like(rows)
    n_shared = [*n_common, *n_common] or [0] * len(n_read)
    n_own = [n - shared for n, shared in zip(n_read, n_shared, strict=True)]
    layout = pack_rows(n_own) if not n_common else pack_completions(n_common, n_own, [*range(len(n_common))] * 2)
    starts = layout.starts
    parts = [rows[row, :n] for row, n in enumerate(n_common)]
    for row, (start, shared, n) in enumerate(zip(starts[len(n_common) :], n_shared, n_read, strict=True)):
        parts.append(rows[row, shared:n])
        places[row, shared:n] = torch.arange(start, start + n - shared)
        if shared:
            first = starts[row % len(n_common)]
            places[row, :shared] = torch.arange(first, first + shared)
    return PackedRows(layout, torch.cat(parts), places)


def count_common_tokens(input_ids: Tensor, n_read: Tensor) -> Tensor:
    """Counts the tokens that both sides of each pair begin with; each side keeps one of its own; (pairs,).

    `input_ids` (2 x pairs, T) has the chosen sides first; `n_read` tokens of each are read.
    """
    one, other = input_ids.chunk(2)
    n_common = (one == other).long().cumprod(dim=1).sum(dim=1)
    return torch.minimum(n_common, torch.minimum(*n_read.chunk(2)) - 1)


def applies_head_alone(config: PreTrainedConfig) -> bool:
    """Returns whether the logits of a model are its head's output, neither scaled nor capped."""
    return find_logit_scale(config.get_text_config().to_dict()) is None


def read_states(backbone: Any, input_ids: Tensor, needed: Tensor, *, are_pairs: bool) -> Tensor:
    """Computes the hidden states of rows (B, T) at the `needed` tokens, a mask of the same shape; (M, H), row by row.

    What comes behind a row's last needed token is not read.
    """
    columns = torch.arange(1, input_ids.shape[1] + 1, device=needed.device)
    n_read = (needed * columns).amax(dim=1).clamp(min=1)
    n_common = count_common_tokens(input_ids, n_read) if are_pairs else input_ids.new_zeros(0)
    lengths = torch.cat([n_read, n_common]).tolist()
    packed = pack_padded_rows(lengths[: len(n_read)], lengths[len(n_read) :], input_ids.shape[1])
    ids = input_ids.flatten()[packed.source.to(input_ids.device)]
    return read_rows(backbone, ids, packed.layout)[packed.places.to(needed.device)[needed]]


def add_packed_head(model: PreTrainedModel, *, are_pairs: bool = False, **settings: Any) -> None:
    """Gives a causal language model TRL's fused head, which reads its rows packed where that is the same.

    It is not where the architecture scales or caps its logits: there TRL's own forward pass is used. With `states_only`
    the rows are read as for their loss, without the head. `settings` are those of `add_fused_lm_head`.
    """
    add_fused_lm_head(model, **settings)
    padded_forward = model.forward
    outputs = settings.get("outputs", ("log_probs",))
    needs = {"needs_entropies": "entropy" in outputs, "needs_logits": "is_top1" in outputs}
    knows_outputs = set(outputs) <= {"log_probs", "entropy", "mean_logits", "is_top1"}
    is_plain = knows_outputs and applies_head_alone(model.config)

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, input_ids: Any = None, attention_mask: Any = None, *, labels: Any = None, **rest: Any
    ) -> Any:
        states_only = rest.pop("states_only", False)
        is_asked = states_only or rest.get("fused_lm_head")
        if not (is_asked and is_plain and can_pack(self.config)):
            return padded_forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **rest)
        in_loss = labels[:, 1:] != -100
        needed = torch.nn.functional.pad(in_loss, (0, 1))
        states = read_states(self.base_model, input_ids, needed, are_pairs=are_pairs)
        if states_only:
            return states
        scores = score_tokens(states, self.get_output_embeddings(), labels[:, 1:][in_loss], **needs)

        def spread(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.new_zeros(in_loss.shape).masked_scatter(in_loss, values)

        return FusedCausalLMOutput(
            log_probs=spread(scores.logps),
            entropy=spread(scores.entropies),
            mean_logits=spread(scores.mean_logits),
            is_top1=spread(scores.is_top1),
            label_mask=in_loss,
        )

    model.forward = types.MethodType(forward, model)


def add_packed_scorer(model: PreTrainedModel) -> None:
    """Gives a sequence classifier a forward pass that reads pairs of rows packed and scores each at its last token."""
    padded_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        if not can_pack(self.config):
            return padded_forward(input_ids=input_ids, attention_mask=attention_mask, **rest)
        columns = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        is_last = columns == attention_mask.sum(dim=1, keepdim=True)
        states = read_states(self.base_model, input_ids, is_last, are_pairs=True)
        return SequenceClassifierOutputWithPast(logits=self.score(states))

    model.forward = types.MethodType(forward, model)


@contextmanager
def replace_fused_head(trl_module: Any, *, are_pairs: bool) -> Iterator[None]:
    """Has the trainer of a TRL module, while it is built, add our head to its models in the place of TRL's."""
    ours: Callable[..., None] = functools.partial(add_packed_head, are_pairs=are_pairs)
    theirs = trl_module.add_fused_lm_head
    trl_module.add_fused_lm_head = ours
    try:
        yield
    finally:
        trl_module.add_fused_lm_head = theirs
