"""Attention over rows that lie behind one another in a single sequence, without padding.

The model's other layers see one sequence (1, N) of real tokens. A `PackedLayout` says where each row lies; given to a
model as `packed_layout`, it makes attention run per row: causal, over the row's own tokens and, for a completion, over
those of its prompt, which several completions share and which is computed once. Works under gradient checkpointing,
for nothing is kept between rows but the layout.

Three attention implementations of transformers are registered here by name. Without a layout they are exactly `sdpa`
and `eager`, so that a model can generate and be trained with the same setting.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.models.qwen3.modeling_qwen3 import eager_attention_forward

AttentionSetting = Literal["auto", "sdpa", "eager", "flash_attention_2"]
SDPA, EAGER, FLASH = "packed_sdpa", "packed_eager", "packed_fa2"  # names with "flash" are taken for transformers' own
NAMES = (SDPA, EAGER, FLASH)

# Rows of different lengths are padded to one attention call while that computes at most this many times the scores of
# the rows alone. An update of the embedded model on 256 completions of 16 to 96 tokens then takes a tenth less CPU time
# than with rows of equal length alone in a call; with twice the scores it takes as long as without.
MAX_PADDING = 1.25
MAX_MASK = 1 << 24  # scores of several rows that have a mask: it takes at most 8 MiB


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Where each row lies in a sequence of rows one behind another.

    `lengths`: tokens of each row, which may be none. `prompts`: the number of the row that a row continues, or None.
    That one continues no other. Each of the sequence's tokens belongs to one row.
    """

    lengths: tuple[int, ...]
    prompts: tuple[int | None, ...]
    _index_of: dict[torch.device, "_Index"] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.prompts):
            raise ValueError(f"{len(self.lengths)} lengths for {len(self.prompts)} rows")
        for row, prompt in enumerate(self.prompts):
            if prompt is not None and (prompt == row or self.prompts[prompt] is not None):
                raise ValueError(f"row {row} continues row {prompt}, which is no prompt")

    @property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Returns the position in the sequence of each row's first token."""
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @cached_property
    def n_before(self) -> tuple[int, ...]:
        """Returns the number of tokens of each row's prompt."""
        return tuple(0 if prompt is None else self.lengths[prompt] for prompt in self.prompts)

    def build_position_ids(self, device: torch.device | None = None) -> Tensor:
        """Builds each token's position in its own row, a completion's behind its prompt; (1, N)."""
        counts = [
            torch.arange(before, before + n, device=device)
            for before, n in zip(self.n_before, self.lengths, strict=True)
        ]
        return torch.cat(counts)[None]

    def build_model_inputs(self, input_ids: Tensor) -> dict[str, Any]:
        """Returns the arguments with which a model reads a sequence of this layout; `input_ids` is (N,) or (1, N)."""
        ids = input_ids.reshape(1, -1)
        return {
            "input_ids": ids,
            "position_ids": self.build_position_ids(ids.device),
            "packed_layout": self,
            "use_cache": False,
        }

    def index_on(self, device: torch.device) -> "_Index":
        """Returns the tensors that attention needs on a device, which are built once for all layers."""
        if device not in self._index_of:
            self._index_of[device] = _Index(self, device)
        return self._index_of[device]


def pack_rows(lengths: Sequence[int]) -> PackedLayout:
    """Builds the layout of rows that have nothing in common, from their lengths."""
    return PackedLayout(tuple(lengths), (None,) * len(lengths))


def pack_completions(n_prompt: Sequence[int], n_tokens: Sequence[int], prompt_of: Sequence[int]) -> PackedLayout:
    """Builds the layout of prompts and then completions, each of which continues prompt `prompt_of`."""
    return PackedLayout((*n_prompt, *n_tokens), (*(None for _ in n_prompt), *prompt_of))


# --- settings


def is_flash_attention_installed() -> bool:
    """Returns whether the package flash_attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None


def choose_attention(setting: AttentionSetting, device_type: str) -> str:
    """Returns the name of the attention implementation that a setting asks for on a kind of device.

    `auto`: flash_attn on a GPU where it is installed, else torch's own.
    """
    if setting == "auto":
        return FLASH if device_type == "cuda" and is_flash_attention_installed() else SDPA
    return {"sdpa": SDPA, "eager": EAGER, "flash_attention_2": FLASH}[setting]


def supports_masks(config: PreTrainedConfig) -> bool:
    """Returns whether a model's attention implementation accepts a mask that hides padding."""
    return config._attn_implementation in ("sdpa", "eager", *NAMES)


def uses_torch_attention(config: PreTrainedConfig) -> bool:
    """Returns whether attention over a cache is torch's `scaled_dot_product_attention`."""
    return config._attn_implementation in ("sdpa", SDPA, FLASH)


def has_full_attention(config: PreTrainedConfig) -> bool:
    """Returns whether every layer of a model attends to all tokens before, near or far."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # as Llama's config, and that of architectures with one window for all layers
        return getattr(config, "sliding_window", None) is None
    return set(kinds) == {"full_attention"}


def can_pack(config: PreTrainedConfig) -> bool:
    """Returns whether a model can read packed rows: by an implementation of ours, with full attention in every layer.

    Other models read padded rows.
    """
    return config._attn_implementation in NAMES and has_full_attention(config)


# --- reading


def read_rows(backbone: Any, input_ids: Tensor, layout: PackedLayout) -> Tensor:
    """Computes the hidden states of N tokens of rows one behind another, by a model without its head; (N, H).

    A model that cannot pack reads the rows padded on the right, where causal attention needs no mask. Raises ValueError
    where such a one is given rows that continue others.
    """
    if can_pack(backbone.config):
        packed: Tensor = backbone(**layout.build_model_inputs(input_ids)).last_hidden_state[0]
        return packed
    if any(prompt is not None for prompt in layout.prompts):
        raise ValueError("rows that continue a shared prompt, and a model that cannot read packed rows")
    rows = torch.split(input_ids, list(layout.lengths))
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    hidden: Tensor = backbone(input_ids=padded, use_cache=False).last_hidden_state
    return torch.cat([hidden[number, :n] for number, n in enumerate(layout.lengths)])


# --- what transformers calls


@dataclass(frozen=True)
class PostponedMask:
    """A dense mask that is built when an attention function asks for it, which one with a layout never does."""

    build: Callable[[], Tensor | None]

    @cached_property
    def mask(self) -> Tensor | None:
        return self.build()


def _postpone_mask(build: Callable[..., Tensor | None], **arguments: Any) -> Tensor | PostponedMask | None:
    """Builds a mask, later if it is that of rows without padding, which takes N x N elements."""
    is_always_dense = build is eager_mask
    if arguments.get("attention_mask") is None and (is_always_dense or not arguments.get("allow_is_causal_skip", True)):
        return PostponedMask(partial(build, **arguments))
    return build(**arguments)


def _run_attention(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PostponedMask | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention as transformers' attention functions do, per row if there is a `packed_layout`.

    Query (B, heads, N, size), key and value with as many heads or fewer; returns (B, N, heads, size), and weights or
    None. Raises ValueError for what cannot be computed per row.
    """
    layout: PackedLayout | None = rest.pop("packed_layout", None)
    if layout is None:
        plain = eager_attention_forward if name == EAGER else sdpa_attention_forward
        mask = attention_mask.mask if isinstance(attention_mask, PostponedMask) else attention_mask
        return plain(module, query, key, value, mask, dropout=dropout, scaling=scaling, **rest)  # type: ignore[no-any-return]
    _check_packable(layout, query, key, attention_mask, rest)
    # (1, heads, N, size) -> (N, heads, size), which is how a projection leaves it
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = _attend_in_kernel(name, rows, layout, dropout, scale)
    if found is None:
        attend = partial(_attend_literally if name == EAGER else _attend_fused, dropout=dropout, scale=scale)
        found = _attend_in_groups(rows, layout.index_on(query.device), attend)
    return found[None], None


def _check_packable(
    layout: PackedLayout, query: Tensor, key: Tensor, mask: Tensor | PostponedMask | None, rest: dict[str, Any]
) -> None:
    """Raises ValueError for a call that attention per row would get wrong."""
    if query.shape[0] != 1 or query.shape[2] != layout.n_tokens:
        raise ValueError(f"a packed layout of {layout.n_tokens} tokens, and queries {list(query.shape)}")
    if key.shape[2] != layout.n_tokens:
        raise ValueError("packed rows are read without a cache: use_cache=False")
    if isinstance(mask, Tensor):
        raise ValueError("packed rows need no attention_mask: they have no padding")
    odd = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if rest.get(name) is not None]
    if odd:
        raise ValueError(f"attention per row does not know {', '.join(odd)}; read padded rows instead")


for _name in NAMES:
    AttentionInterface.register(_name, partial(_run_attention, _name))
    AttentionMaskInterface.register(_name, partial(_postpone_mask, eager_mask if _name == EAGER else sdpa_mask))


# --- one kernel for all rows, on a GPU


def _choose_kernel_type(name: str, query: Tensor) -> torch.dtype | None:
    """Returns the type of numbers in which a kernel takes rows of any lengths; None where there is no such kernel.

    There is one for half precision on a GPU of compute capability 8.0 or more.
    """
    if name == EAGER or query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) < (8, 0):
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256 else None


def _attend_in_kernel(
    name: str, rows: Sequence[Tensor], layout: PackedLayout, dropout: float, scale: float
) -> Tensor | None:
    """Computes attention by one kernel for rows of any lengths; None where there is none.

    Not run on a GPU so far: tests put a literal computation in the kernels' place.
    """
    dtype = _choose_kernel_type(name, rows[0])
    has_flash = name == FLASH and is_flash_attention_installed()
    if dtype is None or (dropout and not has_flash):
        return None
    index = layout.index_on(rows[0].device).kernel
    query, key, value = (tensor.to(dtype) for tensor in rows)
    if index.keys is not None:
        key, value = key.index_select(0, index.keys), value.index_select(0, index.keys)
    ends = (index.query_ends, index.key_ends, index.longest_query, index.longest_key)
    if has_flash:
        attend: Any = importlib.import_module("flash_attn").flash_attn_varlen_func
        found: Tensor = attend(query, key, value, *ends, dropout_p=dropout, softmax_scale=scale, causal=True)
    else:
        attend = varlen_attn
        found = attend(query, key, value, *ends, scale=scale, window_size=(-1, 0), enable_gqa=True)
    return found


class _KernelIndex(NamedTuple):
    """The rows' ends as kernels for rows of any lengths take them."""

    query_ends: Tensor  # (rows + 1,) int32
    key_ends: Tensor
    longest_query: int
    longest_key: int
    keys: Tensor | None  # which token's key stands where; None: every row attends to its own tokens alone


# --- calls for groups of rows of about equal length


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float, scale: float
) -> Tensor:
    """Computes attention of (R, heads, T, size) by torch's fused function, causal if there is no mask."""
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_literally(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, dropout: float, scale: float
) -> Tensor:
    """Computes attention of (R, heads, T, size) by its formula, with the softmax in fp32 as `eager` has it."""
    n_shared = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(n_shared, dim=1) for tensor in (key, value))
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~mask, torch.finfo(query.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return functional.dropout(weights, p=dropout) @ value


class _Group(NamedTuple):
    """Rows that one attention call computes, padded on the right to R rows of the longest's length.

    Queries and keys are numbers of tokens in the sequence, or a span of them if the rows lie behind one another and
    need no padding. Without a mask attention is causal and queries are as many as keys.
    """

    n_rows: int
    queries: Tensor | slice  # (R * T,)
    keys: Tensor | slice  # (R * S,)
    mask: Tensor | None  # (R or 1, 1, T, S) bool: what a query attends to


def _attend_in_groups(rows: Sequence[Tensor], index: "_Index", attend: Callable[..., Tensor]) -> Tensor:
    """Computes attention by one call of `attend` for each group of rows.

    `rows`: queries, keys and values, (N, heads, size) each; so is the result.
    """
    query, key, value = rows

    def take_rows(tensor: Tensor, which: Tensor | slice, n_rows: int) -> Tensor:
        found = tensor[which] if isinstance(which, slice) else tensor.index_select(0, which)
        return found.view(n_rows, -1, *found.shape[1:]).transpose(1, 2)

    found = []
    for group in index.groups:
        parts = (
            take_rows(query, group.queries, group.n_rows),
            *(take_rows(one, group.keys, group.n_rows) for one in (key, value)),
        )
        found.append(attend(*parts, group.mask).transpose(1, 2).flatten(0, 1))
    together = found[0] if len(found) == 1 else torch.cat(found)
    return together if index.places is None else together.index_select(0, index.places)


class _Row(NamedTuple):
    """A row as attention computes it.

    `n_again`: tokens of its prompt whose queries are computed once more, so that the call is causal without a mask.
    """

    number: int
    n_before: int
    n_again: int
    n_own: int

    @property
    def n_keys(self) -> int:
        return self.n_before + self.n_own

    @property
    def n_queries(self) -> int:
        return self.n_again + self.n_own

    @property
    def n_scores(self) -> int:
        """Returns the number of scores computed, in halves of a square: causal calls leave out the other half."""
        return self.n_keys**2 if self.n_again == self.n_before else 2 * self.n_own * self.n_keys


class _Index:
    """The tensors that say, on one device, which tokens each attention call takes and where its results go."""

    def __init__(self, layout: PackedLayout, device: torch.device) -> None:
        self.layout, self.device = layout, device

    @cached_property
    def kernel(self) -> _KernelIndex:
        layout = self.layout
        n_keys = [before + n for before, n in zip(layout.n_before, layout.lengths, strict=True)]

        def build_ends(lengths: Sequence[int]) -> Tensor:
            return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=self.device)

        keys = None
        if any(layout.n_before):
            keys = torch.cat([self._list_tokens(row, before) for row, before in enumerate(layout.n_before)])
        return _KernelIndex(
            build_ends(layout.lengths),
            build_ends(n_keys),
            max(layout.lengths),
            max(n_keys),
            None if keys is None else keys.to(self.device),
        )

    @cached_property
    def groups(self) -> list[_Group]:
        return [self._build_group(rows) for rows in self._row_groups]

    @cached_property
    def places(self) -> Tensor | None:
        """Returns which of the groups' results is each token's; (N,), or None if they are in order."""
        places = torch.empty(self.layout.n_tokens, dtype=torch.int64)
        start = 0
        for rows in self._row_groups:
            longest = max(row.n_queries for row in rows)
            for row in rows:
                first = self.layout.starts[row.number]
                places[first : first + row.n_own] = torch.arange(row.n_own) + start + row.n_again
                start += longest
        is_in_order = start == len(places) and bool((places == torch.arange(start)).all())
        return None if is_in_order else places.to(self.device)

    @cached_property
    def _row_groups(self) -> list[list[_Row]]:
        return list(_group_rows(self.layout))

    def _list_tokens(self, number: int, n_before: int) -> Tensor:
        """Lists the tokens of a row behind the last `n_before` of its prompt, by their place in the sequence."""
        layout, prompt = self.layout, self.layout.prompts[number]
        own = torch.arange(layout.starts[number], layout.starts[number] + layout.lengths[number])
        if prompt is None or not n_before:
            return own
        end = layout.starts[prompt] + layout.lengths[prompt]
        return torch.cat([torch.arange(end - n_before, end), own])

    def _build_group(self, rows: list[_Row]) -> _Group:
        """Builds the tensors of the attention call of some rows, which are padded with their own last token."""
        queries = self._join_padded([self._list_tokens(row.number, row.n_again) for row in rows])
        keys = self._join_padded([self._list_tokens(row.number, row.n_before) for row in rows])
        mask = None
        if any(row.n_again < row.n_before for row in rows):
            n_before = torch.tensor([row.n_before for row in rows])
            n_before = n_before[:1] if bool((n_before == n_before[0]).all()) else n_before
            shape = max(row.n_queries for row in rows), max(row.n_keys for row in rows)
            query, key = (torch.arange(n) for n in shape)
            mask = (key <= n_before[:, None, None] + query[:, None])[:, None].to(self.device)
        return _Group(len(rows), queries, keys, mask)

    def _join_padded(self, parts: list[Tensor]) -> Tensor | slice:
        longest = max(map(len, parts))
        joined = torch.cat([torch.cat([part, part[-1:].expand(longest - len(part))]) for part in parts])
        first = int(joined[0])
        if bool((joined == torch.arange(first, first + len(joined))).all()):
            return slice(first, first + len(joined))
        return joined.to(self.device)


def _group_rows(layout: PackedLayout) -> Iterator[list[_Row]]:
    """Groups rows of about equal length for one attention call each.

    A completion that is longer than its prompt computes the prompt's queries again, which is cheaper than the mask
    that it would take without; a shorter one does not.
    """
    causal, masked = list[_Row](), list[_Row]()
    for number, (before, own) in enumerate(zip(layout.n_before, layout.lengths, strict=True)):
        if own:
            is_masked = own < before
            (masked if is_masked else causal).append(_Row(number, before, 0 if is_masked else before, own))
    for rows in causal, masked:
        group: list[_Row] = []
        n_scores = longest = 0
        for row in sorted(rows, key=lambda row: (-row.n_keys, -row.n_own, row.number)):
            n_keys = group[0].n_keys if group else row.n_keys
            longest = max(longest, row.n_queries)
            padded = (len(group) + 1) * (n_keys**2 if rows is causal else 2 * longest * n_keys)
            if group and (padded > MAX_PADDING * (n_scores + row.n_scores) or (rows is masked and padded > MAX_MASK)):
                yield group
                group, n_scores, longest = [], 0, row.n_queries
            group.append(row)
            n_scores += row.n_scores
        if group:
            yield group
