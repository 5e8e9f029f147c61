import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from qwen_align.align.generation import batched_decoding, column_cache, decoding_rows
from qwen_align.align.generation.cache_budget import GIB, count_cache_bytes
from qwen_align.align.generation.column_cache import ColumnCache
from qwen_align.align.generation.decoding_rows import count_cache_columns, list_rows, plan_batches
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.fused_decoding import can_be_fused
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.settings.sampling import Sampling

VOCAB = 61
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # peaked enough that no two tokens nearly tie
}
FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MIXTURES = {
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {**EXPERTS, "head_dim": 8, "tie_word_embeddings": True}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {**EXPERTS, "shared_expert_intermediate_size": 40}),
}
FREE = Sampling(temperature=1.0, max_tokens=12)
GREEDY = Sampling(temperature=0.0, max_tokens=20)
CUT = Sampling(temperature=0.7, top_p=0.9, top_k=8, min_p=0.02, max_tokens=12)


def make_model(family="qwen3", *, seed=0, by_modules=False, **settings):
    """A model that decodes by the fused step, or by its own modules because something hooks into one."""
    config, kind, more = (FAMILIES | MIXTURES)[family]
    torch.manual_seed(seed)
    model = kind(config(**SIZES | more | settings)).eval()
    if by_modules:
        model.model.norm.register_forward_hook(lambda *_: None)
    assert can_be_fused(model) != by_modules
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["fused", "modules"])
def model(request):
    return make_model(by_modules=request.param)


def make_prompts(lengths, *, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(5, VOCAB, size=length).tolist() for length in lengths]


def make_requests(sampling=FREE, *, lengths=(1, 9, 3, 17, 3), n=4, **more):
    prompts = make_prompts(lengths)
    return [Request(f"p{i}", prompt, n, sampling, seed=7, **more) for i, prompt in enumerate(prompts)]


def sampled(model, requests, *, stop_ids=(0, 1, 2), **settings):
    """Generations by (request id, sample)."""
    made = list(LocalEngine(model, stop_ids=stop_ids, **settings).generate(requests))
    by_name = {(g.request.id, g.sample): g for g in made}
    assert len(by_name) == len(made)
    return by_name


def gib_for(model, n_tokens):
    """GiB that hold the keys and values of so many tokens."""
    return n_tokens * count_cache_bytes(model) / GIB


def tokens(by_name):
    return {name: g.token_ids for name, g in by_name.items()}


def assert_same_logps(one, other, *, atol=1e-5):
    """Log-probs of the same generations in other batches."""
    for name, generation in one.items():
        for ours, theirs in zip(
            (generation.logps, generation.sampled_logps), (other[name].logps, other[name].sampled_logps), strict=True
        ):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=atol, rtol=0)


@torch.no_grad()
def full_logits(model, generation):
    """The logits each token was drawn from, by one plain forward over prompt and completion."""
    prompt = generation.request.prompt_ids
    logits = model(input_ids=torch.tensor([prompt + generation.token_ids])).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("by_modules", [False, True], ids=["fused", "modules"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_hf_generate_on_prompts_of_different_lengths(family, by_modules):
    model = make_model(family, by_modules=by_modules)
    requests = make_requests(GREEDY, lengths=(1, 9, 3, 17, 3, 30), n=1)
    ours = sampled(model, requests, stop_ids=(0, 1, 2, 3, 4))
    for request in requests:
        theirs = model.generate(
            torch.tensor([request.prompt_ids]),
            attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=[0, 1, 2, 3, 4],
            pad_token_id=0,
        )[0, len(request.prompt_ids) :].tolist()
        assert ours[request.id, 0].token_ids == theirs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by_modules", [False, True], ids=["fused", "modules"])
@pytest.mark.parametrize("sampling", [FREE, CUT, GREEDY], ids=["free", "cut", "greedy"])
def test_log_probs_equal_an_independent_full_forward(family, sampling, by_modules):
    model = make_model(family, by_modules=by_modules)
    for generation in sampled(model, make_requests(sampling)).values():
        logits = full_logits(model, generation) / (sampling.temperature or 1.0)
        drawn = torch.tensor(generation.token_ids)[:, None]
        policy = logits.log_softmax(-1).gather(1, drawn)[:, 0]
        torch.testing.assert_close(torch.tensor(generation.logps), policy, atol=1e-4, rtol=0)
        if sampling is FREE:
            assert generation.sampled_logps == generation.logps
        elif sampling is GREEDY:
            assert set(generation.sampled_logps) == {0.0}
        else:
            assert all(cut >= whole for cut, whole in zip(generation.sampled_logps, generation.logps, strict=True))


@pytest.mark.parametrize("by_modules", [False, True], ids=["fused", "modules"])
def test_with_yarn_log_probs_beyond_the_original_length_are_those_of_teacher_forcing(by_modules):
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    settings = {"max_position_embeddings": 16, "initializer_range": 0.1}  # 0.3 would round by more than 1e-5
    model = make_model(by_modules=by_modules, rope_parameters=yarn, **settings)
    plain = make_model(by_modules=by_modules, **settings)
    assert LocalEngine(model, stop_ids=(0,)).length_limit == 64
    beyond = 0
    for generation in sampled(model, make_requests(lengths=(1, 9, 30, 51), n=3)).values():
        drawn = torch.tensor(generation.token_ids)[:, None]
        logps = full_logits(model, generation).log_softmax(-1).gather(1, drawn)[:, 0]
        torch.testing.assert_close(torch.tensor(generation.logps), logps, atol=1e-5, rtol=0)
        if len(generation.request.prompt_ids) > 16:
            beyond += len(drawn)
            unscaled = full_logits(plain, generation).log_softmax(-1).gather(1, drawn)[:, 0]
            assert (logps - unscaled).abs().max() > 1e-3
    assert beyond > 12


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_draws_as_teacher_forcing_and_generate_have_it(family):
    model = make_model(family, by_modules=True)
    for generation in sampled(model, make_requests(FREE)).values():
        policy = full_logits(model, generation).log_softmax(-1)
        policy = policy.gather(1, torch.tensor(generation.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(generation.logps), policy, atol=1e-5, rtol=0)
    for (name, _), generation in sampled(model, make_requests(GREEDY, n=1)).items():
        prompt = torch.tensor([generation.request.prompt_ids])
        made = model.generate(prompt, do_sample=False, max_new_tokens=20, eos_token_id=[0, 1, 2], pad_token_id=0)
        assert made[0, prompt.shape[1] :].tolist() == generation.token_ids, name


def test_sampled_log_probs_are_of_the_cut_distribution(model):
    """Enumerates the kept tokens by hand: top-k, then top-p of what it left, then min-p."""
    for generation in sampled(model, make_requests(CUT)).values():
        probs = (full_logits(model, generation) / 0.7).double().softmax(-1).numpy()
        for row, token, logp in zip(probs, generation.token_ids, generation.sampled_logps, strict=True):
            order = np.argsort(-row)[:8]
            share = row[order] / row[order].sum()
            before = np.cumsum(share) - share
            kept = order[(before < 0.9) & (share >= 0.02 * share[0])]
            assert token in kept
            assert logp == pytest.approx(np.log(row[token] / row[kept].sum()), abs=1e-4)


def test_a_padded_row_sees_its_own_prompt_only(model):
    """A pad of more columns than the CPU attention kernel takes at once (512)."""
    long, short = make_prompts((700, 4))
    both = [Request("long", long, 1, FREE, seed=1), Request("short", short, 3, FREE, seed=1)]
    assert tokens(sampled(model, both)).items() >= tokens(sampled(model, both[1:])).items()


@pytest.mark.parametrize("sampling", [FREE, CUT], ids=["free", "cut"])
def test_a_row_is_the_same_alone_in_a_mixed_batch_and_in_any_micro_batch(model, sampling):
    requests = make_requests(sampling)
    whole = tokens(sampled(model, requests))
    assert len({tuple(ids) for ids in whole.values()}) > len(whole) // 2, "rows must differ for this to mean something"
    alone = {}
    for request, sample in itertools.product(requests, range(4)):
        alone |= tokens(sampled(model, [replace(request, n=1, first_sample=sample)]))
    assert whole == alone
    assert whole == tokens(sampled(model, requests[::-1]))
    assert whole == tokens(sampled(model, requests, max_rows=3))
    assert whole == tokens(sampled(model, requests, kv_cache_gib=gib_for(model, 60)))
    others = [Request("other", [9, 9], 5, way, seed=1) for way in (FREE, GREEDY)]
    for other in others:
        assert whole.items() <= tokens(sampled(model, [other, *requests])).items()


def test_samples_are_numbered_from_first_sample(model):
    (request,) = make_requests(lengths=(6,), n=4)
    whole = tokens(sampled(model, [request]))
    parts = [replace(request, n=2), replace(request, n=2, first_sample=2)]
    assert whole == tokens(sampled(model, parts))
    assert sorted(sample for _, sample in whole) == [0, 1, 2, 3]


@pytest.mark.parametrize("change", [{"seed": 8}, {"step": 1}, {"id": "q"}, {"first_sample": 4}])
def test_seed_step_id_and_sample_each_change_the_draw(model, change):
    (request,) = make_requests(lengths=(6,), n=4)
    before = [g.token_ids for g in sampled(model, [request]).values()]
    after = [g.token_ids for g in sampled(model, [replace(request, **change)]).values()]
    assert before != after


def test_dropping_finished_rows_changes_no_token(model):
    requests = make_requests(n=16)
    whole = {steps: sampled(model, requests, check_every=steps) for steps in (1, 5, 99)}
    lengths = [len(g.token_ids) for g in whole[1].values()]
    assert min(lengths) < max(lengths), "rows must end at different times for this to mean something"
    assert tokens(whole[1]) == tokens(whole[5]) == tokens(whole[99])
    assert_same_logps(whole[1], whole[99])


def test_completions_come_as_they_finish(model):
    made = list(LocalEngine(model, stop_ids=(0, 1, 2)).generate(make_requests(n=16)))
    lengths = [len(g.token_ids) for g in made]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_a_completion_ends_at_its_stop_token_or_at_its_own_limit(model):
    prompts = make_prompts((5, 5))
    requests = [
        Request("few", prompts[0], 20, Sampling(temperature=1.0, max_tokens=3), seed=1),
        Request("more", prompts[1], 20, Sampling(temperature=1.0, max_tokens=15), seed=1),
    ]
    stops = {0, 1, 2, 3, 4}
    made = sampled(model, requests, stop_ids=stops)
    for g in made.values():
        assert not stops & set(g.token_ids[:-1])
        assert (g.token_ids[-1] in stops) == (g.finish_reason == "stop")
        assert len(g.token_ids) <= g.request.sampling.max_tokens
        assert g.finish_reason == "stop" or len(g.token_ids) == g.request.sampling.max_tokens
        assert len(g.token_ids) == len(g.logps) == len(g.sampled_logps)
    assert {(g.request.id, g.finish_reason) for g in made.values()} == set(
        itertools.product(("few", "more"), ("stop", "length"))
    )


def test_without_stop_ids_every_completion_is_full(model):
    assert {len(ids) for ids in tokens(sampled(model, make_requests(), stop_ids=())).values()} == {12}


@pytest.mark.slow(seconds=6)
def test_two_calls_agree_to_the_last_bit_and_so_does_a_new_process():
    model = make_model()
    requests = make_requests(CUT, n=6)
    first, second = (list(LocalEngine(model, stop_ids=(0, 1, 2)).generate(requests)) for _ in range(2))
    assert first == second
    program = (
        "import importlib.util, sys, torch; torch.set_num_threads(int(sys.argv[2]));"
        "spec = importlib.util.spec_from_file_location('t', sys.argv[1]); t = importlib.util.module_from_spec(spec);"
        "spec.loader.exec_module(t);"
        "print([(g.request.id, g.sample, g.token_ids, g.logps, g.sampled_logps) for g in"
        " t.LocalEngine(t.make_model(), stop_ids=(0, 1, 2)).generate(t.make_requests(t.CUT, n=6))])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, __file__, str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    ).stdout
    ours = [(g.request.id, g.sample, g.token_ids, g.logps, g.sampled_logps) for g in first]
    assert printed.splitlines()[-1] == str(ours)


def test_each_prompt_is_computed_once_for_its_group(model):
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    requests = make_requests(lengths=(9, 4), n=8)
    list(LocalEngine(model, stop_ids=()).generate(requests))
    hook.remove()
    assert seen == [(2, 8)] + [(16, 1)] * 12


def test_modes_of_the_modules_are_restored_even_between_completions(model):
    model.train()
    model.lm_head.eval()
    before = {name: module.training for name, module in model.named_modules()}
    for _ in LocalEngine(model, stop_ids=(0, 1, 2)).generate(make_requests()):
        assert {name: module.training for name, module in model.named_modules()} == before
        assert torch.is_grad_enabled()
    model.eval()


def test_dropout_is_off_while_sampling():
    model = make_model("llama", attention_dropout=0.5, by_modules=True)
    calm = tokens(sampled(model, make_requests()))
    model.train()
    assert tokens(sampled(model, make_requests())) == calm


def test_the_model_trains_after_sampling(model):
    list(LocalEngine(model, stop_ids=()).generate(make_requests()))
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.lm_head.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_live_weights_are_sampled():
    model = make_model()
    engine = LocalEngine(model, stop_ids=())
    requests = make_requests()
    before = list(engine.generate(requests))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] += 1.0
    assert list(engine.generate(requests)) != before


def test_sync_takes_another_model():
    engine = LocalEngine(make_model(), stop_ids=())
    other = make_model(seed=1)
    engine.sync_weights(other, 1)
    requests = make_requests()
    assert list(engine.generate(requests)) == list(LocalEngine(other, stop_ids=()).generate(requests))


def test_broken_weights_are_an_error_that_names_the_request():
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="request 'p"):
        list(LocalEngine(model, stop_ids=()).generate(make_requests()))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", [], 1, FREE, seed=0), "request 'a': the prompt is empty"),
        (Request("a", [VOCAB], 1, FREE, seed=0), "outside the vocabulary"),
        (Request("a", [-1], 1, FREE, seed=0), "outside the vocabulary"),
        (Request("a", [5], 0, FREE, seed=0), "at least one completion"),
        (Request("a", [5] * 1020, 1, FREE, seed=0), "at most 4 can follow"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(model, request_, message):
    with pytest.raises(ValueError, match=message):
        list(LocalEngine(model, stop_ids=()).generate([request_]))


def test_a_sample_asked_for_twice_is_refused(model):
    (request,) = make_requests(lengths=(3,), n=2)
    with pytest.raises(ValueError, match="sample 1 is asked for 2 times"):
        list(LocalEngine(model, stop_ids=()).generate([request, replace(request, first_sample=1)]))


def test_models_this_engine_would_run_wrongly_are_refused(model):
    sliding = make_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="full attention only"):
        LocalEngine(sliding, stop_ids=())
    with pytest.raises(ValueError, match="stop_ids"):
        LocalEngine(model, stop_ids=(VOCAB,))


def test_no_requests_no_completions(model):
    assert list(LocalEngine(model, stop_ids=()).generate([])) == []


def test_micro_batches_keep_to_the_budget_and_groups_together():
    requests = [
        Request("short", [5] * 3, 4, FREE, seed=0),
        Request("long", [6] * 30, 4, FREE, seed=0),
        Request("greedy", [7] * 3, 2, GREEDY, seed=0),
        Request("huge", [8] * 8, 11, FREE, seed=0),
    ]
    batches = plan_batches(list_rows(requests), max_rows=5, max_cached_tokens=4 * 41)
    rows = [(row.request.id, row.sample) for batch in batches for row in batch]
    assert sorted(rows) == sorted((r.id, s) for r in requests for s in range(r.n))
    for batch in batches:
        assert len(batch) <= 5
        widest = count_cache_columns(max(row.n_prefix for row in batch), max(row.max_tokens for row in batch))
        assert len(batch) * widest <= 4 * 41
        assert len({row.sampling_key for row in batch}) == 1
        assert [row.n_prefix for row in batch] == sorted((row.n_prefix for row in batch), reverse=True)
    holding = {id: sum(any(row.request.id == id for row in batch) for batch in batches) for id in ("short", "long")}
    assert holding == {"short": 1, "long": 1}


def test_a_long_prompt_and_a_long_completion_need_their_sum():
    """Side by side they take 30 + 50 - 1 columns, though each alone takes fewer."""
    requests = [
        Request("prompt", [5] * 30, 2, Sampling(temperature=1.0, max_tokens=2), seed=0),
        Request("completion", [6] * 2, 2, Sampling(temperature=1.0, max_tokens=50), seed=0),
    ]
    assert [len(batch) for batch in plan_batches(list_rows(requests), max_rows=9, max_cached_tokens=4 * 79)] == [4]
    assert [len(batch) for batch in plan_batches(list_rows(requests), max_rows=9, max_cached_tokens=4 * 79 - 1)] == [
        2,
        2,
    ]


def test_rows_of_different_limits_share_a_batch(model):
    """Finished rows are computed beyond their own limit until it is looked up whether any has ended."""
    long, short = make_prompts((30, 2))
    requests = [
        Request("prompt", long, 3, Sampling(temperature=1.0, max_tokens=2), seed=0),
        Request("completion", short, 3, Sampling(temperature=1.0, max_tokens=50), seed=0),
    ]
    kept = tokens(sampled(model, requests, stop_ids=(), check_every=99))
    assert kept == tokens(sampled(model, requests, stop_ids=()))
    assert {name: len(ids) for (name, _), ids in kept.items()} == {"prompt": 2, "completion": 50}


def test_a_completion_over_the_budget_is_decoded_alone():
    """Its prompt and `max_tokens` need 14 columns: whatever the model can read is sampled."""
    requests = [Request(name, [5] * 3, 2, FREE, seed=0) for name in "ab"]
    batches = plan_batches(list_rows(requests), max_rows=4, max_cached_tokens=13)
    assert [[(row.request.id, row.sample) for row in batch] for batch in batches] == [
        [("a", 0)],
        [("a", 1)],
        [("b", 0)],
        [("b", 1)],
    ]


# --- the cache


@pytest.fixture
def allocated(monkeypatch):
    """The rows and columns of every cache that is allocated, in blocks of 4 columns; rows are expected to be short."""
    monkeypatch.setattr(batched_decoding, "BLOCK", 4)
    monkeypatch.setattr(decoding_rows, "EXPECTED_TOKENS", 4)
    sizes = []
    build, resize = ColumnCache.__init__, ColumnCache.resize

    def build_seen(self, n_rows, n_columns, *, width):
        sizes.append((n_rows, n_columns))
        build(self, n_rows, n_columns, width=width)

    def resize_seen(self, *, n_rows, first, n_columns):
        sizes.append((n_rows, n_columns))
        resize(self, n_rows=n_rows, first=first, n_columns=n_columns)

    monkeypatch.setattr(ColumnCache, "__init__", build_seen)
    monkeypatch.setattr(ColumnCache, "resize", resize_seen)
    return sizes


LONG = Sampling(temperature=1.0, max_tokens=40)
LONG_CUT = CUT.model_copy(update={"max_tokens": 40})


@pytest.mark.parametrize(("sampling", "check_every"), [(LONG, 1), (LONG_CUT, 5)], ids=["free", "cut, seen late"])
def test_rows_that_outgrow_the_cache_are_interrupted_and_go_on_as_they_would_have(
    model, allocated, monkeypatch, sampling, check_every
):
    requests = make_requests(sampling, n=4, lengths=(1, 9, 3))
    whole = sampled(model, requests, stop_ids=(0,))
    lengths = [len(g.token_ids) for g in whole.values()]
    assert min(lengths) < 20
    assert max(lengths) == 40
    interrupted = []
    add = decoding_rows.DecodingRow.add_tokens

    def add_seen(row, more):
        interrupted.append(len(row.made.token_ids))
        return add(row, more)

    monkeypatch.setattr(decoding_rows.DecodingRow, "add_tokens", add_seen)
    allocated.clear()
    small = sampled(model, requests, stop_ids=(0,), kv_cache_gib=gib_for(model, 120), check_every=check_every)
    assert tokens(small) == tokens(whole)
    assert {name: g.finish_reason for name, g in small.items()} == {n: g.finish_reason for n, g in whole.items()}
    assert_same_logps(small, whole)
    assert max(rows * columns for rows, columns in allocated) <= 120, "the cache holds no more than it may"
    assert max(interrupted) > 8, "rows must be interrupted more than once for this to mean something"
    assert len(allocated) > 10


def test_the_cache_grows_with_its_rows(model, allocated):
    (request,) = make_requests(LONG, lengths=(6,), n=8)
    made = sampled(model, [request], stop_ids=(0,))
    assert tokens(made) == tokens(sampled(model, [request], stop_ids=(0,), max_rows=1))
    longest = max(len(g.token_ids) for g in made.values())
    assert longest == 40, "rows must grow for this to mean something"
    by_rows = [size for size in allocated[:11] if size[0] > 1 or size == allocated[0]]
    assert by_rows[0] == (8, 6 + 4 - 1)
    assert [columns for _, columns in allocated[:10]] == [6 - 1 + n for n in range(4, 41, 4)]
    rows = [n_rows for n_rows, _ in allocated[:10]]
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 8, "what finished rows held is free"


def test_a_row_alone_over_the_budget_is_decoded_to_its_end(model, allocated):
    (request,) = make_requests(LONG, lengths=(9,), n=2)
    whole = tokens(sampled(model, [request], stop_ids=()))
    allocated.clear()
    assert tokens(sampled(model, [request], stop_ids=(), kv_cache_gib=gib_for(model, 20))) == whole
    assert {rows for rows, columns in allocated if rows * columns > 20} == {1}


def test_a_streamed_completion_outgrows_its_first_columns(model, allocated):
    (request,) = make_requests(LONG, lengths=(9,), n=1)
    engine = LocalEngine(model, stop_ids=())
    (whole,) = engine.generate([request])
    assert list(engine.stream_tokens(request)) == whole.token_ids
    assert len(whole.token_ids) == 40


@pytest.mark.parametrize("prefill_tokens", [1, 20, 50])
def test_prompts_are_read_in_passes_of_few_tokens(model, prefill_tokens):
    """Several short prompts in a pass, and a long one in pieces."""
    requests = make_requests(lengths=(1, 23, 9, 3, 17, 3, 9))
    whole = sampled(model, requests)
    seen = []
    hook = model.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine = LocalEngine(model, stop_ids=(0, 1, 2), prefill_tokens=prefill_tokens, kv_cache_gib=gib_for(model, 10_000))
    made = {(g.request.id, g.sample): g for g in engine.generate(requests)}
    hook.remove()
    assert tokens(made) == tokens(whole)
    assert_same_logps(made, whole)
    passes = list(itertools.takewhile(lambda shape: shape[0] < len(made), seen))
    assert max(rows * columns for rows, columns in passes) <= prefill_tokens
    assert sum(rows * columns for rows, columns in passes) >= sum(len(request.prompt_ids) - 1 for request in requests)


def test_a_long_prompt_is_read_without_a_large_mask(monkeypatch):
    """The first piece has causal attention without a mask; the others one of all columns for each of their tokens."""
    monkeypatch.setattr(column_cache, "MAX_MASK", 200)
    model = make_model(by_modules=True)
    requests = make_requests(lengths=(51,), n=2)
    whole = sampled(model, requests)
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watch(query, key, value, attn_mask=None, **rest):
        masks.append((query.shape[2], None if attn_mask is None else attn_mask.shape[2] * attn_mask.shape[3]))
        return attend(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    made = sampled(model, requests, prefill_tokens=20)
    assert tokens(made) == tokens(whole)
    assert_same_logps(made, whole)
    first, *others = masks[: 2 * 9 : 2]  # of one of two layers, before the first step
    assert first == (20, None)
    assert [n for n, _ in others] == [4] * 7 + [2]
    assert all(n_masked is not None and n_masked <= 200 for _, n_masked in others)
    assert LocalEngine(model, stop_ids=()).prefill_tokens == 16_384
    monkeypatch.undo()
    assert column_cache._split_prefix(32_768, 16_384) == [16_384, *[2_048] * 8]


# --- precision


def test_a_bfloat16_model_gives_log_probs_of_its_own_logits_in_fp32():
    model = make_model(by_modules=True).bfloat16()
    for generation in sampled(model, make_requests(LONG_CUT)).values():
        logits = full_logits(model, generation).float() / 0.7
        drawn = torch.tensor(generation.token_ids)[:, None]
        policy = logits.log_softmax(-1).gather(1, drawn)[:, 0]
        ours = torch.tensor(generation.logps)
        # Keys and values are rounded to 8 bits; the probabilities themselves are not.
        torch.testing.assert_close(ours, policy, atol=0.15, rtol=0.05)
        assert len(ours) < 5 or (ours != ours.bfloat16().float()).any()


@pytest.mark.parametrize("by_modules", [True, False], ids=["modules", "else fused"])
def test_under_autocast_an_fp32_model_samples_as_its_layers_then_compute(by_modules):
    torch.manual_seed(0)
    model = FAMILIES["qwen3"][1](FAMILIES["qwen3"][0](**SIZES | FAMILIES["qwen3"][2])).eval()
    if by_modules:
        model.model.norm.register_forward_hook(lambda *_: None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = sampled(model, make_requests())
        assert count_cache_bytes(model) * 2 == 2 * 2 * 2 * 8 * 2 * 2
        for generation in made.values():
            policy = full_logits(model, generation).float().log_softmax(-1)
            policy = policy.gather(1, torch.tensor(generation.token_ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(generation.logps), policy, atol=0.15, rtol=0.05)
