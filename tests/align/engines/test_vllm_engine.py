"""The vllm engine against the replies of a real server, which `make engines` records (test_real_vllm.py)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_align.align.engines.vllm_client import Prompt, VllmClient
from qwen_align.align.errors import StageError
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.vllm import WrittenPolicy, compute_text_logps
from qwen_align.align.rl.actor import Actor
from qwen_align.align.rl.algorithm import build_grpo
from qwen_align.align.rl.collect import Group, RolloutBatch, build_rollouts
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.micro_batches import iterate_micro_batches
from qwen_align.align.rl.objective import UpdateTerms, compute_loss, count_step_totals
from qwen_align.align.settings.grpo import Grpo
from tests.align.engines.recorded_server import replay
from tests.align.engines.scenario import (
    FREE,
    Update,
    load_policy,
    make_requests,
    open_engine,
    run_updates,
    teacher_force,
)
from tests.align.rl.test_objective import SHARED

TIED, UNTIED = "vllm-0.32.0-tied.json", "vllm-0.32.0-untied.json"
TOLERANCE = 1e-4  # nats, in fp32


def find_largest_difference(updates: list[Update]) -> float:
    """The largest difference of the engine's log-probs from the model's, over all updates and tokens."""
    return max(
        abs(engine - model)
        for update in updates
        for generation, own in zip(update.generations, update.logps, strict=True)
        for engine, model in zip(generation.logps, own, strict=True)
    )


@pytest.mark.parametrize(("name", "tied"), [(TIED, True), (UNTIED, False)])
def test_after_every_update_the_log_probs_are_the_policys(name: str, tied: bool, tmp_path: Path) -> None:
    """In full, with LoRA and with DoRA, at every kind of sampling. A request that was not recorded is an error."""
    with replay(name) as url:
        updates = run_updates(open_engine(url, tmp_path), tied=tied)
    assert [update.version for update in updates] == [0, 1, 2, 3]
    assert find_largest_difference(updates) < TOLERANCE
    first, second = updates[0].generations, updates[1].generations
    assert [one.token_ids for one in first] != [one.token_ids for one in second], "the updates are not the same model"
    assert {one.finish_reason for update in updates for one in update.generations} == {"stop", "length"}
    assert not list(tmp_path.glob("*")), "no weights are left behind"


def test_a_head_that_was_left_behind_ends_the_stage(tmp_path: Path) -> None:
    """As vLLM's own reload_weights leaves it, which answers 200: the recording has its log-probs after that."""
    with replay(TIED) as url:
        engine = open_engine(url, tmp_path)
        run_updates(engine, tied=True)
        base = WrittenPolicy(None, 9, compute_text_logps(load_policy(tied=True), engine.request))
        with pytest.raises(
            StageError, match=r"update 9: .*the engine's weights are not the policy's after they were sent"
        ):
            engine.load_policy(base)


def test_an_update_that_another_one_answers_for_ends_the_stage(tmp_path: Path) -> None:
    def answer_late(path: str, reply: Any) -> Any:
        return {"results": [{"version": 7}]} if path == "/collective_rpc" else reply

    with replay(TIED, answer_late) as url, pytest.raises(StageError, match="update 0: the engine says that it has"):
        open_engine(url, tmp_path).sync_weights(load_policy(tied=True), 0)


def test_a_cache_of_old_prompts_that_is_kept_ends_the_stage(tmp_path: Path) -> None:
    def keep(path: str, reply: Any) -> Any:
        return {"success": False} if path == "/reset_prefix_cache" else reply

    with replay(TIED, keep) as url, pytest.raises(StageError, match="did not reset its prefix cache"):
        open_engine(url, tmp_path).sync_weights(load_policy(tied=True), 0)


def test_greedy_tokens_were_certain_and_samples_have_their_numbers(tmp_path: Path) -> None:
    with replay(TIED) as url:
        update = run_updates(open_engine(url, tmp_path), tied=True)[0]
    greedy = [one for one in update.generations if one.request.sampling.is_greedy]
    assert all(one.sampled_logps == [0.0] * len(one.token_ids) and max(one.logps) < 0 for one in greedy)
    assert [one.sample for one in update.generations] == [0, 1] * len(make_requests(0))
    free = [one for one in update.generations if one.request.sampling == FREE]
    assert all(one.sampled_logps == one.logps for one in free)


def test_prompts_that_leave_no_room_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with replay(TIED) as url, pytest.raises(ValueError, match="exceed the model's 96 positions"):
        list(open_engine(url, tmp_path).generate([Request("long", [5] * 90, 1, FREE, seed=0)]))


def set_choice(**changes: Any) -> Any:
    """A change of the first completion in a reply."""

    def change(path: str, reply: Any) -> Any:
        if path == "/v1/completions":
            reply["choices"][0] |= changes
        return reply

    return change


def drop_choice(path: str, reply: Any) -> Any:
    reply["choices"].pop()
    return reply


def drop_logp(path: str, reply: Any) -> Any:
    reply["choices"][0]["logprobs"]["token_logprobs"][0] = None
    return reply


def make_infinite(path: str, reply: Any) -> Any:
    reply["choices"][0]["logprobs"]["token_logprobs"][0] = -9999.0
    return reply


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_choice, "gave 1 completions of a prompt, not 2"),
        (drop_logp, "no log-prob for some; a server needs --logprobs-mode processed_logprobs"),
        (make_infinite, "no log-prob for some"),
        (set_choice(logprobs=None), "no log-prob for some"),
        (set_choice(token_ids=None), "gave no completion of 1 to 8 token ids: None"),
        (set_choice(token_ids=[]), "gave no completion of 1 to 8 token ids"),
        (set_choice(token_ids=[512]), "gave no completion of 1 to 8 token ids"),
        (set_choice(prompt_token_ids=[1]), "read another prompt than it was sent"),
        (set_choice(finish_reason="abort"), "ended a completion of"),
        (lambda path, reply: [], "answered with no JSON object"),
    ],
)
def test_replies_that_lack_something_are_errors(change: Any, said: str, tmp_path: Path) -> None:
    with replay(TIED, change) as url, pytest.raises(StageError, match=said):
        list(open_engine(url, tmp_path).generate(make_requests(0)[:1]))


def test_what_a_server_refuses_is_said() -> None:
    with replay(TIED) as url:
        client = VllmClient([url], stop_ids=[1], vocab_size=512)
        with pytest.raises(StageError, match="the engine answered 500: never recorded: POST /v1/completions"):
            list(client.complete([Prompt([1], 1, 1, FREE)]))
        with pytest.raises(StageError, match="the engine answered 500: never recorded"):
            client.sleep()
    with pytest.raises(StageError, match="/version: the engine does not answer: ConnectionRefused"):
        client.read_version()


@pytest.mark.parametrize("kind", ["grpo", "gspo", "dapo"])
def test_an_update_on_completions_of_vllm_has_the_loss_of_the_same_ones_of_the_local_engine(
    kind: str, tmp_path: Path
) -> None:
    """With ratios to the log-probs that each engine tells, and importance weights; gradients too."""
    with replay(TIED) as url:
        engine = open_engine(url, tmp_path)
        model = load_policy(tied=True)
        engine.sync_weights(model, 0)
        drawn = sorted(engine.generate(make_requests(0)[:3]), key=lambda one: (one.request.id, one.sample))
    losses = []
    for logps in ([one.logps for one in drawn], [teacher_force(model, one) for one in drawn]):
        generations = [replace(one, logps=told, sampled_logps=told) for one, told in zip(drawn, logps, strict=True)]
        losses.append(compute_update(model, kind, generations))
    (loss, gradient), (other_loss, other_gradient) = losses
    assert abs(loss - other_loss) < TOLERANCE
    assert float(gradient.norm()) > 1e-3
    assert float((gradient - other_gradient).norm() / gradient.norm()) < TOLERANCE


def compute_update(model: Any, kind: str, generations: list[Generation]) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of one update on groups of two, of which the first of each is right."""
    spec = Grpo.model_validate(
        {
            **SHARED,
            "kind": "grpo",
            "loss": kind,
            "completions_per_prompt": 2,
            "updates": {"minibatches": 2},
            "importance_sampling_correction": {"level": "token"},
        }
    )
    algorithm, actor = build_grpo(spec), Actor(model, 1.0, None)
    pairs = zip(generations[::2], generations[1::2], strict=True)
    groups = [Group(None, list(pair), []) for pair in pairs]  # type: ignore[arg-type]  # no prompt is looked at
    rollouts = build_rollouts(RolloutBatch(groups, n_wanted=len(groups)), with_verdicts=False)
    rollouts.reward = torch.tensor([1.0, 0.0] * len(groups))
    rollouts.counts = torch.ones(len(generations), dtype=torch.bool)  # without verdicts none does
    algorithm.assign_advantages(rollouts, 0.0, RewardScale())
    rows = list(range(len(generations)))
    totals = count_step_totals(rollouts, rows, FREE.max_tokens)
    terms = UpdateTerms(on_policy=False, policy=True, value=False, kl_coefficient=0.0, entropy_coefficient=0.0)
    model.zero_grad()
    total = torch.zeros(())
    for batch in iterate_micro_batches(rollouts, rows, max_rows=8):
        loss, _ = compute_loss(actor(batch), batch, rollouts, totals, terms, algorithm)
        loss.backward()
        total += loss.detach()
    return float(total), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
