"""The rows, renderers and lengths of a plan as far as they can be known before anything runs; nothing is written."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.generation.requests import render_problem
from qwen_align.align.models.model_files import find_base
from qwen_align.align.pipeline.plan import Plan, Planned
from qwen_align.align.references import ModelRef, find_references
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Problem, Row, read_rows
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.store.files import read_json
from qwen_align.data_builders.sieve import Drops


class Unknown(Exception):
    """Data that a stage has yet to make; the message names it."""


class Preview:
    """What stages will read, built or rendered once for all who ask."""

    def __init__(self, planned: Plan) -> None:
        self.planned = planned
        self._by_name = {stage.name: stage for stage in planned.stages}
        self._rows: dict[str, list[Row]] = {}
        self._renderers: dict[Path, Renderer] = {}
        self._lengths: dict[tuple[Path, int, str | None], int] = {}
        self.drops: dict[str, Drops] = {}

    def rows(self, name: str) -> list[Row]:
        """Returns the rows of a data stage, read if stored, else built; raises Unknown when a rollout comes first."""
        if name not in self._rows:
            stage = self._by_name[name]
            list_rows = STAGE_KINDS[stage.kind].list_rows
            if stage.is_stored:
                self._rows[name] = list(read_rows(stage.folder.path / "rows.jsonl"))
            elif list_rows is None:
                raise Unknown(name)
            else:
                self.drops[name] = Drops()
                self._rows[name] = import_function(list_rows)(stage, self._read_sources(stage), self.drops[name])
        return self._rows[name]

    def count_rows(self, name: str) -> int | None:
        """Returns how many rows a data stage has, or will have if all are kept; None if nobody can say yet."""
        try:
            return len(self.rows(name))
        except Unknown:
            return self._by_name[name].settings.expected_rows()

    def rows_read_by(self, stage: Planned, refs: Iterable[str]) -> Iterator[Row]:
        """Yields the rows behind a stage's data references, in their order."""
        return chain.from_iterable([self.rows(stage.targets[ref]) for ref in refs])

    def renderer(self, stage: Planned) -> Renderer:
        """Returns the renderer of the model a stage reads."""
        folder = self._find_tokenizer_folder(stage)
        if folder not in self._renderers:
            self._renderers[folder] = Renderer.load(folder)
        return self._renderers[folder]

    def prompt_length(self, stage: Planned, problem: Problem, switch: Switch | None) -> int:
        """Returns the tokens of a problem's prompt; rendered once for all stages with the same template."""
        asked = None if switch is None else switch.model_dump_json()
        name = (self._find_tokenizer_folder(stage), id(problem), asked)  # rows live as long as the preview does
        if name not in self._lengths:
            self._lengths[name] = len(render_problem(problem, self.renderer(stage), switch).prompt.ids)
        return self._lengths[name]

    def check_context_length(self, stage: Planned, tokens: int, what: str) -> None:
        """Raises RecipeError when the model has fewer positions than the longest sequence of the stage."""
        positions = read_json(self._find_tokenizer_folder(stage) / "config.json").get("max_position_embeddings")
        if isinstance(positions, int) and tokens > positions:
            raise RecipeError(
                f"{what} takes up to {tokens} tokens, but the model has {positions} positions; lower max_tokens"
            )

    def _read_sources(self, stage: Planned) -> dict[str, Callable[[], Iterator[Row]]]:
        def reader(rows: list[Row]) -> Callable[[], Iterator[Row]]:
            return lambda: iter(rows)

        if stage.missing:
            raise Unknown(f"{stage.missing} is there")
        return {ref: reader(self.rows(target)) for ref, target in stage.targets.items()}

    def _find_tokenizer_folder(self, stage: Planned) -> Path:
        """Returns where the tokenizer of the model a stage reads comes from, followed back; raises Unknown."""
        (_, ref), *_ = (place for place in find_references(stage.settings) if isinstance(place[1], ModelRef))
        maker = self._by_name.get(stage.targets[ref])
        if maker is not None and not STAGE_KINDS[maker.kind].makes_tokenizer:
            return self._find_tokenizer_folder(maker)
        folder = Path(stage.inputs[ref]["folder"])
        if maker is not None:
            if not maker.is_stored:
                raise Unknown(maker.name)
            folder = folder / "model"
        base = None if str(folder).startswith("hub:") else find_base(folder)
        if base is None:
            raise Unknown("the hub model is downloaded")
        return base
