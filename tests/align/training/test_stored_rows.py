"""Training sets on disk: what was rendered, once, by the main process, in little memory."""

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import PairIds, Sample
from qwen_align.align.rendering.training_set import SampleStream, render_rows
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import dpo, reward_model, sft
from qwen_align.align.training import stored_rows
from qwen_align.align.training.stored_rows import StoredRows, render_once
from qwen_align.data_builders.arithmetic import Arithmetic

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
ROWS = list(Arithmetic(rows="trace", n=30, steps=[1, 4]).generate(0))  # of unlike lengths, some over the limit
LIMIT = 80


class Stream:
    """Samples of so many tokens, of which some are in the loss; `fails` after so many."""

    def __init__(self, n: int, n_tokens: int = 5, fails: int | None = None) -> None:
        self.n, self.n_tokens, self.fails = n, n_tokens, fails

    def __iter__(self) -> Iterator[Sample]:
        for number in range(self.n):
            if number == self.fails:
                raise KeyboardInterrupt
            yield Sample([number % 500] * self.n_tokens, [False] + [True] * (self.n_tokens - 1))

    def describe(self) -> dict[str, Any]:
        return {"dropped": {}, "longest": self.n_tokens}


class Unread(Stream):
    def __iter__(self) -> Iterator[Sample]:
        raise AssertionError("rendered a second time")


def make_context(out: Path, *, is_main: bool = True) -> Context:
    out.mkdir(exist_ok=True)
    return Context(out, 0, Runtime(device="cpu"), is_main=is_main)


def store(out: Path, stream: Any, *, is_main: bool = True, columns: Any = sft.build_columns) -> StoredRows:
    return render_once(out, make_context(out, is_main=is_main), stream, columns)


@pytest.mark.parametrize("together", [1, 500, stored_rows.WRITTEN_TOGETHER])
def test_the_file_holds_what_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(stored_rows, "WRITTEN_TOGETHER", together)
    renderer = Renderer.load(BASE)
    rendered = render_rows(renderer, ROWS, LIMIT)
    assert 0 < len(rendered.samples) < len(ROWS)
    stored = store(tmp_path, SampleStream(renderer, ROWS, LIMIT))
    assert stored.dataset.column_names == ["input_ids", "labels"]
    for row, sample in zip(stored.dataset, rendered.samples, strict=True):
        assert row["input_ids"] == sample.ids
        assert row["labels"] == [token if is_in else -100 for token, is_in in zip(*sample, strict=True)]
    assert stored.n_rows == len(rendered.samples)
    assert stored.longest == rendered.longest
    assert stored.dropped == rendered.dropped
    assert stored.counts["modes"] == rendered.modes
    assert stored.counts["supervised_tokens"] == sum(sum(sample.mask) for sample in rendered.samples)
    assert stored.count_tokens([2, 0, 2]) == sum(len(rendered.samples[row].ids) for row in (2, 0, 2))
    assert [Path(file["filename"]).parent for file in stored.dataset.cache_files] == [tmp_path / "rendered"]


def test_pairs_and_margins(tmp_path: Path) -> None:
    class Pairs(Stream):
        def __iter__(self) -> Any:
            yield from [PairIds([1, 2], [3], [4, 5], 0.5), PairIds([6], [7, 8], [9], -2.0)]

    stored = store(tmp_path / "dpo", Pairs(2), columns=dpo.build_columns)
    assert stored.dataset[1] == {"prompt_ids": [6], "chosen_ids": [7, 8], "rejected_ids": [9]}
    assert stored.n_tokens.tolist() == [5, 4], "a prompt counts once"
    stored = store(tmp_path / "rm", Pairs(2), columns=lambda pair: reward_model.build_columns(pair, with_margin=True))
    assert stored.dataset[0] == {"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5], "margin": 0.5}
    assert stored.n_tokens.tolist() == [5, 4]


def test_a_resumed_stage_reads_what_is_there(tmp_path: Path) -> None:
    first = store(tmp_path, Stream(20))
    again = store(tmp_path, Unread(20))
    assert list(again.dataset) == list(first.dataset)
    assert again.counts == first.counts


def test_killed_while_it_renders_it_renders_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_rows, "WRITTEN_TOGETHER", 10)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path, Stream(20, fails=15))
    assert (tmp_path / "rendered" / "rows.arrow").stat().st_size
    assert store(tmp_path, Stream(20)).n_rows == 20
    file = tmp_path / "rendered" / "rows.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(AssertionError, match="second time"):
        store(tmp_path, Unread(20))


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    for stream in (Stream(0), Unread(0)):
        assert store(tmp_path, stream).n_rows == 0


def test_asked_to_stop_it_stops_between_two_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_rows, "WRITTEN_TOGETHER", 10)
    context = make_context(tmp_path)
    context._is_asked_to_stop = True
    with pytest.raises(Preempted):
        render_once(tmp_path, context, Stream(20), sft.build_columns)
    assert store(tmp_path, Stream(20)).n_rows == 20


def test_other_processes_wait_for_the_main_one_and_read_its_file(tmp_path: Path) -> None:
    seen = []
    waiting = threading.Thread(target=lambda: seen.append(store(tmp_path, Unread(20), is_main=False)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    main = store(tmp_path, Stream(20))
    waiting.join(20)
    assert list(seen[0].dataset) == list(main.dataset)
    assert seen[0].dataset.cache_files == main.dataset.cache_files


def test_a_waiting_process_that_is_asked_to_stop_stops(tmp_path: Path) -> None:
    context = make_context(tmp_path, is_main=False)
    context._is_asked_to_stop = True
    with pytest.raises(Preempted):
        render_once(tmp_path, context, Unread(1), sft.build_columns)


POOLS = []  # of Arrow's memory, which live as long as what they hold


def measure_peak(out: Path, n: int) -> int:
    """Bytes that Python and Arrow hold at most while rows are rendered, opened, drawn and read."""
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    POOLS.append(pool)
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        stored = store(out, Stream(n, 200))
        drawn = stored.dataset.select(range(0, n, 2))
        for row in range(0, len(drawn), 97):
            assert len(drawn[row]["labels"]) == 200
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(before)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_rows, "WRITTEN_TOGETHER", 20_000)
    measure_peak(tmp_path / "first", 100)  # what is imported and cached then
    few, many = (measure_peak(tmp_path / str(n), n) for n in (500, 5_000))
    n_more_tokens = 4_500 * 200
    assert many - few < n_more_tokens, "less than a byte a token; held as lists they would be 36"
