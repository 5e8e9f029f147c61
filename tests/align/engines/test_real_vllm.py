"""The vllm engine with real servers, in vLLM's own environment (`qwen-align engines install vllm`); `make engines`.

It also records what the servers are asked and answer, which the tests of CI replay. Servers that run already are taken
from TIED_VLLM_URL and UNTIED_VLLM_URL.
"""

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from qwen_align.align.engines.vllm_server import Place, ServedModel, run_servers
from qwen_align.align.errors import StageError
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.generation.vllm import VllmEngine, WrittenPolicy, compute_text_logps, write_policy
from qwen_align.align.models import loading
from qwen_align.align.settings.sampling import Sampling
from qwen_align.data_builders.arithmetic import Arithmetic
from tests.align.engines.recorded_server import record
from tests.align.engines.scenario import BASE, MAX_TOKENS, load_policy, open_engine, run_updates, teacher_force
from tests.align.engines.test_vllm_engine import TIED, TOLERANCE, UNTIED, find_largest_difference

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, str]]:
    """{whether the head is tied: the address of a server}."""
    given = {True: os.environ.get("TIED_VLLM_URL"), False: os.environ.get("UNTIED_VLLM_URL")}
    folder = tmp_path_factory.mktemp("untied")
    load_policy(tied=False).save_pretrained(folder)
    loading.copy_tokenizer_files(BASE, folder)
    models = [ServedModel(path, "fp32", MAX_TOKENS, 64, 1024, 2**26) for path in (BASE, folder)]
    place = Place((), 0.9, can_sleep=False)
    if all(given.values()):
        yield {tied: str(url) for tied, url in given.items()}
        return
    tied, untied = (
        run_servers(model, [place], folder / "logs" / str(number), time_limit_s=1200, report=print)
        for number, model in enumerate(models)
    )
    with tied as one, untied as other:
        yield {True: one[0], False: other[0]}


@pytest.mark.parametrize(("name", "tied"), [(TIED, True), (UNTIED, False)])
def test_after_every_update_the_log_probs_are_the_policys(
    urls: dict[bool, str], name: str, tied: bool, tmp_path: Path
) -> None:
    """And the recording of it is made. vLLM's own reload of weights leaves a tied head behind."""
    with record(urls[tied], name) as url:
        engine = open_engine(url, tmp_path)
        assert engine.client.read_version() == ["0.32.0"]
        assert engine.client.call_workers("describe_weight_updates") == [{"protocol": "1", "dtype": "float32"}]
        updates = run_updates(engine, tied=tied)
        base = write_policy(load_policy(tied=tied), engine.request, tmp_path / "weights-0", 9)
        reload_weights(url, tmp_path / "weights-0")
        if tied:
            with pytest.raises(StageError, match="the engine's weights are not the policy's"):
                engine.load_policy(WrittenPolicy(None, 9, base.logps))
        else:
            engine.load_policy(WrittenPolicy(None, 9, base.logps))
    largest = find_largest_difference(updates)
    print(f"{name}: log-probs of {sum(len(u.generations) for u in updates)} completions within {largest:.2g}")
    assert largest < TOLERANCE


def reload_weights(url: str, folder: Path) -> None:
    """Calls vLLM's own method."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
    connection.request("POST", "/collective_rpc", json.dumps(asked), {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200


@pytest.fixture
def base_engine(urls: dict[bool, str], tmp_path: Path) -> VllmEngine:
    """The engine with the embedded base."""
    engine = open_engine(urls[True], tmp_path)
    engine.sync_weights(load_policy(tied=True), 0)
    return engine


def draw_both(
    engine: VllmEngine, sampling: Sampling, n_questions: int
) -> tuple[list[Request], list[list[Generation]], LocalEngine]:
    """What vLLM and the local engine draw for the same questions, in order."""
    renderer = loading.load_renderer(BASE)
    local = LocalEngine(load_policy(tied=True), stop_ids=renderer.stop_ids)
    rows = list(Arithmetic(rows="problem", n=n_questions, steps=[1, 2]).generate(5))
    prompts = [renderer.render_prompt(row.messages, mode=None, flag=None).ids for row in rows]
    requests = [Request(str(place), ids, 1, sampling, seed=1) for place, ids in enumerate(prompts)]
    both = [sorted(one.generate(requests), key=lambda each: int(each.request.id)) for one in (engine, local)]
    return requests, both, local


def test_greedy_answers_are_the_same_but_for_near_ties(base_engine: VllmEngine) -> None:
    _, (drawn, local), engine = draw_both(base_engine, Sampling(temperature=0.0, max_tokens=40), 100)
    different = [pair for pair in zip(drawn, local, strict=True) if pair[0].token_ids != pair[1].token_ids]
    print(f"greedy: {100 - len(different)} of 100 answers are the same")
    assert len(different) <= 1
    for one, other in different:
        place = next(i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)) if a != b)
        ids = [*one.request.prompt_ids, *one.token_ids[:place]]
        logits = engine.model(input_ids=torch.tensor([ids])).logits[0, -1]
        assert abs(float(logits[one.token_ids[place]] - logits[other.token_ids[place]])) < 1e-3, "a near tie"


def test_sampled_tokens_have_the_frequencies_of_the_policy(base_engine: VllmEngine) -> None:
    """The first token of 2,000 draws against its probabilities: a chi-squared test of the twenty likeliest."""
    renderer = loading.load_renderer(BASE)
    prompt, sampling = renderer.encode("What is"), Sampling(temperature=1.5, max_tokens=1)
    drawn = list(base_engine.generate([Request("p", prompt, 2000, sampling, seed=11)]))
    with torch.no_grad():
        logits = load_policy(tied=True)(input_ids=torch.tensor([prompt])).logits[0, -1]
    probabilities = (logits / 1.5).softmax(-1)
    likeliest = probabilities.topk(20).indices.tolist()
    counts = torch.tensor([sum(one.token_ids[0] == token for one in drawn) for token in likeliest])
    counts = torch.cat([counts, (2000 - counts.sum())[None]]).double()
    expected = 2000 * torch.cat([probabilities[likeliest], (1 - probabilities[likeliest].sum())[None]]).double()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 45.3, "0.1 % of sound draws are beyond with 20 degrees of freedom"


def test_the_same_weights_draw_the_same_again_and_samples_in_parts_too(base_engine: VllmEngine) -> None:
    prompt, sampling = [5, 6, 7], Sampling(temperature=1.0, max_tokens=12)
    drawn = list(base_engine.generate([Request("p", prompt, 6, sampling, seed=2)]))
    again = list(base_engine.generate([Request("p", prompt, 4, sampling, seed=2, first_sample=2)]))
    assert [one.token_ids for one in drawn[2:]] == [one.token_ids for one in again]
    assert len({tuple(one.token_ids) for one in drawn}) > 1
    assert compute_text_logps(load_policy(tied=True), base_engine.request)
    model = load_policy(tied=True)
    assert all(
        abs(a - b) < TOLERANCE for one in drawn for a, b in zip(one.logps, teacher_force(model, one), strict=True)
    )
