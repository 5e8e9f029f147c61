from qwen_align.align.generation.engine import Request, compute_request_seed, compute_sample_key
from qwen_align.align.settings.sampling import Sampling

FREE = Sampling(temperature=1.0, max_tokens=5)


def test_no_two_samples_share_a_key():
    requests = [
        Request(id, [1], 8, FREE, seed=seed, step=step)
        for id in ("p1", "p11", "1")
        for seed in (0, 1, 11)
        for step in (0, 1, 11)
    ]
    keys = [compute_sample_key(request, sample) for request in requests for sample in request.sample_numbers]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_a_key_is_the_same_in_every_process_and_release():
    """A literal: a killed run resumed by another process or version must draw on."""
    assert compute_sample_key(Request("p1", [1], 4, FREE, seed=3, step=2), 1) == 3038311910848415849
    assert compute_request_seed(Request("p1", [1], 4, FREE, seed=3, step=2)) == 4470190327620490026


def test_the_seed_of_a_request_is_the_same_whichever_of_its_samples_are_asked_for():
    """And leaves room to count on: vLLM gives sample i the seed plus i."""
    one = Request("p1", [1], 8, FREE, seed=3, step=2)
    later = Request("p1", [1], 2, FREE, seed=3, step=2, first_sample=6)
    assert compute_request_seed(one) == compute_request_seed(later)
    others = [Request("p2", [1], 8, FREE, seed=3, step=2), Request("p1", [1], 8, FREE, seed=4, step=2)]
    others.append(Request("p1", [1], 8, FREE, seed=3, step=3))
    seeds = {compute_request_seed(each) for each in (one, *others)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**62 for seed in seeds)
