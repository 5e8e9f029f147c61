"""Engines are listed as their environments say."""

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
    monkeypatch.setattr(engines, "list_engines", lambda: listed)
    assert list(engines.check_engines()) == [
        Finding("engine", "vllm: installed: vllm 0.32.0"),
        Finding("engine", "llama_cpp: not installed: tested: 0.3.36 (qwen-align engines install llama_cpp)"),
        Finding("engine", "llmcompressor: outdated: 0.13", "qwen-align engines install llmcompressor"),
    ]
