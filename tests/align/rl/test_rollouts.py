"""A step's completions as tensors: padding, micro-batches, files; and that cutting them up changes no score or loss."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_align.align.rl.actor import Actor, Critic
from qwen_align.align.rl.rollouts import Rollouts, micro_batch, micro_batches

N_PROMPT, N_TOKENS = [4, 2, 7, 3, 5], [3, 6, 1, 4, 2]


def rollouts(vocab: int = 100) -> Rollouts:
    draw = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor(N_TOKENS)
    total = int(n_tokens.sum())
    return Rollouts(
        ids=torch.randint(5, vocab, (sum(N_PROMPT) + total,), generator=draw),
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
    padded = one.padded(one.old_logps)
    assert padded.shape == (5, 6)
    assert torch.equal(one.flat(padded), one.old_logps)
    assert torch.equal(one.padded(one.old_logps, [1, 3]), padded[[1, 3]])
    assert [part.tolist() for part in one.of_rows(one.old_logps)][2] == padded[2, :1].tolist()


def test_the_mask_leaves_out_what_does_not_count() -> None:
    one = rollouts()
    assert one.mask().sum(1).tolist() == [3, 0, 1, 4, 2]
    assert one.mask([3, 4]).tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert one.n_all_tokens == 10


def test_rows_without_signal_train_only_for_other_terms() -> None:
    one = rollouts()
    assert one.trained(without_signal=False) == [0, 2]
    assert one.trained(without_signal=True) == [0, 2, 3, 4]


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


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(1, None), (2, None), (5, None), (5, 9), (5, 1)])
def test_micro_batches_hold_every_row_once_within_the_budget(max_rows: int, max_tokens: int | None) -> None:
    one = rollouts()
    batches = list(micro_batches(one, range(5), max_rows=max_rows, max_tokens=max_tokens))
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    for batch in batches:
        budget = min(max_rows * 8, max_tokens or 10**9)
        assert batch.input_ids.numel() <= budget or len(batch.rows) == 1
        for place, row in enumerate(batch.rows):
            whole = one.prompt_and_completion(row)
            assert batch.input_ids[place, : len(whole)].tolist() == whole
        targets = [token for row in batch.rows for token in one.prompt_and_completion(row)[N_PROMPT[row] :]]
        assert batch.targets.tolist() == targets


def scores(actor: Actor, one: Rollouts, **settings: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = [torch.zeros(5, 6) for _ in range(3)]
    for batch in micro_batches(one, range(5), **settings):
        said = actor(batch, values=True)
        for whole, part in zip(found, (said.logps, said.entropies, said.values), strict=True):
            assert part is not None
            whole[batch.rows, : part.shape[1]] = part.detach()
    return found[0], found[1], found[2]


def test_scores_are_those_of_a_plain_forward_pass_in_any_micro_batch(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    critic = Critic(model.config.hidden_size)
    torch.nn.init.normal_(critic.head.weight)
    actor, one = Actor(model, 0.7, critic), rollouts()
    together, alone = scores(actor, one, max_rows=5), scores(actor, one, max_rows=1)
    for row in range(5):
        ids, n = torch.tensor([one.prompt_and_completion(row)]), N_PROMPT[row]
        done = model(input_ids=ids, output_hidden_states=True)
        logps = (done.logits[0, n - 1 : -1].double() / 0.7).log_softmax(-1)
        expected = (
            logps.gather(1, ids[0, n:, None])[:, 0],
            -(logps.exp() * logps).sum(-1),
            critic.head(done.hidden_states[-1])[0, n - 1 : -1, 0].double(),
        )
        for found, single, true in zip(together, alone, expected, strict=True):
            torch.testing.assert_close(found[row, : N_TOKENS[row]].double(), true, atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(found[row], single[row], atol=2e-5, rtol=1e-5)
            assert (found[row, N_TOKENS[row] :] == 0).all()


def test_raw_texts_are_scored_but_for_their_first_token() -> None:
    batch = micro_batch([0, 1], [torch.tensor([7, 8, 9]), torch.tensor([5, 6])], torch.tensor([1, 1]))
    assert batch.targets.tolist() == [8, 9, 6]
    assert batch.tokens.tolist() == [[True, True], [True, False]]
