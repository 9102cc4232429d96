"""A local cluster's rules: how often to restart, what each process is told, who runs where."""

import os
from pathlib import Path

import pytest
from brisk_client.cli.log_view import render
from brisk_client.cli.options import parse_keep_alive
from brisk_client.cli.output import human_bytes, human_count, human_seconds, jsonable, printable
from brisk_client.endpoint import resolve_endpoint
from brisk_client.local.errors import AlreadyRunningError, LocalClusterError
from brisk_client.local.logs import LogFile, plain_line
from brisk_client.local.paths import DataFolder
from brisk_client.local.redis import RedisServer
from brisk_client.local.restart import RESTARTS_MAX, WINDOW_S, RestartLimit
from brisk_client.local.spec import ClusterSpec, NodeSpec, nodes_of, service_commands
from brisk_client.local.state import (
    ClusterState,
    ServiceState,
    folder_lock,
    process_started,
    read_state,
    remove_state,
    write_state,
)
from typer import BadParameter

INFINITE = float("inf")


def test_five_restarts_a_minute_with_growing_pauses_then_no_more() -> None:
    limit = RestartLimit()
    pauses = [limit.next_pause_s(float(second)) for second in range(RESTARTS_MAX)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert limit.next_pause_s(6.0) is None


def test_a_service_that_dies_seldom_is_restarted_for_ever() -> None:
    limit = RestartLimit()
    for death in range(50):
        assert limit.next_pause_s(death * WINDOW_S / RESTARTS_MAX) is not None


def spec(folder: Path, **changed: object) -> ClusterSpec:
    arguments = {
        "folder": DataFolder.at(folder),
        "nodes": nodes_of(["cpu:0=1GiB", "cpu:1=2GiB"]),
        "router_port": 7480,
    }
    return ClusterSpec(**{**arguments, **changed})  # type: ignore[arg-type]


def test_there_is_one_worker_per_device_and_one_store_manager_per_node(tmp_path: Path) -> None:
    commands = {command.name: command for command in service_commands(spec(tmp_path), "unix://x")}
    assert set(commands) == {"router", "scheduler", "storemgr", "worker-0", "worker-1"}
    first, second = (commands[name].environment for name in ("worker-0", "worker-1"))
    assert first["BRISK_WORKER_DEVICES"] == "cpu:0=1GiB"
    assert second["BRISK_WORKER_DEVICES"] == "cpu:1=2GiB"
    storemgr = commands["storemgr"].environment
    assert first["BRISK_WORKER_NODE_ID"] == storemgr["BRISK_STOREMGR_NODE_ID"]
    assert commands["router"].environment["BRISK_ROUTER_LISTEN"] == "127.0.0.1:7480"
    assert storemgr["BRISK_STOREMGR_DATA_DIR"] == str(tmp_path)


def test_several_nodes_have_folders_of_their_own(tmp_path: Path) -> None:
    nodes = (NodeSpec(node_id="a", devices=("cpu:0=1GiB",)), NodeSpec(node_id="b", devices=()))
    commands = service_commands(spec(tmp_path, nodes=nodes), "unix://x")
    folders = {
        command.environment["BRISK_STOREMGR_DATA_DIR"]
        for command in commands
        if command.kind == "storemgr"
    }
    assert folders == {f"{tmp_path}/nodes/a", f"{tmp_path}/nodes/b"}


def test_a_worker_that_is_given_no_device_chooses_its_own(tmp_path: Path) -> None:
    commands = service_commands(spec(tmp_path, nodes=nodes_of(None)), "unix://x")
    (worker,) = [command for command in commands if command.kind == "worker"]
    assert worker.name == "worker"
    assert "BRISK_WORKER_DEVICES" not in worker.environment


def test_the_operators_settings_reach_the_services_but_not_where_the_launcher_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRISK_ROUTER_QUEUE_MAX", "7")
    monkeypatch.setenv("BRISK_ROUTER_READY_FILE", "/elsewhere")
    monkeypatch.setenv("BRISK_ROUTER_REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("BRISK_ROUTER_ADVERTISE", "elsewhere")
    monkeypatch.setenv("BRISK_ADVERTISE", "elsewhere")
    commands = service_commands(
        spec(tmp_path, environment={"BRISK_LOG_LEVEL": "debug"}), "unix://x"
    )
    (router,) = [command for command in commands if command.kind == "router"]
    assert router.environment["BRISK_ROUTER_QUEUE_MAX"] == "7"
    assert router.environment["BRISK_LOG_LEVEL"] == "debug"
    assert router.environment["BRISK_ROUTER_READY_FILE"] == f"{tmp_path}/run/router.json"
    assert router.environment["BRISK_REDIS_URL"] == "unix://x"
    assert "BRISK_ROUTER_REDIS_URL" not in router.environment
    assert not [name for name in router.environment if name.endswith("ADVERTISE")]


def test_stopping_waits_longer_than_the_service_may_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRISK_WORKER_DRAIN_S", "40")
    commands = service_commands(spec(tmp_path, drain_s=3.0), "unix://x")
    for command in commands:
        assert command.stop_s_max > (40 if command.kind == "worker" else 3)
        assert command.kind == "worker" or command.environment["BRISK_DRAIN_S"] == "3.0"


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cpu:0=", "=1GiB", "cpu:x=1", "cpu:0=1\n"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(LocalClusterError, match="cpu:0=4GiB"):
        NodeSpec(devices=(device,))


def test_redis_is_private_and_its_password_is_in_no_command_line(tmp_path: Path) -> None:
    server = RedisServer(
        binary=Path("/bin/redis-server"),
        socket=tmp_path / "a folder" / "redis.sock",
        password="secret",  # noqa: S106
        folder=tmp_path,
    )
    assert "secret" not in " ".join(server.arguments)
    settings = server.settings.decode()
    assert "port 0\n" in settings
    assert "requirepass secret\n" in settings
    assert f'unixsocket "{tmp_path}/a folder/redis.sock"\n' in settings
    assert "appendonly yes\n" in settings
    assert server.url == f"unix://:secret@{tmp_path}/a%20folder/redis.sock?db=0"


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "line\nbreak"])
def test_a_folder_that_redis_could_misread_is_refused(tmp_path: Path, name: str) -> None:
    server = RedisServer(
        binary=Path("/bin/x"),
        socket=tmp_path / name,
        password="p",  # noqa: S106
        folder=tmp_path,
    )
    with pytest.raises(LocalClusterError, match="quote"):
        _ = server.settings


def own_state(**changed: object) -> ClusterState:
    service = ServiceState(
        name="router", kind="router", service_id="r-1", pid=1, address="h:1", metrics="h:2"
    )
    arguments = {
        "pid": os.getpid(),
        "pid_started": process_started(os.getpid()),
        "started_at": "2026-11-21T09:30:00+00:00",
        "endpoint": "127.0.0.1:4711",
        "http_endpoint": "127.0.0.1:4712",
        "redis_pid": None,
        "services": (service,),
    }
    return ClusterState(**{**arguments, **changed})  # type: ignore[arg-type]


def test_state_survives_its_file(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path)
    folder.create()
    write_state(folder, own_state())
    assert read_state(folder) == own_state()
    assert own_state().is_running
    remove_state(folder)
    assert read_state(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1}', "\xff"])
def test_a_state_file_that_is_none_counts_as_none(tmp_path: Path, text: str) -> None:
    folder = DataFolder.at(tmp_path)
    folder.create()
    folder.state_file.write_bytes(text.encode("latin-1"))
    assert read_state(folder) is None


def test_a_reused_process_id_is_not_taken_for_the_cluster() -> None:
    assert not own_state(pid_started=1).is_running
    assert not own_state(pid=2**22).is_running


def test_the_endpoint_is_given_or_set_or_found_or_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRISK_ENDPOINT", raising=False)
    monkeypatch.setenv("BRISK_DATA_DIR", str(tmp_path))
    assert resolve_endpoint() == "127.0.0.1:7480"
    folder = DataFolder.default()
    folder.create()
    write_state(folder, own_state())
    assert resolve_endpoint() == "127.0.0.1:4711"
    write_state(folder, own_state(pid_started=1))
    assert resolve_endpoint() == "127.0.0.1:7480"
    monkeypatch.setenv("BRISK_ENDPOINT", "h:1")
    assert resolve_endpoint() == "h:1"
    assert resolve_endpoint("h:2") == "h:2"


def test_the_data_folder_is_chosen_or_in_the_users_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("BRISK_DATA_DIR", "~/x")
    assert DataFolder.default().root == Path("/home/me/x")
    monkeypatch.delenv("BRISK_DATA_DIR")
    assert DataFolder.default().root == Path("/data/brisk")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert DataFolder.default().root == Path("/home/me/.local/share/brisk")


def test_a_data_folder_belongs_to_one_cluster(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path)
    folder.create()
    second = folder_lock(folder)
    with folder_lock(folder), pytest.raises(AlreadyRunningError, match="brisk down"):
        second.__enter__()
    with folder_lock(folder):
        pass


def test_a_log_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brisk_client.local.logs._FILE_BYTES_MAX", 100)
    with LogFile(tmp_path / "x.log") as log:
        for number in range(50):
            log.write(b"%09d\n" % number)
    assert (tmp_path / "x.log").read_text().endswith("000000049\n")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 200


def test_log_lines_are_readable_with_and_without_colour() -> None:
    line = (
        '{"timestamp": "2026-11-21T09:30:00.123456Z", "level": "warning", '
        '"message": "worker lost", "worker": "w-1"}'
    )
    assert plain_line(line) == "warning: worker lost worker=w-1"
    assert render("router", line).plain == "router     09:30:00.123 worker lost worker=w-1"
    assert render("redis", "plain text").plain == "redis      plain text"
    assert plain_line("{not json") == "{not json"


def test_a_trace_in_the_log_is_shown() -> None:
    line = '{"level": "error", "message": "failed", "exception": "Traceback: x"}'
    assert render("worker-0", line).plain.endswith("failed\nTraceback: x")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("0", 0),
        ("90", 90),
        ("1h30m", 5_400),
        ("1.5s", 1.5),
        ("2d", 172_800),
        ("forever", INFINITE),
    ],
)
def test_a_length_of_time_is_read(text: str, seconds: float) -> None:
    assert parse_keep_alive(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "5x", "5 minutes", "nan", "1e3"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="5m"):
        parse_keep_alive(text)


def test_figures_are_for_people() -> None:
    assert [human_bytes(size) for size in (0, 1023, 1536, 6_000_000, 2.6e9)] == [
        "0 B", "1023 B", "1.5 KiB", "5.7 MiB", "2.4 GiB",
    ]  # fmt: skip
    assert [human_count(count) for count in (7, 1_534, 1_534_000, 1_300_000_000)] == [
        "7", "1.5K", "1.5M", "1.3B",
    ]  # fmt: skip
    assert [human_seconds(each) for each in (0, 1.5, 59.7, 90, 3_600, 5_400, 90_000, INFINITE)] == [
        "0s", "1.5s", "1m", "1m 30s", "1h", "1h 30m", "1d 1h", "forever",
    ]  # fmt: skip


def test_json_has_no_infinity() -> None:
    assert jsonable({"a": INFINITE, "b": (1, "x")}) == {"a": None, "b": [1, "x"]}


def test_a_models_words_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2J\x07b\u202ec\td\ne\r\u00e9") == "a\ufffd[2J\ufffdb\ufffdc\td\ne\u00e9"
