"""Engines of their own environments are listed as these say, where there are such."""

import sys
from types import SimpleNamespace

import pytest

from qwen_align.align.doctor import engines
from qwen_align.align.doctor.finding import Finding


def test_engines_are_told_as_their_environments_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(name: str, state: str, found: str, advice: str = "") -> SimpleNamespace:
        return SimpleNamespace(name=name, state=state, found=found, advice=advice)

    listed = [
        engine("vllm", "installed", "vllm 0.32.0"),
        engine("llama_cpp", "not installed", "tested: 0.3.36", "qwen-align engines install llama_cpp"),
        engine("llmcompressor", "outdated", "0.13", "qwen-align engines install llmcompressor"),
    ]
    monkeypatch.setitem(sys.modules, engines._ENVIRONMENTS, SimpleNamespace(list_engines=lambda: listed))
    assert list(engines.check_engines()) == [
        Finding("engine", "vllm: installed: vllm 0.32.0"),
        Finding("engine", "llama_cpp: not installed: tested: 0.3.36 (qwen-align engines install llama_cpp)"),
        Finding("engine", "llmcompressor: outdated: 0.13", "qwen-align engines install llmcompressor"),
    ]


def test_a_version_without_them_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ENVIRONMENTS", "qwen_align.align.none.environments")
    assert list(engines.check_engines()) == []
