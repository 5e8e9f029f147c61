"""Processes sum a tensor within a time limit, and what goes wrong is worded by its phase."""

import json
from typing import Any

import pytest

from qwen_align.align.doctor import all_reduce
from qwen_align.align.doctor.all_reduce import Exchange, judge_exchange, run_processes
from qwen_align.align.pipeline.coordinator import find_free_port

LOCAL = "127.0.0.1"
DONE = {"phase": "done", "seconds": 0.5, "bytes": 16_777_216}
TWO_NODES = Exchange("gloo", [1, 1], "gpu01", 29400)


def judge(exchange: Exchange, *said: list[dict[str, Any]]) -> Any:
    (finding,) = judge_exchange(exchange, said)
    return finding


def test_ranks_are_given_out_node_by_node() -> None:
    exchange = Exchange("nccl", [2, 3], "gpu01", 29400)
    tasks = [exchange.build_task(node) for node in (0, 1)]
    assert [(task["first_rank"], task["n_local"], task["world"]) for task in tasks] == [(0, 2, 5), (2, 3, 5)]


def test_the_slowest_process_says_the_speed() -> None:
    finding = judge(TWO_NODES, [DONE], [{**DONE, "seconds": 2.0}])
    assert finding.found == "2 processes on 2 nodes: sums right, 17 MB in 2.000 s (0.01 GB/s)"
    assert finding.state == "ok"
    alone = judge(Exchange("nccl", [1], LOCAL, 1), [DONE])
    assert alone.found.endswith("nobody to exchange with")


@pytest.mark.parametrize(
    ("exchange", "phase", "advice"),
    [
        (TWO_NODES, "meets", "is gpu01:29400 open between the nodes? Set GLOO_SOCKET_IFNAME"),
        (TWO_NODES, "sums", "ports that gloo chooses have to be open"),
        (TWO_NODES, "imports", "does `python -c 'import torch'` end?"),
        (TWO_NODES, "compares", "do not train here"),
        (TWO_NODES._replace(backend="nccl"), "sums", "run with NCCL_DEBUG=INFO"),
    ],
)
def test_what_to_do_follows_from_the_phase(exchange: Exchange, phase: str, advice: str) -> None:
    said = judge(exchange, [DONE], [{"phase": phase, "error": "RuntimeError: x"}])
    assert said.is_bad
    assert f"a process on node 1 failed while it {phase}: RuntimeError: x" in said.found
    assert advice in said.advice
    hung = judge(exchange, [{"phase": phase}], [DONE])
    assert hung.is_bad
    assert "no end within" in hung.found


def test_an_error_is_told_before_a_process_that_waits_for_the_failed_one() -> None:
    said = judge(TWO_NODES, [{"phase": "meets"}], [{"phase": "imports", "error": "ImportError: y"}])
    assert "ImportError: y" in said.found


@pytest.mark.slow(seconds=15)
def test_two_processes_sum_over_gloo() -> None:
    exchange = Exchange("gloo", [2], LOCAL, find_free_port())
    finding = judge(exchange, run_processes(**exchange.build_task(0)))
    assert finding.state == "ok", finding
    assert finding.found.startswith("2 processes: sums right")


@pytest.mark.slow(seconds=15)
def test_a_process_that_never_comes_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "LIMIT_S", 12.0)
    task = Exchange("gloo", [1, 1], LOCAL, find_free_port()).build_task(0)
    said = run_processes(**{**task, "nodes": 1})
    assert [one["phase"] for one in said] in (["meets"], ["imports"])  # the latter where importing torch takes longer
    assert judge(TWO_NODES, said, [DONE]).is_bad


@pytest.mark.slow(seconds=5)
def test_a_wrong_sum_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from torch import distributed

    from qwen_align.align.doctor.all_reduce_process import main

    monkeypatch.setattr(distributed, "all_reduce", lambda part: part[:1].add_(1))
    task = {"backend": "gloo", "rank": 0, "world": 1, "device": 0, "address": LOCAL, "port": find_free_port()}
    try:
        with pytest.raises(SystemExit):
            main(task)
    finally:
        distributed.destroy_process_group()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"phase": "compares", "error": "ArithmeticError: the sum differs from what it has to be"}
    assert "do not train here" in judge(Exchange("gloo", [1], LOCAL, 1), [said]).advice
