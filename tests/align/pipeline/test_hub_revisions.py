"""Branches and tags of the hub: looked up once on a hub of our own, kept in the run's record."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan

FIRST, SECOND, DATA = "a" * 40, "b" * 40, "d" * 40
ARITHMETIC = {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]}
MODEL_PATH, DATA_PATH = "/api/models/o/m/revision/main", "/api/datasets/o/d/revision/v1"


class Hub:
    """What the hub answers by path, and what it was asked."""

    def __init__(self) -> None:
        self.commits = {MODEL_PATH: FIRST, DATA_PATH: DATA}
        self.asked: list[str] = []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if "/revision/" in path:
                state.asked.append(path)
            commit = state.commits.get(path)
            body = json.dumps({"id": "o/x", "sha": commit, "private": False, "tags": [], "siblings": []}).encode()
            self.send_response(200 if commit else 404)
            self.send_header("Content-Length", str(len(body)))
            if not commit:
                self.send_header("X-Error-Code", "RevisionNotFound")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield state
    server.shutdown()
    server.server_close()


def write(write_recipe: Callable[..., Path], revision: str = "main", data: str | None = None, **rest: Any) -> Path:
    stages: list[dict[str, Any]] = [{"name": "made", "kind": "build_data", "builder": ARITHMETIC}]
    if data:
        hub_builder = {"kind": "hub", "dataset": "o/d", "revision": data, "format": "gsm8k"}
        stages.append({"name": "read", "kind": "build_data", "builder": hub_builder})
    sampled = {"completions_per_prompt": 1, "sampling": {"max_tokens": 4}, "rewards": [{"kind": "random"}]}
    stages.append({"name": "drawn", "kind": "rollout", "from_model": "base", "from_data": "made", **sampled})
    return write_recipe(stages, models={"base": {"hub": "o/m", "revision": revision}}, **rest)


def read_keys(plan: Plan) -> list[str]:
    return [stage.key for stage in plan.stages]


def test_a_name_has_the_keys_of_its_commit(hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    named = make_plan(write(write_recipe, data="v1"), tmp_path)
    assert sorted(hub.asked) == sorted([MODEL_PATH, DATA_PATH]), "each is looked up once"
    pasted = make_plan(write(write_recipe, FIRST, data=DATA), tmp_path)
    assert len(hub.asked) == 2, "a commit needs no hub"
    assert read_keys(named) == read_keys(pasted)
    assert named.recipe.models["base"].revision == FIRST
    assert named.stages[1].settings.builder.revision == DATA  # type: ignore[union-attr]
    assert [found.commit for found in named.revisions] == [FIRST, DATA]
    assert not pasted.revisions


def test_check_says_the_line_to_paste_and_writes_nothing(
    hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli("check", write(write_recipe))
    assert done.code == 0, done.err
    assert (
        "note: models.base.revision: main of o/m is taken from the hub; to stay with it in other runs, write "
        f"`revision: {FIRST}`\n" in done.out
    )
    assert not (tmp_path / "runs").exists()


def test_a_run_keeps_the_commit_it_began_with(
    hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path, cli: Callable[..., Any]
) -> None:
    recipe = write(write_recipe)
    before = make_plan(recipe, tmp_path)
    done = cli("run", recipe, "--set", "stages.drawn.rewards.0.kind=nothing")
    assert done.code == 2
    assert not (tmp_path / "runs").exists(), "what is refused leaves no record"

    stages = [{"name": "made", "kind": "build_data", "builder": ARITHMETIC}]
    alone = write_recipe(stages, file="alone.yaml", models={"base": {"hub": "o/m", "revision": "main"}})
    done = cli("run", alone)
    assert done.code == 0, done.err
    assert f"revision: {FIRST}" in done.out
    assert json.loads((tmp_path / "runs" / "trial" / "revisions.json").read_text()) == {"model o/m@main": FIRST}

    hub.commits[MODEL_PATH], n_asked = SECOND, len(hub.asked)
    assert read_keys(make_plan(recipe, tmp_path)) == read_keys(before)
    for command in ("check", "report", "run"):
        done = cli(command, alone)
        assert done.code == 0, done.err
    assert "main of o/m is taken from the run's record" in done.out
    assert len(hub.asked) == n_asked, "the hub is not asked again"

    other = make_plan(write(write_recipe, name="another"), tmp_path)
    assert other.recipe.models["base"].revision == SECOND, "another run begins with what is there now"


def test_what_the_hub_does_not_have_is_told_with_its_place(
    hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"models\.base\.revision: the hub has no model o/m with a revision dev"):
        make_plan(write(write_recipe, "dev"), tmp_path)
    with pytest.raises(RecipeError, match=r"stages\[1\]\.builder\.revision: the hub has no dataset o/d with"):
        make_plan(write(write_recipe, FIRST, data="v2"), tmp_path)


def test_without_the_hub_its_cache_is_asked_and_said(
    hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    recipe = write(write_recipe)
    with pytest.raises(RecipeError, match=r"models\.base\.revision: the hub cannot be reached .*40 hex digits instead"):
        make_plan(recipe, tmp_path)
    refs = tmp_path / "cache" / "models--o--m" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(SECOND)
    (found,) = make_plan(recipe, tmp_path).revisions
    assert found.commit == SECOND
    assert "from the cache; the hub cannot be reached" in found.format_line()


def test_a_damaged_record_is_told(hub: Hub, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "trial"
    folder.mkdir(parents=True)
    (folder / "revisions.json").write_text("{")
    with pytest.raises(RecipeError, match=r"revisions\.json: cannot be read; delete it"):
        make_plan(write(write_recipe), tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"hub": "o/m"}, "revision is missing: the commit of the hub model, 40 hex digits (on its page of the hub"),
        ({"path": "x", "revision": FIRST}, "revision: is for a model of the hub; leave it out"),
        ({"hub": "o/m", "revision": "abc1234"}, "'abc1234' is a part of a commit's name"),
        ({"hub": "o/m", "revision": "a b"}, "'a b' is no revision"),
    ],
)
def test_a_wrong_source_is_told_where_commits_stand(
    write_recipe: Callable[..., Path], tmp_path: Path, source: dict[str, Any], said: str
) -> None:
    stages = [{"name": "made", "kind": "build_data", "builder": ARITHMETIC}]
    with pytest.raises(RecipeError) as error:
        make_plan(write_recipe(stages, models={"base": source}), tmp_path)
    assert said in str(error.value)
