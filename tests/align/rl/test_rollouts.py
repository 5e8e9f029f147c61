"""A step's completions as tensors: padding, micro-batches, files; and that cutting them up changes no score or loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_align.align.rl.actor import Actor, Critic
from qwen_align.align.rl.micro_batches import (
    build_micro_batch,
    iterate_micro_batches,
    pack_micro_batches,
    split_among_processes,
)
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.pass_limits import CPU_TOKENS, PassLimits, get_pass_limits
from qwen_align.align.settings.runtime import Runtime

N_PROMPT, N_TOKENS = [4, 4, 4, 7, 7], [3, 6, 1, 4, 2]


def rollouts(vocab: int = 100) -> Rollouts:
    """Three completions of one prompt and two of another."""
    draw = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor(N_TOKENS)
    total = int(n_tokens.sum())
    first, second, *completions = torch.randint(5, vocab, (11 + total,), generator=draw).split([4, 7, *N_TOKENS])
    prompts = [first, first, first, second, second]
    return Rollouts(
        ids=torch.cat([part for pair in zip(prompts, completions, strict=True) for part in pair]),
        n_prompt=torch.tensor(N_PROMPT),
        n_tokens=n_tokens,
        group=torch.tensor([0, 0, 0, 1, 1]),
        reward=torch.tensor([1.0, float("nan"), 0.0, 0.5, 0.5]),
        truncated=torch.tensor([False, True, False, False, False]),
        old_logps=torch.randn(total, generator=draw),
        sampled_logps=torch.randn(total, generator=draw),
        counts=torch.tensor([True, False, True, True, True]),
        advantages=torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0]).repeat_interleave(n_tokens),
        share=0.75,
    )


def test_padded_and_flat_are_each_others_inverse() -> None:
    one = rollouts()
    padded = one.pad_tokens(one.old_logps)
    assert padded.shape == (5, 6)
    assert torch.equal(one.flatten_tokens(padded), one.old_logps)
    assert torch.equal(one.pad_tokens(one.old_logps, [1, 3]), padded[[1, 3]])
    assert [part.tolist() for part in one.split_by_completion(one.old_logps)][2] == padded[2, :1].tolist()


def test_the_mask_leaves_out_what_does_not_count() -> None:
    one = rollouts()
    assert one.get_mask().sum(1).tolist() == [3, 0, 1, 4, 2]
    assert one.get_mask([3, 4]).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert one.n_tokens_in_loss == 10


def test_rows_without_signal_train_only_for_other_terms() -> None:
    one = rollouts()
    assert one.select_trained_rows(without_signal=False) == [0, 2]
    assert one.select_trained_rows(without_signal=True) == [0, 2, 3, 4]


def test_a_file_holds_every_bit(tmp_path: Path) -> None:
    one = rollouts()
    one.values = torch.randn(16)
    one.save(tmp_path / "rollouts.safetensors")
    again = Rollouts.load(tmp_path / "rollouts.safetensors")
    assert again.share == one.share
    for name, value in vars(one).items():
        found = getattr(again, name)
        assert (
            torch.equal(found.nan_to_num(), value.nan_to_num()) if isinstance(value, torch.Tensor) else found == value
        )
        assert not isinstance(value, torch.Tensor) or found.dtype == value.dtype


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize(("max_rows", "max_tokens"), [(1, None), (2, None), (5, None), (5, 15), (5, 1)])
def test_micro_batches_hold_every_row_once_within_the_budget(
    max_rows: int, max_tokens: int | None, share_prompts: bool
) -> None:
    one = rollouts()
    batches = list(
        iterate_micro_batches(one, range(5), max_rows=max_rows, max_tokens=max_tokens, share_prompts=share_prompts)
    )
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    budget = min(max_rows * 11, max_tokens or 10**9)
    for batch in batches:
        layout, ids = batch.layout, batch.input_ids.tolist()
        assert len(ids) == layout.n_tokens <= budget or len(batch.rows) == 1
        assert share_prompts or not batch.shares_prompts
        spans = [ids[start : start + n] for start, n in zip(layout.starts, layout.lengths, strict=True)]
        n_shared = len(spans) - len(batch.rows)
        read, positions = list[int](), list[int]()
        for row, prompt, own in zip(batch.rows, layout.prompts[n_shared:], spans[n_shared:], strict=True):
            whole = one.get_token_ids(row)
            assert [*([] if prompt is None else spans[prompt]), *own] == whole[:-1]
            read += whole[N_PROMPT[row] - 1 : -1]
            positions += range(N_PROMPT[row] - 1, len(whole) - 1)
        assert batch.input_ids[batch.places].tolist() == read
        assert layout.build_position_ids()[0, batch.places].tolist() == positions
        targets = [token for row in batch.rows for token in one.get_token_ids(row)[N_PROMPT[row] :]]
        assert batch.targets.tolist() == targets
    assert share_prompts == any(batch.shares_prompts for batch in batches) or max_rows == 1 or max_tokens == 1


def test_processes_get_whole_groups_of_about_as_many_tokens_each() -> None:
    one = of_lengths(10, [30, 30, 5, 5, 20, 20, 12, 12, 9, 9, 8, 8], samples=2)
    dealt = split_among_processes(one, range(12), 2)
    assert sorted(row for share in dealt for row in share) == list(range(12))
    assert all({row ^ 1 for row in share} == set(share) for share in dealt)
    n_tokens = [sum(10 + int(one.n_tokens[row]) for row in share) for share in dealt]
    assert max(n_tokens) <= 1.1 * min(n_tokens)


def test_with_fewer_prompts_than_processes_no_process_is_idle() -> None:
    assert sorted(map(len, split_among_processes(of_lengths(10, [5] * 8, samples=8), range(8), 4))) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("rows", "n_idle"), [(range(12), [1, 1, 0]), ([3, 4, 5, 9], [0, 0, 0]), ([7], [0, 1, 1]), ([], [0, 0, 0])]
)
def test_every_process_makes_as_many_passes(rows: Sequence[int], n_idle: list[int]) -> None:
    one = of_lengths(10, [30, 30, 30, 5, 5, 5, 20, 20, 20, 12, 12, 12], samples=3)
    found = [pack_micro_batches(one, rows, (rank, 3), max_rows=2) for rank in range(3)]
    assert len({len(mine) + len(idle) for mine, idle in found}) == 1
    assert sorted(row for mine, _ in found for batch in mine for row in batch.rows) == sorted(rows)
    assert [len(idle) for _, idle in found] == n_idle


def of_lengths(n_prompt: int, n_tokens: list[int], samples: int) -> Rollouts:
    """As many completions of each prompt, of these lengths one after another."""
    prompts = torch.arange(len(n_tokens) // samples).repeat_interleave(samples)
    parts = [
        torch.cat([prompt.repeat(n_prompt), torch.ones(n, dtype=torch.int64)])
        for prompt, n in zip(prompts, n_tokens, strict=True)
    ]
    return Rollouts(
        ids=torch.cat(parts),
        n_prompt=torch.full((len(n_tokens),), n_prompt),
        n_tokens=torch.tensor(n_tokens),
        group=prompts,
        reward=torch.zeros(len(n_tokens)),
        truncated=torch.zeros(len(n_tokens), dtype=torch.bool),
        old_logps=torch.zeros(sum(n_tokens)),
        sampled_logps=torch.zeros(sum(n_tokens)),
        counts=torch.ones(len(n_tokens), dtype=torch.bool),
        advantages=torch.zeros(sum(n_tokens)),
    )


def computed(one: Rollouts, **settings: Any) -> int:
    """Tokens that go through the model."""
    return sum(len(batch.input_ids) for batch in iterate_micro_batches(one, range(len(one)), **settings))


def test_a_long_prompt_is_computed_about_once() -> None:
    one = of_lengths(200, [20] * 64, samples=8)
    assert computed(one, max_rows=8) <= 1.1 * 8 * (200 + 8 * 20)
    assert computed(one, max_rows=8, share_prompts=False) >= 64 * 219


def test_no_position_is_padding_and_few_passes_are_half_empty() -> None:
    lengths = [25, 50, 100, 200] * 32
    one = of_lengths(10, lengths, samples=8)
    n_alone = sum(9 + n for n in lengths)
    assert computed(one, max_rows=8, share_prompts=False) == n_alone
    assert sum(lengths) <= computed(one, max_rows=8) <= 1.05 * sum(lengths)
    for share_prompts in (True, False):
        batches = list(iterate_micro_batches(one, range(128), max_tokens=2048, share_prompts=share_prompts))
        assert max(len(batch.input_ids) for batch in batches) <= 2048
        assert len(batches) <= 1.3 * n_alone / 2048


@pytest.mark.parametrize(
    ("runtime", "device", "limits"),
    [
        ({"micro_batch": 3}, "cuda", (3, None)),
        ({"micro_batch": 3}, "cpu", (3, CPU_TOKENS)),
        ({"micro_batch": 3, "micro_batch_tokens": 5000}, "cuda", (None, 5000)),
        ({"micro_batch": 3, "micro_batch_tokens": 5000}, "cpu", (None, 5000)),
    ],
)
def test_a_pass_is_bounded_by_rows_or_by_tokens(
    runtime: dict[str, int], device: str, limits: tuple[int | None, int | None]
) -> None:
    assert get_pass_limits(Runtime.model_validate(runtime), device) == limits
    assert PassLimits(3, 2048).compute_budget([7, 900, 30]) == 2048
    assert PassLimits(3, None).compute_budget([7, 900, 30]) == 2700
    assert PassLimits(None, 5000).compute_budget([7, 900, 30]) == 5000


def scores(actor: Actor, one: Rollouts, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, entropies and values; their sum's gradients are left in the parameters."""
    found = [torch.zeros(5, 6) for _ in range(3)]
    for batch in iterate_micro_batches(one, range(5), **settings):
        said = actor(batch, values=True)
        for whole, part in zip(found, said, strict=True):
            assert part is not None
            whole[batch.rows, : part.shape[1]] = part.detach()
        (said.logps.sum() + said.entropies.sum() + said.values.sum()).backward()
    return found[0], found[1], found[2]


@pytest.mark.parametrize("own_trunk", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{"max_rows": 5}, {"max_rows": 5, "share_prompts": False}, {"max_rows": 1}, {"max_rows": 2}],
    ids=["shared", "apart", "alone", "in pairs"],
)
def test_scores_and_gradients_are_those_of_plain_forward_passes(
    tiny_model: Path, settings: dict[str, Any], own_trunk: bool
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trunk = AutoModelForCausalLM.from_pretrained(tiny_model).base_model if own_trunk else None
    critic = Critic(model.config.hidden_size, trunk)
    torch.nn.init.normal_(critic.head.weight)
    actor, one = Actor(model, 0.7, critic), rollouts()
    found = scores(actor, one, **settings)
    gradients = {name: parameter.grad.clone() for name, parameter in actor.named_parameters()}
    actor.zero_grad()
    for row in range(5):
        ids, n = torch.tensor([one.get_token_ids(row)]), N_PROMPT[row]
        done = model(input_ids=ids, output_hidden_states=True)
        states = trunk(input_ids=ids).last_hidden_state if trunk is not None else done.hidden_states[-1]
        logps = (done.logits[0, n - 1 : -1] / 0.7).log_softmax(-1)
        expected = (
            logps.gather(1, ids[0, n:, None])[:, 0],
            -(logps.exp() * logps).sum(-1),
            critic.head(states)[0, n - 1 : -1, 0],
        )
        sum(one.sum() for one in expected).backward()
        for said, true in zip(found, expected, strict=True):
            torch.testing.assert_close(said[row, : N_TOKENS[row]], true.detach(), atol=2e-5, rtol=1e-5)
            assert (said[row, N_TOKENS[row] :] == 0).all()
    for name, parameter in actor.named_parameters():
        apart = (parameter.grad - gradients[name]).abs().max().item()
        assert apart <= 1e-5 * max(1.0, parameter.grad.abs().max().item()), name


def test_a_model_that_drops_old_keys_reads_padded_rows_without_shared_prompts(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert Actor(model, 1.0).can_share_prompts
    config = model.config.to_dict()
    window = {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 1, "layer_types": None}
    sliding = type(model)(type(model.config)(**{**config, **window}))  # a window longer than any row
    sliding.load_state_dict(model.state_dict())
    actor, one = Actor(sliding, 1.0, Critic(model.config.hidden_size)), rollouts()
    assert not actor.can_share_prompts
    found = scores(actor, one, max_rows=5, share_prompts=False)
    expected = scores(Actor(model, 1.0, Critic(model.config.hidden_size)), one, max_rows=5)
    for said, true in zip(found, expected, strict=True):
        torch.testing.assert_close(said, true, atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot read packed rows"):
        scores(actor, one, max_rows=5)


@pytest.mark.parametrize("own_trunk", [False, True])
def test_gradient_checkpointing_shares_prompts_and_changes_nothing(tiny_model: Path, own_trunk: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trunk = AutoModelForCausalLM.from_pretrained(tiny_model).base_model if own_trunk else None
    actor, one = Actor(model, 0.7, Critic(model.config.hidden_size, trunk)).train(), rollouts()
    expected = scores(actor, one, max_rows=5)
    gradients = {name: parameter.grad.clone() for name, parameter in actor.named_parameters()}
    actor.zero_grad()
    actor.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert actor.can_share_prompts
    assert any(batch.shares_prompts for batch in iterate_micro_batches(one, range(5), max_rows=5))
    assert all(map(torch.equal, scores(actor, one, max_rows=5), expected))
    assert all(torch.equal(parameter.grad, gradients[name]) for name, parameter in actor.named_parameters())


def test_raw_texts_are_scored_but_for_their_first_token() -> None:
    batch = build_micro_batch([0, 1], [torch.tensor([7, 8, 9]), torch.tensor([5, 6])], [1, 1])
    assert batch.input_ids.tolist() == [7, 8, 5]
    assert batch.targets.tolist() == [8, 9, 6]
    assert batch.tokens.tolist() == [[True, True], [True, False]]
