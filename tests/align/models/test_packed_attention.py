"""Packed rows: losses, gradients and logits are those of each row alone, for each architecture and implementation."""

import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from qwen_align.align.models import packed_attention
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.packed_attention import (
    EAGER,
    FLASH,
    SDPA,
    can_pack,
    choose_attention,
    pack_completions,
    pack_rows,
)

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # so that attention is far from uniform
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "qwen3_moe": Qwen3MoeConfig,
}
LENGTHS = [13, 1, 40, 7, 7, 38, 2]
IMPLEMENTATIONS = {SDPA: "sdpa", EAGER: "eager", FLASH: "sdpa"}


def build_model(name: str, implementation: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS[name](**SIZES, **(MIXTURE if name == "qwen3_moe" else {}), **changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    for weight in model.parameters():  # biases and norms too
        torch.nn.init.normal_(weight, std=0.3)
    return model.train()


def draw_rows(lengths: Sequence[int], seed: int = 1) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(60, (n,), generator=random) for n in lengths]


def read_alone(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    return [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]


def read_padded(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Logits of all rows in one pass, padded on the right and masked."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    return [logits[number, : len(row)] for number, row in enumerate(rows)]


def read_packed(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    layout = pack_rows([len(row) for row in rows])
    logits = model(**layout.build_model_inputs(torch.cat(list(rows)))).logits[0]
    return list(logits.split(list(layout.lengths)))


def weigh(logits: Sequence[Tensor]) -> Tensor:
    """A loss that depends on every logit otherwise."""
    flat = torch.cat([one.log_softmax(-1) for one in logits])
    weights = torch.linspace(-1, 1, flat.numel()).view_as(flat)
    return (flat * weights).mean()


def compute_gradients(model: PreTrainedModel, logits: Sequence[Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = weigh(logits)
    loss.backward()
    return loss.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        apart = (found[name] - gradient).abs().max().item()
        assert apart <= 1e-5 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_rows_give_the_losses_and_gradients_of_padded_rows(architecture: str, implementation: str) -> None:
    model, rows = build_model(architecture, implementation), draw_rows(LENGTHS)
    plain = build_model(architecture, IMPLEMENTATIONS[implementation])
    loss, gradients = compute_gradients(model, read_packed(model, rows))
    for read in (read_padded, read_alone):
        expected, expected_gradients = compute_gradients(plain, read(plain, rows))
        assert loss == pytest.approx(expected, abs=1e-5)
        assert_same_gradients(gradients, expected_gradients)


@pytest.mark.parametrize("implementation", [SDPA, EAGER])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rows_longer_than_the_original_length_are_read_packed_as_alone(
    scaling: dict[str, Any], implementation: str
) -> None:
    """Of the rows three have tokens beyond the tenth position, as the shared prompt and its completions have."""
    rope = {"rope_theta": 10_000.0, "original_max_position_embeddings": 10, **scaling}
    model = build_model("qwen3", implementation, rope_parameters=rope)
    plain = build_model("qwen3", IMPLEMENTATIONS[implementation], rope_parameters=rope)
    rows = draw_rows(LENGTHS)
    loss, gradients = compute_gradients(model, read_packed(model, rows))
    expected, expected_gradients = compute_gradients(plain, read_alone(plain, rows))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_same_gradients(gradients, expected_gradients)
    unscaled = build_model("qwen3", implementation)
    scaled_logits, other_logits = (torch.cat(read_packed(one, rows)) for one in (model, unscaled))
    assert not torch.allclose(scaled_logits, other_logits, atol=1e-3), "the scaling is read"
    prompts, completions = draw_rows(N_PROMPT), draw_rows(N_TOKENS, seed=2)
    together = [torch.cat([prompts[of], one]) for of, one in zip(PROMPT_OF, completions, strict=True)]
    alone = [logits[-n:] for logits, n in zip(read_alone(plain, together), N_TOKENS, strict=True)]
    assert weigh(read_shared(model, prompts, completions)).item() == pytest.approx(weigh(alone).item(), abs=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("implementation", [SDPA, EAGER])
def test_without_a_layout_all_is_as_without_us(architecture: str, implementation: str) -> None:
    model, rows = build_model(architecture, implementation), draw_rows(LENGTHS)
    plain = build_model(architecture, IMPLEMENTATIONS[implementation])
    for read in (read_padded, read_alone):
        assert all(map(torch.equal, read(model, rows), read(plain, rows)))
    prompt = {"input_ids": rows[0][None], "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**prompt), plain.generate(**prompt))
    restarting = {"input_ids": torch.cat(rows)[None], "position_ids": pack_rows(LENGTHS).build_position_ids()}
    assert torch.equal(
        model(**restarting, use_cache=False).logits, plain(**restarting, use_cache=False).logits
    )  # from the dense mask that transformers builds of them


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_changed_token_leaves_the_other_rows_alone_to_the_last_bit(implementation: str) -> None:
    model, rows = build_model("qwen3", implementation), draw_rows(LENGTHS)
    before = read_packed(model, rows)
    for changed in range(len(rows)):
        other = [row.clone() for row in rows]
        other[changed][0] = (other[changed][0] + 1) % 60
        after = read_packed(model, other)
        is_same = [torch.equal(one, two) for one, two in zip(before, after, strict=True)]
        assert is_same == [number != changed for number in range(len(rows))]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_alone_is_read_as_it_is(implementation: str) -> None:
    """Its positions do not restart, so transformers takes it for a common row."""
    rows = draw_rows([9])
    plain = read_alone(build_model("qwen3", IMPLEMENTATIONS[implementation]), rows)[0]
    assert torch.allclose(read_packed(build_model("qwen3", implementation), rows)[0], plain, atol=1e-5)


def test_positions_restart_and_go_on_behind_a_prompt() -> None:
    assert pack_rows([3, 1, 2]).build_position_ids().tolist() == [[0, 1, 2, 0, 0, 1]]
    layout = pack_completions([2, 3], [2, 1, 2], [1, 0, 1])
    assert layout.build_position_ids().tolist() == [[0, 1, 0, 1, 2, 3, 4, 2, 3, 4]]


N_PROMPT, N_TOKENS, PROMPT_OF = [5, 0, 30, 4], [3, 60, 2, 9, 41, 1, 4, 8], [0, 0, 2, 2, 2, 1, 1, 3]


def read_shared(model: PreTrainedModel, prompts: Sequence[Tensor], completions: Sequence[Tensor]) -> list[Tensor]:
    """Logits at the tokens of completions whose prompts are computed once."""
    layout = pack_completions(N_PROMPT, N_TOKENS, PROMPT_OF)
    logits = model(**layout.build_model_inputs(torch.cat([*prompts, *completions]))).logits[0]
    return list(logits.split(list(layout.lengths)))[len(prompts) :]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("implementation", [SDPA, EAGER])
def test_completions_of_a_shared_prompt_are_as_behind_their_own(architecture: str, implementation: str) -> None:
    model = build_model(architecture, implementation)
    prompts, completions = draw_rows(N_PROMPT), draw_rows(N_TOKENS, seed=2)
    loss, gradients = compute_gradients(model, read_shared(model, prompts, completions))
    together = [torch.cat([prompts[of], one]) for of, one in zip(PROMPT_OF, completions, strict=True)]
    plain = build_model(architecture, IMPLEMENTATIONS[implementation])
    alone = [logits[-n:] for logits, n in zip(read_alone(plain, together), N_TOKENS, strict=True)]
    expected, expected_gradients = compute_gradients(plain, alone)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert_same_gradients(gradients, expected_gradients)


def test_a_changed_token_of_a_prompt_reaches_its_completions_alone() -> None:
    model = build_model("qwen3", SDPA)
    prompts, completions = draw_rows(N_PROMPT), draw_rows(N_TOKENS, seed=2)
    before = read_shared(model, prompts, completions)
    prompts[2][0] = (prompts[2][0] + 1) % 60
    after = read_shared(model, prompts, completions)
    assert [torch.equal(one, two) for one, two in zip(before, after, strict=True)] == [of != 2 for of in PROMPT_OF]


def attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, longest_query: int, *rest: int
) -> Tensor:
    """What kernels for rows of any lengths compute: (tokens, heads, size), causal from the last query and key back."""
    found = []
    for row in range(len(query_ends) - 1):
        first, last = query_ends[row : row + 2].tolist()
        some = slice(*key_ends[row : row + 2].tolist())
        n_shared = query.shape[1] // key.shape[1]
        keys, values = (one[some].repeat_interleave(n_shared, dim=1) for one in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[first:last], keys) * query.shape[-1] ** -0.5
        n, n_keys = scores.shape[1:]
        assert n <= longest_query
        assert n_keys <= rest[0]
        hidden = torch.ones(n, n_keys, dtype=torch.bool).triu(n_keys - n + 1)
        found.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
    return torch.cat(found)


@pytest.mark.parametrize("implementation", [SDPA, FLASH])
def test_kernels_for_rows_of_any_lengths_are_told_the_same_rows(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a literal computation in their place: no GPU is needed."""
    model, calls = build_model("qwen3", implementation), list[dict[str, Any]]()
    prompts, completions = draw_rows(N_PROMPT), draw_rows(N_TOKENS, seed=2)
    expected = compute_gradients(model, read_shared(model, prompts, completions))

    def attend(*arguments: Any, **settings: Any) -> Tensor:
        calls.append(settings)
        return attend_row_by_row(*arguments)

    monkeypatch.setattr(packed_attention, "_choose_kernel_type", lambda *_: torch.float32)
    monkeypatch.setattr(packed_attention, "is_flash_attention_installed", lambda: True)
    monkeypatch.setattr(packed_attention, "varlen_attn", attend)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=attend))
    found = compute_gradients(model, read_shared(model, prompts, completions))
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert_same_gradients(found[1], expected[1])
    scale = SIZES["head_dim"] ** -0.5
    theirs = {"dropout_p": 0.0, "softmax_scale": scale, "causal": True}
    ours = {"scale": scale, "window_size": (-1, 0), "enable_gqa": True}
    assert calls == [theirs if implementation == FLASH else ours] * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = build_model("qwen3", SDPA)
    prompts, completions = draw_rows(N_PROMPT), draw_rows(N_TOKENS, seed=2)
    expected = compute_gradients(model, read_shared(model, prompts, completions))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = compute_gradients(model, read_shared(model, prompts, completions))
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


def test_lora_and_autocast_read_packed_rows() -> None:
    from peft import LoraConfig, get_peft_model

    model, rows = build_model("qwen3", SDPA), draw_rows(LENGTHS)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    with torch.autocast("cpu", torch.bfloat16):
        packed, alone = read_packed(adapted, rows), read_alone(adapted, rows)
        weigh(packed).backward()
    assert all(one.grad is not None for name, one in adapted.named_parameters() if "lora" in name)
    for one, two in zip(packed, alone, strict=True):
        torch.testing.assert_close(one.softmax(-1), two.softmax(-1), atol=0.05, rtol=0.0)  # 8 bits


def test_no_attention_call_sees_more_than_a_quarter_of_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a mask of all tokens by all tokens."""
    scores, masks = [0], [0]
    plain = packed_attention._attend_fused

    def count(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any) -> Tensor:
        scores[0] += query.shape[0] * query.shape[2] * key.shape[2]
        masks[0] = max(masks[0], 0 if mask is None else mask.numel())
        return plain(query, key, value, mask, **settings)

    monkeypatch.setattr(packed_attention, "_attend_fused", count)
    model = build_model("qwen3", SDPA)
    read_packed(model, draw_rows(LENGTHS))
    assert scores[0] <= 1.25 * SIZES["num_hidden_layers"] * sum(n * n for n in LENGTHS)
    assert masks[0] == 0
    read_shared(model, draw_rows(N_PROMPT), draw_rows(N_TOKENS))
    assert 0 < masks[0] <= 3 * 9 * 39


def test_what_cannot_be_read_per_row_is_refused() -> None:
    model, layout = build_model("qwen3", SDPA), pack_rows([3, 2])
    inputs = layout.build_model_inputs(torch.arange(5))
    with pytest.raises(ValueError, match="of 5 tokens"):
        model(**(inputs | {"input_ids": torch.arange(6)[None], "position_ids": torch.arange(6)[None]}))
    with pytest.raises(ValueError, match="no attention_mask"):
        model(**inputs, attention_mask=torch.tensor([[1, 1, 1, 1, 0]]))
    with pytest.raises(ValueError, match="row 1 continues row 1"):
        packed_attention.PackedLayout((1, 1), (None, 1))
    for architecture in ("qwen2", "qwen3", "qwen3_moe"):
        sliding = build_model(architecture, SDPA, use_sliding_window=True, sliding_window=4, max_window_layers=1)
        assert not can_pack(sliding.config)
        with pytest.raises(ValueError, match="sliding_window"):
            sliding(**inputs)


def test_settings_name_implementations_that_read_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_attention("auto", "cpu") == choose_attention("sdpa", "cuda") == SDPA
    assert choose_attention("eager", "cuda") == EAGER
    assert choose_attention("flash_attention_2", "cuda") == FLASH
    for is_installed, name in ((True, FLASH), (False, SDPA)):
        monkeypatch.setattr(packed_attention, "is_flash_attention_installed", lambda found=is_installed: found)
        assert choose_attention("auto", "cuda") == name
    model = build_model("qwen3", "sdpa")
    assert not can_pack(model.config)
    set_attention(model, "eager", "cpu")
    assert can_pack(model.config)
    assert "packed" not in model.config.to_json_string()
