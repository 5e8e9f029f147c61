"""A preference loss is added with one function, one line of the table and one member of the Literal, and trains."""

import json
from pathlib import Path

import pytest

from tests.evidence.planting import Copy

TABLE, SETTINGS = "align/training/preference_losses.py", "align/settings/dpo.py"
FUNCTION = '''def compute_toy(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """Returns beta times how much likelier the rejected side is, per token."""
    return beta * (logps.rejected / logps.n_rejected_tokens - logps.chosen / logps.n_chosen_tokens)


PREFERENCE_LOSSES = {
    "toy": PreferenceLoss(compute=compute_toy, needs_reference=False),
'''
ROW = {
    "row": "pair",
    "chosen": {"role": "assistant", "content": "2"},
    "rejected": {"role": "assistant", "content": "no"},
    "mode": "no_think",
    "flag": "/no_think",
}
TRAIN = """
import json, sys
from pathlib import Path
from qwen_align.align.context import Context
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import dpo
base, folder = map(Path, sys.argv[1:])
stage = {"name": "dpo", "kind": "dpo", "from_model": "base", "from_data": ["pairs"], "max_tokens": 256, "batch": 2,
         "epochs": 2, "beta": 0.5, "learning_rate": 1e-3, "schedule": "constant", "loss": "toy"}
context = Context(folder, 0, Runtime(device="cpu"))
dpo.run(Dpo.model_validate(stage), {"base": base, "pairs": folder}, folder, context)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("toy"))


@pytest.mark.slow
def test_a_toy_loss_trains(copy: Copy, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{**ROW, "id": f"p{n}", "messages": [{"role": "user", "content": f"{n} + 1?"}]} for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (
        copy.planted(TABLE, "PREFERENCE_LOSSES = {\n", FUNCTION),
        copy.planted(SETTINGS, 'Literal["sigmoid", ', 'Literal["toy", "sigmoid", '),
    ):
        ended = copy.python("-c", TRAIN, str(tiny_model), str(tmp_path), limit_s=300)
        assert ended.code == 0, ended.said
        losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert len(losses) == 2
        assert losses[1] < losses[0]
        tested = copy.python(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "preference",
            "tests/architecture/test_registries.py",
            limit_s=300,
        )
        assert tested.code == 0, tested.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (TABLE, "PREFERENCE_LOSSES = {\n", FUNCTION, "the Literal of Dpo.loss has no 'toy'"),
        (SETTINGS, 'Literal["sigmoid", ', 'Literal["toy", "sigmoid", ', "PREFERENCE_LOSSES has no 'toy'"),
    ],
)
def test_one_of_the_two_left_out_is_named(copy: Copy, file: str, old: str, new: str, said: str) -> None:
    with copy.planted(file, old, new):
        tested = copy.python(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "preference",
            "tests/architecture/test_registries.py",
            limit_s=300,
        )
        assert tested.code == 1
        assert said in tested.said
