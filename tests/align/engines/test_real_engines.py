"""Each engine does its work from the environment that was installed: `make engines`."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.engines.environments import find_engine_python

pytestmark = pytest.mark.engine
BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
START_LIMIT_S = 500  # it takes 40 s on two quiet cores
# One thread that sleeps while it waits: with more, vLLM's processes wait for each other on busy cores.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def run_in_engine(name: str, program: str, *arguments: object) -> str:
    """Runs a program in an engine's Python and returns what it prints."""
    command = [str(find_engine_python(name)), "-P", "-c", program, *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[str]:
    """A vLLM server of a model folder on the loopback interface; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(find_engine_python("vllm")),
        "-P",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--served-model-name", "base"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | ENVIRONMENT
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_LIMIT_S
            while not answers(f"{url}/health"):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers; one that is still starting ignores SIGTERM
            process.wait()


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def ask(url: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        loaded: dict[str, Any] = json.load(answer)
    return loaded


def test_vllm_draws_what_the_model_says(tmp_path: Path) -> None:
    """Greedy tokens and their log-probs against transformers, given the same tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [5, 17, 60, 9, 33]
    with serve(BASE, tmp_path / "vllm.log") as url:
        asked = {"model": "base", "prompt": [prompt], "max_tokens": 16, "temperature": 0.0, "logprobs": 0}
        (choice,) = ask(f"{url}/v1/completions", **asked, return_token_ids=True, ignore_eos=True)["choices"]
    tokens = choice["token_ids"]
    assert len(tokens) == 16
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert log_probs.argmax(-1).tolist() == tokens
    expected = log_probs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(choice["logprobs"]["token_logprobs"]), expected, atol=1e-4, rtol=0)


def test_llmcompressor_quantises_a_model(tmp_path: Path) -> None:
    program = (
        "import sys; from llmcompressor import oneshot; from llmcompressor.modifiers.quantization import "
        "QuantizationModifier; from transformers import AutoModelForCausalLM; "
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype='float32'); "
        "recipe = QuantizationModifier(targets='Linear', scheme='FP8_DYNAMIC', ignore=['lm_head']); "
        "oneshot(model=model, recipe=recipe); "
        "model.save_pretrained(sys.argv[2], save_compressed=True)"
    )
    run_in_engine("llmcompressor", program, BASE, tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    before, after = BASE / "model.safetensors", tmp_path / "quantised" / "model.safetensors"
    assert after.stat().st_size < before.stat().st_size


def test_llama_cpp_is_compiled_without_amx() -> None:
    said = run_in_engine("llama_cpp", "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())")
    assert "AVX2 = 1" in said
    assert "AMX" not in said
