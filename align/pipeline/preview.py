"""Computes the rows, renderers and lengths of a plan as far as they are known before a run. Nothing is written."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from qwen_align.align.generation.requests import render_problem
from qwen_align.align.models.length_limit import read_length_limit
from qwen_align.align.models.model_description import find_base_folder
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.references import ModelRef, Ref, ScorerRef, find_references
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Problem, Row, read_rows
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.user_code import UserCodeLeftOut


class RowsUnknown(Exception):
    """The error for rows or a tokenizer that do not exist locally yet. The message says which."""


class Preview:
    """A preview of the rows and prompts that the stages of a plan will read, each built or rendered once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._by_name = {stage.name: stage for stage in plan.stages}
        self._rows: dict[str, list[Row]] = {}
        self._renderers: dict[Path, Renderer] = {}
        self._tokenizer_folders: dict[str, Path] = {}
        self._lengths: dict[tuple[Path, int, str | None], int] = {}
        self.drops: dict[str, Drops] = {}
        self.reports: dict[str, Report] = {}

    def list_rows(self, name: str) -> list[Row]:
        """Returns the rows of a data stage, read if stored, else built.

        Raises RowsUnknown when they cannot be known yet.
        """
        if name not in self._rows:
            stage = self._by_name[name]
            list_rows = STAGE_KINDS[stage.kind].list_rows
            if stage.is_stored:
                self._rows[name] = list(read_rows(stage.folder.path / "rows.jsonl"))
            elif list_rows is None:
                raise RowsUnknown(name)
            else:
                sources = self._read_sources(stage)
                self.drops[name], self.reports[name] = Drops(), Report()
                build = import_function(list_rows)
                try:
                    self._rows[name] = build(stage, sources, self.drops[name], self.reports[name])
                except UserCodeLeftOut as left_out:
                    raise RowsUnknown(str(left_out)) from None
        return self._rows[name]

    def count_rows(self, name: str) -> int | None:
        """Returns the number of rows a data stage has, or will have if all are kept.

        Returns None if it is not known yet.
        """
        try:
            return len(self.list_rows(name))
        except RowsUnknown:
            return self._by_name[name].settings.get_expected_rows()

    def count_all_rows(self, stage: PlannedStage, refs: Iterable[str]) -> int | None:
        """Returns the total number of rows of referenced data stages. Returns None if one of them is unknown."""
        counts = [self.count_rows(stage.targets[ref]) for ref in refs]
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else None

    def list_input_rows(self, stage: PlannedStage, refs: Iterable[str]) -> Iterator[Row]:
        """Yields the rows of the data stages that a stage's data references name, in the order of the references."""
        return chain.from_iterable([self.list_rows(stage.targets[ref]) for ref in refs])

    def get_renderer(self, stage: PlannedStage) -> Renderer:
        """Returns the chat-template renderer of the model that a stage reads."""
        return self.load_renderer(self._find_tokenizer_folder(stage))

    def get_scorer_renderer(self, stage: PlannedStage, ref: ScorerRef) -> Renderer:
        """Returns the renderer of the reward model that a stage names. Raises RowsUnknown if it is not there yet."""
        return self.load_renderer(self._trace_tokenizer_folder(stage, ref))

    def load_renderer(self, folder: Path) -> Renderer:
        """Loads the chat-template renderer of a model folder. It is cached."""
        if folder not in self._renderers:
            self._renderers[folder] = Renderer.load(folder)
        return self._renderers[folder]

    def list_dated_templates(self) -> list[str]:
        """Returns the files of the chat templates loaded so far that ask for today's date, which they do not get."""
        templates = [renderer.template for renderer in self._renderers.values()]
        return list(dict.fromkeys(template.where for template in templates if template.prints_date))

    def measure_prompt(self, stage: PlannedStage, problem: Problem, switch: Switch | None) -> int:
        """Returns the number of tokens of a problem's rendered prompt.

        It is cached for all stages with the same template.
        """
        switch_text = None if switch is None else switch.model_dump_json()
        name = (self._find_tokenizer_folder(stage), id(problem), switch_text)  # rows live as long as the preview does
        if name not in self._lengths:
            self._lengths[name] = len(render_problem(problem, self.get_renderer(stage), switch).prompt.ids)
        return self._lengths[name]

    def find_length_limit(self, stage: PlannedStage) -> int | None:
        """Returns the number of tokens that the model which a stage reads can read. None if it has no limit."""
        return read_length_limit(self._find_tokenizer_folder(stage))

    def _read_sources(self, stage: PlannedStage) -> dict[str, Callable[[], Iterator[Row]]]:
        """Returns a function for each data reference of a stage that reads its rows.

        Raises RowsUnknown when rows do not exist yet.
        """

        def reader(list_rows: list[Row]) -> Callable[[], Iterator[Row]]:
            return lambda: iter(list_rows)

        if stage.missing:
            raise RowsUnknown(f"{stage.missing} is there")
        return {ref: reader(self.list_rows(target)) for ref, target in stage.targets.items()}

    def _find_tokenizer_folder(self, stage: PlannedStage) -> Path:
        """Returns the folder with the tokenizer of the model that a stage reads.

        It is cached. Raises RowsUnknown when the tokenizer is not there yet.
        """
        if stage.name not in self._tokenizer_folders:
            (_, ref), *_ = (place for place in find_references(stage.settings) if isinstance(place[1], ModelRef))
            self._tokenizer_folders[stage.name] = self._trace_tokenizer_folder(stage, ref)
        return self._tokenizer_folders[stage.name]

    def _trace_tokenizer_folder(self, stage: PlannedStage, ref: Ref) -> Path:
        """Follows the chain of stages that made a model of a stage back to the folder its tokenizer was copied from.

        Raises RowsUnknown when the tokenizer is not there yet.
        """
        maker = self._by_name.get(stage.targets[ref])
        if maker is not None and not STAGE_KINDS[maker.kind].makes_tokenizer:
            return self._find_tokenizer_folder(maker)
        folder = Path(stage.inputs[ref]["folder"])
        if maker is not None:
            if not maker.is_stored:
                raise RowsUnknown(maker.name)
            folder = folder / "model"
        base = None if str(folder).startswith("hub:") else find_base_folder(folder)
        if base is None:
            raise RowsUnknown("the hub model is downloaded")
        return base
