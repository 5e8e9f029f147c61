"""What a stage's rows become: tokens and loss mask, coloured; or the rows of a data stage nothing trains on."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any

from rich.text import Text as Styled

from qwen_align.align.commands.check import Preview, Unknown
from qwen_align.align.commands.data_summary import as_shown, as_trained, overview
from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.pipeline.plan import Plan, Planned, product
from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import Sample, split_into_pieces
from qwen_align.align.rows import Completion, Labelled, Pair, Problem, Row, Steps, to_json_line

TRAINED, MASKED = "black on green", "dim"
REJECTED = "black on red"


def lines(planned: Plan, name: str, *, rows: int, first: int) -> Iterator[Styled]:
    """`rows` rows of the stage from number `first`: trained tokens on green, the others dim.

    Raises DataError when the stage's data has yet to be made by a rollout.
    """
    if rows < 1 or first < 0:
        raise RecipeError(f"--rows {rows} --first {first}: at least one row is shown, and rows are counted from 0")
    one = planned.named(name)[0]
    preview = Preview(planned)
    try:
        renderer = _renderer(one, planned, preview)
        read = _read(one, preview)
        is_data = product(one) == "data"
        if is_data and (one.is_stored or one.stage.kind == "build_data"):
            yield from map(Styled, overview(preview.rows(one.stage.name), _dropped(one, preview), renderer))
        for number, row in enumerate(islice(read, first, first + rows), start=first):
            yield Styled(f"--- row {number}: {row.row} {row.id}", style="bold")
            yield from _data_row(row, renderer) if is_data else _row(row, renderer)
    except Unknown as unknown:
        raise DataError(f"stage '{name}': its data is unknown until {unknown}; run the recipe first") from None
    yield Styled("trained", style=TRAINED) + Styled("  ") + Styled("seen, not trained", style=MASKED)


def _dropped(one: Planned, preview: Preview) -> dict[str, int]:
    """Drops by reason, the most frequent first."""
    if not one.is_stored:
        return preview.drops[one.stage.name].counts
    return dict(Counter(one.folder.read_manifest()["summary"].get("dropped", {})).most_common())


def _read(one: Planned, preview: Preview) -> Iterable[Row]:
    """A data stage's own rows as far as they are known (a rollout not run has its prompts), else what it reads."""
    settings: Any = one.stage.settings
    is_data = product(one) == "data"
    if is_data and (one.is_stored or settings.kind == "build_data"):
        return preview.rows(one.stage.name)
    return preview.rows_for(one, [settings.from_data] if isinstance(settings.from_data, str) else settings.from_data)


def marked(line: Styled) -> str:
    """The line for where there are no colours: what is trained stands in «», what is rejected in ‹›."""
    marks = {TRAINED: ("«", "»"), REJECTED: ("‹", "›")}
    text, end = "", 0
    for style, spans in groupby(line.spans, key=lambda span: str(span.style)):
        run = list(spans)
        opening, closing = marks.get(style, ("", ""))
        text += line.plain[end : run[0].start] + opening + line.plain[run[0].start : run[-1].end] + closing
        end = run[-1].end
    return text + line.plain[end:]


def _renderer(one: Planned, planned: Plan, preview: Preview) -> Renderer:
    """The renderer of the stage's model, or for data of the first model that reads it (else of the recipe)."""
    if hasattr(one.stage.settings, "from_model"):
        return preview.renderer(one)
    readers = [other for other in planned.stages if hasattr(other.stage.settings, "from_model")]
    near = [other for other in readers if one.stage.name in other.stage.targets.values()]
    if not readers:
        raise DataError(f"stage '{one.stage.name}': no stage of this recipe has a model whose template could be shown")
    return preview.renderer((near or readers)[0])


def _data_row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    """The row as its readers are given it, or why that cannot be shown."""
    shown = as_shown(row, renderer)
    note, lines = shown.note, [Styled(row.text if isinstance(row, Completion) else to_json_line(row))]
    if shown.row is not None:
        try:
            lines = list(_row(shown.row, renderer))
        except TemplateError as error:  # a completion that cannot be trained has a length all the same
            note = f"cannot be trained: {error}"
    if note:
        yield Styled(f"note: {note}")
    yield from lines


def _row(row: Row, renderer: Renderer) -> Iterator[Styled]:
    if isinstance(row, Pair):
        ids = renderer.render_pair(row)
        yield _coloured(Sample([*ids.prompt, *ids.chosen], _mask(ids.prompt, ids.chosen)), renderer, TRAINED)
        yield _coloured(Sample(ids.rejected, [True] * len(ids.rejected)), renderer, REJECTED)
    elif isinstance(row, Problem):
        prompt = renderer.render_prompt(row.messages, mode=row.mode, flag=row.flag)
        yield _coloured(Sample(prompt.ids, [False] * len(prompt.ids)), renderer, TRAINED)
        yield Styled(f"gold: {row.gold}  reward: {row.reward}")
    elif isinstance(row, Steps):
        yield from (Styled(f"{label}: {step}") for step, label in zip(row.steps, row.labels, strict=True))
    elif isinstance(row, Completion) and row.finish_reason == "length":
        yield Styled(f"{row.text}  [cut at the token limit: not trained on]")
    else:
        for sample in renderer.render_samples(as_trained(row)):
            yield _coloured(sample, renderer, TRAINED)
        if isinstance(row, Labelled):
            yield Styled(f"label: {'good' if row.label else 'bad'}")
        if isinstance(row, Completion):
            said = ", ".join(f"{kind}: {verdict.value} ({verdict.reason})" for kind, verdict in row.verdicts.items())
            yield Styled(f"verdicts: {said or 'none'}")


def _mask(masked: list[int], trained: list[int]) -> list[bool]:
    return [False] * len(masked) + [True] * len(trained)


def _coloured(sample: Sample, renderer: Renderer, trained: str) -> Styled:
    text = Styled()
    for piece in split_into_pieces(renderer.tokenizer, sample):
        text.append(piece.text.replace("\n", "⏎\n"), style=trained if piece.is_trained else MASKED)
    return text.append(f"  [{len(sample.ids)} tokens, {sum(sample.mask)} trained]")
