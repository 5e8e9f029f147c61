"""What the package offers: every builder by its kind, alike in use, and quick to import."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from qwen_align import data_builders
from qwen_align.align.references import find_references
from qwen_align.data_builders import Builder, BuilderSettings, LocalFile, Pairs, ThinkMix

BUILDERS: TypeAdapter[Builder] = TypeAdapter(BuilderSettings)


def test_builders_are_told_apart_by_kind() -> None:
    assert isinstance(BUILDERS.validate_python({"kind": "pairs", "from_data": "rollouts"}), Pairs)
    assert isinstance(BUILDERS.validate_python({"kind": "local_file", "path": "x.jsonl", "rows": "text"}), LocalFile)
    with pytest.raises(ValidationError, match=r"'pair' found .* expected tags: 'arithmetic', 'hub', 'local_file'"):
        BUILDERS.validate_python({"kind": "pair"})


@pytest.mark.parametrize("builder", get_args(Builder), ids=lambda builder: builder.__name__)
def test_every_builder_is_built_alike_and_exported(builder: type[BaseModel]) -> None:
    assert list(inspect.signature(builder.build).parameters) == ["self", "sources", "seed", "drops"]  # type: ignore[attr-defined]
    assert builder.__name__ in data_builders.__all__


def test_references_are_found() -> None:
    mix = ThinkMix.model_validate({"from_rollout": "a", "from_chats": "b", "from_texts": "c"})
    assert list(find_references(mix)) == [("from_rollout", "a"), ("from_chats", "b"), ("from_texts", "c")]
    assert list(find_references(Pairs.model_validate({"from_data": "a"}))) == [("from_data", "a")]


def test_import_is_light() -> None:
    code = (
        "import sys; import qwen_align.data_builders; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
