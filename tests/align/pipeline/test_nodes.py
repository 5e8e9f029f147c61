"""Several nodes: who one is, who is let in, what is run, and what a loss or an error does; processes are pretended."""

import contextlib
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.pipeline import coordinator, follower, node_connection, node_place, node_plans
from qwen_align.align.pipeline.coordinator import Coordinator
from qwen_align.align.pipeline.launcher import StageExit, build_command
from qwen_align.align.pipeline.machine_check import count_nodes
from qwen_align.align.pipeline.node_connection import Connection, Listener, NotConnected, connect, make_secret
from qwen_align.align.pipeline.node_place import ALONE, NodePlace, Rendezvous, find_rendezvous
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.run import run as run_plan
from qwen_align.align.pipeline.stage_job import build_stage_job
from qwen_align.align.settings.runtime import Runtime, split_among_processes, split_into_micro_batches
from qwen_align.align.store.files import write_json
from qwen_align.align.training import distributed
from qwen_align.reward import base

LOCAL = "127.0.0.1"
DATA = {"name": "data", "kind": "build_data", "builder": {"kind": "arithmetic", "rows": "trace", "n": 8, "steps": [1]}}
SFT = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["data"],
    "max_tokens": 256,
    "batch": 8,
    "epochs": 1,
    "learning_rate": 1e-4,
}


def plan_run(folder: Path, *overrides: str, nodes: int = 2) -> Plan:
    recipe = {
        "name": "trial",
        "models": {"base": {"shipped": "tiny_base"}},
        "runtime": {"device": "cpu", "nodes": nodes},
        "stages": [DATA, SFT],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return make_plan(path, folder / "home", overrides)


def find_port() -> int:
    return coordinator.find_free_port()


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


# --- who one is


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("gpu01", "gpu01"),
        ("gpu[007-009,12],cpu3", "gpu007"),
        ("a,b[1-2]", "a"),
        ("rack[2-3]n[04,06]x", "rack2n04x"),
        ("n[3,5-7]-ib", "n3-ib"),
    ],
)
def test_the_first_of_slurms_nodes(names: str, first: str) -> None:
    assert node_place.read_first_host(names) == first


SLURM = {
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_JOB_ID": "123456",
}


def test_a_node_knows_its_place_by_options_or_else_by_slurm() -> None:
    assert find_rendezvous(2, 1, "gpu01:29400", SLURM) == Rendezvous(1, 2, "gpu01", 29400)
    assert find_rendezvous(2, 0, "[fe80::1]:80", {}) == Rendezvous(0, 2, "fe80::1", 80)
    assert find_rendezvous(2, None, None, SLURM) == Rendezvous(1, 2, "gpu3", 23456)
    assert find_rendezvous(1, None, None, SLURM) is None
    assert find_rendezvous(2, None, None, {"SLURM_NODEID": "0"}, is_needed=False) is None


@pytest.mark.parametrize(
    ("nodes", "rank", "address", "environment", "said"),
    [
        (2, None, None, {}, "runtime.nodes: 2: start the same command on every node, with --node-rank 0 to 1"),
        (2, None, None, {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "a,b"}, "start the same command"),
        (2, 1, None, SLURM, "--node-rank: needs --rendezvous too"),
        (2, None, "a:1", SLURM, "--rendezvous: needs --node-rank too"),
        (2, 2, "a:1", {}, "the nodes are 0 to 1"),
        (2, -1, "a:1", {}, "the nodes are 0 to 1"),
        (1, 0, "a:1", {}, "one node is asked for; set runtime.nodes"),
        (2, 0, "a", {}, "has to be HOST:PORT of node 0"),
        (2, 0, "a:99999", {}, "has to be HOST:PORT of node 0"),
        (2, 0, "tcp://a:9", {}, "has to be HOST:PORT of node 0"),
        (3, None, None, SLURM, "srun has started 2 tasks on 2 nodes"),
        (2, None, None, {**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, "srun has started 4 tasks on 2 nodes"),
    ],
)
def test_a_node_that_cannot_know_its_place_says_what_is_missing(
    nodes: int, rank: int | None, address: str | None, environment: dict[str, str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        find_rendezvous(nodes, rank, address, environment)


@pytest.mark.skipif(sys.platform != "linux", reason="interfaces are asked of Linux")
def test_gloo_is_told_the_interface_that_leads_to_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert NodePlace(1, 2, LOCAL, 1).name_interface() == {"GLOO_SOCKET_IFNAME": "lo"}
    assert ALONE.name_interface() == {}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert NodePlace(1, 2, LOCAL, 1).name_interface() == {}, "what the user has set stays"


# --- who is let in


def test_both_ends_have_to_know_the_secret(tmp_path: Path) -> None:
    secret = make_secret(tmp_path / "home")
    assert make_secret(tmp_path / "home") == secret == node_connection.read_secret(tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home" / node_connection.SECRET).stat().st_mode) == 0o600
    joined: list[Connection] = []
    port = find_port()
    listener = Listener(LOCAL, port, secret, lambda connection, address: joined.append(connection))
    try:
        with pytest.raises(NotConnected, match="do both see the same --home"):
            connect(LOCAL, port, "another")
        assert joined == [], "who does not know the secret gets no further"
        ours = connect(LOCAL, port, secret)
        (theirs,) = wait_for(lambda: joined)
        theirs.send({"a": [1, "é"]})
        assert wait_for(ours.take) == {"a": [1, "é"]}
        ours.close()
        wait_for(lambda: theirs.is_lost)
    finally:
        listener.close()
    with pytest.raises(NotConnected, match="refused"):
        connect(LOCAL, port, secret)


def test_who_listens_has_to_know_the_secret_too() -> None:
    """Else whoever takes node 0's port could have the others run stages."""
    with socket.create_server((LOCAL, 0)) as server:

        def pretend() -> None:
            end, _ = server.accept()
            end.sendall(bytes(32))
            own = end.recv(32) + end.recv(32)
            end.sendall(own[32:])  # the other's own proof, sent back
            end.recv(1)

        thread = threading.Thread(target=pretend, daemon=True)
        thread.start()
        with pytest.raises(NotConnected, match="does not know the secret"):
            connect(LOCAL, server.getsockname()[1], "secret")


def test_a_silent_end_is_lost_and_one_that_beats_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_connection, "BEAT_S", 0.05)
    one, other = socket.socketpair(socket.AF_UNIX)
    with socket.create_server((LOCAL, 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    beating, hearing = Connection(one, 60.0), Connection(other, 0.5)
    time.sleep(0.8)
    assert not hearing.is_lost
    with socket.create_server((LOCAL, 0)) as server:
        mute = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    deaf = Connection(other, 0.3)
    assert not deaf.is_lost
    time.sleep(0.4)
    assert deaf.is_lost
    for end in (beating, hearing, deaf):
        end.close()
    mute.close()


def test_the_others_give_node_0_up_well_before_it_gives_them_up() -> None:
    """Or two would write to a stage's folder: node 0 begins it again when it has given one up."""
    assert node_connection.SILENCE_OF_NODE_0_S + 4 * node_connection.BEAT_S < node_connection.SILENCE_OF_OTHERS_S


def test_the_plans_of_all_nodes_have_to_be_the_same(tmp_path: Path) -> None:
    own = json.loads(json.dumps(node_plans.describe_plan(plan_run(tmp_path))))
    assert list(own["stages"]) == ["sft"], "what one process does runs on node 0 alone"
    assert node_plans.describe_difference(own, own) is None

    def said(*path: str, value: Any) -> str:
        changed = json.loads(json.dumps(own))
        at = changed
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value
        return node_plans.describe_difference(changed, own) or ""

    assert "runs 'other'" in said("run", value="other")
    assert "code of qwen-align is another" in said("code", value="0")
    assert f"torch 1.0 (node 0: {own['versions']['torch']})" in said("versions", "torch", value="1.0")
    assert "other stages on several nodes (sft)" in said("stages", value={})
    assert "stage 'sft' has another key" in said("stages", "sft", "key", value="0")
    assert "same shared folder at the same path" in said("stages", "sft", "folder", value="/elsewhere")
    assert "another runtime" in said("stages", "sft", "job", value="0")
    for odd in ({}, {**own, "stages": 3}, {**own, "stages": {"sft": []}}, {**own, "versions": None}):
        assert node_plans.describe_difference(odd, own)
    micro = node_plans.describe_plan(plan_run(tmp_path, "runtime.micro_batch=4"))
    assert "another runtime" in (node_plans.describe_difference(micro, own) or "")


# --- what node 0 does


class OwnProcesses:
    """Node 0's processes of a stage: they end as a test says, at once or when they are told to."""

    def __init__(self, *ends: StageExit | str) -> None:
        self.ends, self.places = list(ends), list[NodePlace]()

    def run_stage(
        self,
        stage: object,
        folder: Path,
        poll_stop: Callable[[], bool],
        place: NodePlace,
        poll_kill: Callable[[], bool],
    ) -> StageExit:
        self.places.append(place)
        end = self.ends.pop(0)
        if isinstance(end, StageExit):
            return end
        is_told = {"stopped": poll_stop, "killed": poll_kill}[end]
        wait_for(lambda: poll_stop() * 0 or is_told())
        return StageExit(75, "saved") if end == "stopped" else StageExit(4, "killed", "follows")


class World:
    """Node 0 with a plan, and other nodes that a test plays."""

    def __init__(self, folder: Path) -> None:
        self.plan = plan_run(folder, nodes=2)
        self.notes: list[str] = []
        self.rendezvous = Rendezvous(0, 2, LOCAL, find_port())
        self.node_0 = Coordinator(self.plan, self.rendezvous, 5.0, self.notes.append)
        (self.stage,) = node_plans.list_shared_stages(self.plan.stages)
        self.stage.folder.path.mkdir(parents=True)

    def join(self, number: int = 1, **changes: Any) -> Connection:
        connection = connect(LOCAL, self.rendezvous.port, make_secret(self.plan.home))
        description = node_plans.describe_plan(self.plan) | changes
        connection.send({"hello": number, "host": "there", "plan": description})
        return connection

    def run(self, *ends: StageExit | str) -> tuple[Callable[[], StageExit], OwnProcesses]:
        """Runs the stage in a thread. Returns what waits for how it exited."""
        own, exits = OwnProcesses(*ends), list[StageExit]()

        def work() -> None:
            launcher: Any = own
            exits.append(
                self.node_0.run_stage(launcher, self.stage, build_stage_job(self.stage), self.node_0.poll_stop)
            )

        threading.Thread(target=work, daemon=True).start()
        return lambda: wait_for(lambda: exits)[0], own


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(coordinator, "GRACE_S", 0.3)
    made = World(tmp_path)
    with made.node_0:
        yield made


def take(connection: Connection, name: str) -> dict[str, Any]:
    """The next message, which has to have this name."""
    message: dict[str, Any] = wait_for(connection.take)
    assert name in message, message
    return message


def test_a_stage_is_begun_when_all_nodes_are_there_and_ends_with_all(world: World) -> None:
    end, own = world.run(StageExit(0, ""))
    time.sleep(0.1)
    assert own.places == [], "it waits"
    other = world.join()
    assert take(other, "accepted") == {"accepted": 1}
    start = take(other, "start")
    assert start["start"] == world.stage.key
    assert set(start) == {"start", "attempt", "port"}, "plain facts, nothing that could be run"
    job = json.loads((world.stage.folder.path / "stage.json").read_text())
    assert job.pop("attempt") == start["attempt"]
    assert job == json.loads(json.dumps(build_stage_job(world.stage)))
    other.send({"exit": start["attempt"], "code": 0, "message": "", "cause": "said"})
    assert end() == StageExit(0, "")
    assert own.places == [NodePlace(0, 2, LOCAL, start["port"])]


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("killed", (3, "no rows", "said"), (3, "on node 1 (there, 127.0.0.1): no rows")),
        ((3, "no rows", "said"), (4, "peer closed", "follows"), (3, "no rows")),
        ((4, "peer closed", "follows"), (4, "SIGKILL", "killed"), (4, "on node 1 (there, 127.0.0.1): SIGKILL")),
        ((2, "a wrong setting", "said"), (4, "no memory", "memory"), (4, "on node 1 (there, 127.0.0.1): no memory")),
        ((4, "KeyError", "follows"), (4, "peer", "follows"), (4, "KeyError; on node 1 (there, 127.0.0.1): peer")),
        ((4, "x", "follows"), (99, "odd", {}), (4, "x; on node 1 (there, 127.0.0.1): odd")),
    ],
)
def test_what_says_most_of_why_a_stage_ended_is_told(
    own: str | tuple[Any, ...], other: tuple[Any, ...], expected: tuple[int, str], world: World
) -> None:
    end, _ = world.run(own if isinstance(own, str) else StageExit(*own))
    node = world.join()
    take(node, "accepted")
    attempt = take(node, "start")["attempt"]
    node.send({"exit": attempt, **dict(zip(("code", "message", "cause"), other, strict=True))})
    assert end()[:2] == expected


def test_a_lost_node_ends_all_processes_and_the_stage_begins_again_when_it_is_back(world: World) -> None:
    end, own = world.run("killed", StageExit(0, ""))
    first = world.join()
    take(first, "accepted")
    attempt = take(first, "start")["attempt"]
    first.close()
    wait_for(lambda: any("is gone: the stage was stopped on all nodes" in note for note in world.notes))
    second = world.join()
    take(second, "accepted")
    again = take(second, "start")
    assert again["attempt"] != attempt
    second.send({"exit": attempt, "code": 4, "message": "of the attempt before", "cause": "said"})
    second.send({"exit": again["attempt"], "code": 0, "message": "", "cause": "said"})
    assert end() == StageExit(0, "")
    assert len(own.places) == 2


def test_an_error_that_a_stage_says_ends_the_run_though_a_node_was_lost_too(world: World) -> None:
    end, own = world.run(StageExit(3, "no rows", "said"))
    node = world.join()
    take(node, "accepted")
    take(node, "start")
    node.close()
    assert end() == StageExit(3, "no rows", "said")
    assert len(own.places) == 1


def test_nodes_are_not_lost_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "MOST_LOSSES", 2)
    end, _ = world.run("killed", "killed")
    for _ in range(2):
        node = world.join()
        take(node, "accepted")
        take(node, "start")
        node.close()
    assert end().message == "its nodes were lost 2 times, the last time node 1 (there, 127.0.0.1)"


def test_a_node_that_does_not_come_is_named_with_why_it_was_refused(world: World) -> None:
    world.node_0._wait_s = 1.0
    end, own = world.run()
    refused = world.join(code="other")
    assert "its code of qwen-align is another" in take(refused, "refused")["refused"]
    exit_ = end()
    assert exit_.code == 75
    assert (
        "node 1 did not come within 1 s (--node-wait); there, 127.0.0.1 was refused: node 1: its code" in exit_.message
    )
    assert own.places == []


def test_a_number_is_taken_once_and_only_those_of_the_recipe(world: World) -> None:
    first = world.join()
    take(first, "accepted")
    assert "node 1 is here already, from there, 127.0.0.1" in take(world.join(), "busy")["busy"]
    for odd in (0, 2, "1", None):
        assert "is no number of a node" in take(world.join(odd), "refused")["refused"]  # type: ignore[arg-type]


def test_a_stop_on_one_node_stops_all(world: World) -> None:
    end, _ = world.run("stopped")
    node = world.join()
    take(node, "accepted")
    attempt = take(node, "start")["attempt"]
    node.send({"stop": True})
    assert take(node, "stop") == {"stop": attempt}
    node.send({"exit": attempt, "code": 75, "message": "saved", "cause": "said"})
    assert end() == StageExit(75, "saved")


def test_processes_that_do_not_end_are_killed(world: World) -> None:
    """Node 0's have ended with an error; the others hang in an exchange that never comes."""
    end, _ = world.run(StageExit(4, "a NaN", "said"))
    node = world.join()
    take(node, "accepted")
    attempt = take(node, "start")["attempt"]
    assert take(node, "kill") == {"kill": attempt}
    node.send({"exit": attempt, "code": 4, "message": "ended with node 0", "cause": "follows"})
    assert end() == StageExit(4, "a NaN", "said")


def test_the_others_hear_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "GRACE_S", 0.3)
    made = World(tmp_path)
    made.node_0.__enter__()
    node = made.join()
    take(node, "accepted")
    made.node_0.__exit__(StageError, StageError("the disk is full"), None)
    assert take(node, "end") == {"end": 4, "message": "the disk is full"}


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    made = World(tmp_path)
    with socket.create_server((LOCAL, made.rendezvous.port)), pytest.raises(StageError, match="cannot listen at 127"):
        made.node_0.__enter__()


def test_several_nodes_without_a_meeting_place_are_refused(tmp_path: Path) -> None:
    """As when a script runs the recipe through the Python API."""
    listener: Any = None
    with pytest.raises(
        RecipeError, match=r"runtime.nodes: 2: such a run is started with `qwen-align run`, on every node"
    ):
        run_plan(plan_run(tmp_path), listener)


# --- what the others do


def write_input(stage: PlannedStage) -> Path:
    """The data that the stage reads, as node 0 has stored them."""
    (folder,) = (Path(entry["folder"]) for name, entry in stage.inputs.items() if name == "data")
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"outputs": {"rows.jsonl": "digest"}})
    return folder / "rows.jsonl"


def test_a_node_waits_until_it_sees_the_attempt_and_what_the_stage_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system shows what another machine has written up to a minute later."""
    (stage,) = node_plans.list_shared_stages(plan_run(tmp_path).stages)
    stage.folder.path.mkdir(parents=True)
    job = build_stage_job(stage)
    steps = [
        lambda: write_json(stage.folder.path / "stage.json", job | {"attempt": "before"}),
        lambda: write_json(stage.folder.path / "stage.json", job | {"attempt": "this"}),
        lambda: write_input(stage),
    ]
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(follower.wait_for_files(stage, "this", lambda: False)))
    thread.start()
    for step in steps:
        step()
        time.sleep(0.25)
        assert seen == []
    rows = next(Path(entry["folder"]) for name, entry in stage.inputs.items() if name == "data") / "rows.jsonl"
    rows.touch()
    thread.join(timeout=20)
    assert seen == [True]
    assert follower.wait_for_files(stage, "another", lambda: True) is False, "it has been ended meanwhile"
    monkeypatch.setattr(follower, "VISIBLE_WITHIN_S", 0.2)
    with pytest.raises(OSError, match="not seen here after"):
        follower.wait_for_files(stage, "another", lambda: False)
    write_json(stage.folder.path / "stage.json", job | {"attempt": "this", "seed": 99})
    with pytest.raises(OSError, match="another stage than this node has planned"):
        follower.wait_for_files(stage, "this", lambda: False)


class Node0:
    """Node 0, played by a test."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.connections: list[Connection] = []
        secret = make_secret(plan.home)
        self.listener = Listener(LOCAL, port, secret, lambda connection, address: self.connections.append(connection))

    def accept(self) -> Connection:
        connection: Connection = wait_for(lambda: self.connections).pop()
        assert wait_for(connection.take)["hello"] == 1
        connection.send({"accepted": 1})
        return connection


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts a follower in a thread, with processes that end when they are told to; node 0 is the test's."""
    monkeypatch.setattr(follower, "check_can_start", lambda plan: None)
    ran: list[str] = []

    class Processes:
        def __init__(self, on_note: Callable[[str], None]) -> None:
            pass

        def __enter__(self) -> "Processes":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start_warm_server(self) -> None:
            pass

        def run_stage(self, stage: Any, folder: Path, poll_stop: Any, place: NodePlace, poll_kill: Any) -> StageExit:
            if os.environ.get("NO_COMPILER"):
                raise StageError("there is no compiler")
            ran.append(f"{stage.name} as {place.node} of {place.nodes}")
            wait_for(lambda: poll_stop() or poll_kill())
            ran.append("stopped" if poll_stop() else "killed")
            return StageExit(75, "saved") if poll_stop() else StageExit(4, "", "follows")

    monkeypatch.setattr(follower, "Launcher", Processes)
    with contextlib.ExitStack() as stack:

        def start(stop: Callable[[], bool] = lambda: False, **changes: Any) -> Any:
            plan = plan_run(tmp_path)
            (stage,) = node_plans.list_shared_stages(plan.stages)
            write_input(stage).touch()
            port, ended = find_port(), list[BaseException | None]()
            node_0 = Node0(plan, port)
            stack.callback(node_0.listener.close)

            def work() -> None:
                try:
                    follower.follow(
                        plan, Rendezvous(1, 2, LOCAL, port), ran.append, stop=stop, **{"wait_s": 3.0, **changes}
                    )
                    ended.append(None)
                except BaseException as error:  # noqa: BLE001 - whatever it ended with
                    ended.append(error)

            threading.Thread(target=work, daemon=True).start()
            return node_0, stage, ran, lambda: wait_for(lambda: ended)[0]

        yield start


def order(stage: PlannedStage, connection: Connection, attempt: str, **changes: Any) -> None:
    stage.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(stage.folder.path / "stage.json", build_stage_job(stage) | {"attempt": attempt})
    connection.send({"start": stage.key, "attempt": attempt, "port": 1234, **changes})


def test_a_node_runs_what_it_has_planned_and_nothing_else(following: Callable[..., Any]) -> None:
    node_0, stage, ran, end = following()
    connection = node_0.accept()
    for odd in ({"start": "0" * 64}, {"port": "1; rm -rf"}, {"start": {"run": "ls"}}):
        order(stage, connection, "odd", **odd)
        said = take(connection, "exit")
        assert (said["code"], said["message"]) == (4, "node 0 has named a stage that this node has not planned")
    order(stage, connection, "first")
    wait_for(lambda: "sft as 1 of 2" in ran)
    connection.send({"stop": "another attempt"})
    time.sleep(0.1)
    assert ran[-1] == "sft as 1 of 2"
    connection.send({"stop": "first"})
    assert take(connection, "exit")["code"] == 75
    connection.send({"end": 75, "message": "stopped as asked"})
    error = end()
    assert (error.exit_code, str(error)) == (75, "node 0: stopped as asked")


def test_what_prevents_a_stage_here_is_told_to_node_0(
    following: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COMPILER", "1")
    node_0, stage, _, _ = following()
    connection = node_0.accept()
    order(stage, connection, "first")
    assert take(connection, "exit") == {"exit": "first", "code": 4, "message": "there is no compiler", "cause": "said"}
    connection.send({"end": 4, "message": ""})


def test_when_node_0_is_lost_processes_are_killed_and_it_is_waited_for(following: Callable[..., Any]) -> None:
    node_0, stage, ran, end = following()
    connection = node_0.accept()
    order(stage, connection, "first")
    wait_for(lambda: "sft as 1 of 2" in ran)
    connection.close()
    wait_for(lambda: "killed" in ran)
    back = node_0.accept()
    back.send({"end": 0, "message": ""})
    assert end() is None


def test_a_node_that_is_asked_to_stop_tells_node_0(following: Callable[..., Any]) -> None:
    asked: list[bool] = []
    node_0, stage, ran, _ = following(stop=lambda: bool(asked))
    connection = node_0.accept()
    order(stage, connection, "first")
    wait_for(lambda: "sft as 1 of 2" in ran)
    asked.append(True)
    assert take(connection, "stop") == {"stop": True}
    connection.send({"end": 75, "message": ""})


def test_a_refusal_is_the_end_and_a_busy_number_is_tried_again(following: Callable[..., Any]) -> None:
    node_0, _, _, end = following()
    busy: Connection = wait_for(lambda: node_0.connections).pop()
    wait_for(busy.take)
    busy.send({"busy": "node 1 is here already"})
    refusing: Connection = wait_for(lambda: node_0.connections).pop()
    wait_for(refusing.take)
    refusing.send({"refused": "another key"})
    assert str(end()) == "node 0 has refused this node: another key"


def test_node_0_is_waited_for_no_longer_than_asked(following: Callable[..., Any]) -> None:
    node_0, _, _, end = following(wait_s=0.5)
    node_0.listener.close()
    error = end()
    assert error.exit_code == 75
    assert "node 0 did not come within 0.5 s (--node-wait)" in str(error)


# --- processes


def test_a_batch_is_divided_among_the_processes_of_all_nodes() -> None:
    runtime = Runtime.model_validate({"nodes": 2, "processes": 3, "micro_batch": 8})
    assert runtime.world_size == 6
    assert split_among_processes(24, runtime) == 4
    assert split_into_micro_batches(24, runtime) == (4, 1)
    with pytest.raises(RecipeError, match=r"8 rows does not divide by runtime.processes: 3 on runtime.nodes: 2"):
        split_among_processes(8, runtime)


def test_a_stage_of_one_process_has_one_node(tmp_path: Path) -> None:
    data, sft = plan_run(tmp_path, nodes=3).stages
    assert [count_nodes(data.stage), count_nodes(sft.stage)] == [1, 3]
    assert node_plans.count_run_nodes([data, sft]) == 3
    line = build_command(sft.stage, tmp_path, tmp_path / "report", NodePlace(2, 3, "gpu01", 77))
    assert line[line.index("--nproc_per_node") :][:10] == [
        *("--nproc_per_node", "1", "--nnodes", "3", "--node_rank", "2", "--max_restarts", "0", "--master_addr", "gpu01")
    ]
    assert "--standalone" in build_command(sft.stage, tmp_path, tmp_path / "report")


def test_processes_wait_for_each_other_for_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that draw, or that judge, one may take hours longer."""
    from qwen_align.align.training.trl_arguments import _build_common_arguments

    (_, sft) = plan_run(tmp_path).stages
    settings: Any = sft.settings
    arguments = _build_common_arguments(settings, sft.runtime, tmp_path, steps=1, seed=0)
    assert arguments["ddp_timeout"] == 7 * 24 * 3600


def test_those_that_judge_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_n_judging", 1)
    n_cores = base.count_cores()
    base.share_cores(2)
    assert base.count_cores() == max(1, n_cores // 2)
    base.share_cores(10**6)
    assert base.count_cores() == 1


def test_files_of_other_nodes_are_waited_for_and_those_of_this_one_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        distributed.wait_until_visible(tmp_path / "never")
    assert time.monotonic() - began < 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    threading.Timer(0.3, (tmp_path / "soon").touch).start()
    distributed.wait_until_visible(tmp_path / "soon")
    assert time.monotonic() - began >= 0.3
