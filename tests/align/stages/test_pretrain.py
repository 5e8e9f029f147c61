"""The pretraining loop on a model of a few thousand parameters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError, Preempted, StageError
from qwen_align.align.models import loading
from qwen_align.align.rows import to_json_line
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import pretrain
from qwen_align.data_builders.arithmetic import Arithmetic

SMALL: dict[str, Any] = {
    "kind": "pretrain",
    "name": "base",
    "from_data": "text",
    "architecture": {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 16},
    "tokenizer": {"vocab_size": 330, "texts": 50},
    "batch": 4,
    "sequence_length": 32,
    "steps": 12,
    "warmup_steps": 2,
    "log_every": 5,
}


def settings(**changes: Any) -> Pretrain:
    return Pretrain.model_validate(SMALL | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    # So few that twelve steps need a second epoch.
    rows = Arithmetic(rows="text", n=25, steps=[1, 2]).generate(0)
    (folder / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(spec: Pretrain, data: Path, out: Path, seed: int = 0, stop_after: int | None = None) -> dict[str, Any]:
    """A run of the stage; with `stop_after` it is asked to stop after so many steps."""
    out.mkdir(exist_ok=True)
    context = Context(out, seed, Runtime(checkpoint_every=4))
    if stop_after is not None:
        context.is_stop_requested = stop_when(context, stop_after)  # type: ignore[method-assign]
    return pretrain.run(spec, {"text": data}, out, context)


def stop_when(context: Context, calls: int) -> Callable[[], bool]:
    asked = iter(range(1, 1000))

    def stopping() -> bool:
        context._is_asked_to_stop = next(asked) == calls
        return context._is_asked_to_stop

    return stopping


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_stopped_and_continued_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    spec = settings()
    summary = run(spec, data, tmp_path / "whole")
    with pytest.raises(Preempted):
        run(spec, data, tmp_path / "parts", stop_after=3)
    with pytest.raises(Preempted):
        run(spec, data, tmp_path / "parts", stop_after=6)
    assert run(spec, data, tmp_path / "parts") == summary
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    metrics = [(tmp_path / part / "metrics.jsonl").read_text() for part in ("whole", "parts")]
    assert metrics[0] == metrics[1]


def test_killed_after_a_checkpoint_equals_uninterrupted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = settings()
    run(spec, data, tmp_path / "whole")
    # The kill: step 11 never ends. The last checkpoint is of step 8, and step 10 has been logged.
    step, done = pretrain.train_on_batch, iter(range(1, 1000))

    def killed(*args: Any) -> torch.Tensor:
        if next(done) == 11:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(pretrain, "train_on_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(spec, data, tmp_path / "killed")
    monkeypatch.undo()
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-8" / pretrain.STATE).exists()
    run(spec, data, tmp_path / "killed")
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 12]


def test_seeds_differ(data: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(settings(), data, tmp_path / str(seed), seed=seed)
    assert not same_weights(tmp_path / "0", tmp_path / "1")


def test_the_loss_falls_and_the_summary_counts(data: Path, tmp_path: Path) -> None:
    summary = run(settings(steps=60, log_every=10), data, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 1
    assert summary["loss"] == losses[-1]
    assert (summary["documents"], summary["tokens"]) == (25, 60 * 4 * 32)


def test_the_model_folder_loads_and_knows_where_to_stop(data: Path, tmp_path: Path) -> None:
    summary = run(settings(), data, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    assert model.dtype == torch.float32
    assert model.num_parameters() == summary["parameters"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(tokenizer) == summary["vocabulary"]
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert model.generation_config.eos_token_id == ends


def test_a_later_stage_finds_the_model_in_the_stages_folder(data: Path, tmp_path: Path) -> None:
    run(settings(), data, tmp_path)
    renderer = loading.load_renderer(tmp_path)
    model = loading.load_model(tmp_path)
    assert model.get_input_embeddings().num_embeddings >= renderer.tokenizer.get_vocab_size()


def test_every_row_of_a_batch_opens_with_a_document() -> None:
    documents = [[index, 100, 101, 102, 103][: 2 + index % 4] for index in range(40)]
    spec = settings(batch=3, sequence_length=9)
    batches = pretrain.stream_batches(documents, spec, seed=0)
    rows = torch.cat([next(batches) for _ in range(10)]).tolist()
    for row in rows:
        assert len(row) == 10
        while len(row) >= 5:  # whole documents follow one another up to the cut
            document = documents[row[0]]
            assert row[: len(document)] == document
            row = row[len(document) :]


def test_an_epoch_reads_each_document_once_and_the_next_in_another_order() -> None:
    documents = [[index, 100] for index in range(30)]
    batches = pretrain.stream_batches(documents, settings(batch=1, sequence_length=9), seed=0)
    epochs = [[token for _ in range(6) for token in next(batches)[0].tolist() if token < 100] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(30))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (2, 0.5, [0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
        (0, 0.0, [1] * 10),
        (0, 1.0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_rate_warms_up_and_decays(warmup: int, decay: float, expected: list[float]) -> None:
    spec = settings(steps=10, warmup_steps=warmup, decay_share=decay)
    assert [pretrain.compute_rate_factor(spec, step) for step in range(1, 11)] == pytest.approx(expected)


def test_muon_gets_the_matrices_of_the_layers_and_adamw_all_the_rest(data: Path) -> None:
    spec = settings()
    tokenizer = pretrain.train_tokenizer(["some text"], 300)
    model = pretrain.Qwen3ForCausalLM(pretrain.build_model_config(spec.architecture, tokenizer))
    muon, adamw = (
        [p for group in o.param_groups for p in group["params"]] for o in pretrain.build_optimizers(spec, model)
    )
    assert len(muon) == 7  # q, k, v, o, gate, up, down
    assert {id(p) for p in muon}.isdisjoint(id(p) for p in adamw)
    assert len(muon) + len(adamw) == len(list(model.parameters()))


def test_a_diverged_loss_ends_the_stage(data: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="step 5: the loss is nan; lower"):
        run(settings(adamw={"lr": 1e30}), data, tmp_path)


def test_other_rows_and_too_few_are_refused(tmp_path: Path) -> None:
    for rows, said in (("problem", "1: a 'problem' row; pretrain reads text rows"), ("text", "do not fill one batch")):
        folder = tmp_path / rows
        folder.mkdir()
        (row,) = Arithmetic.model_validate({"rows": rows, "n": 1, "steps": [1]}).generate(0)
        (folder / "rows.jsonl").write_text(to_json_line(row) + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=said):
            run(settings(), folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sequence_length": 2000}, "more than architecture.max_tokens"),
        ({"warmup_steps": 12}, "leaves none of 12 steps"),
        ({"architecture": {"heads": 3, "kv_heads": 2}}, "multiple of kv_heads"),
        ({"architecture": {"head_dim": 7}}, "even number"),
        ({"sequence_lenght": 8}, "Did you mean 'sequence_length'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**wrong)
