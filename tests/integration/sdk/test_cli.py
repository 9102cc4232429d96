"""Each command does one thing, prints it for people or as JSON, and fails with its own code."""

import asyncio
import json
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import IO

import pytest
from brisk.common.v1 import model_pb2
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk_client.cli.app import execute
from brisk_client.local.spec import ClusterSpec
from google.rpc import code_pb2  # type: ignore[import-untyped]  # ships without annotations

from tests.integration.sdk.scripted import (
    ANSWER,
    HANG,
    Refuse,
    ScriptedRouter,
    chunk,
    deployment,
    instance,
    nodes,
)


@pytest.fixture(autouse=True)
def _no_local_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BRISK_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("BRISK_ENDPOINT", raising=False)


async def brisk(router: ScriptedRouter | None, *arguments: str) -> int:
    where = () if router is None else ("--endpoint", router.address)
    return await asyncio.to_thread(execute, [*arguments, *where])


async def test_run_prints_the_answer_and_nothing_else(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await brisk(router, "run", "tiny", "Once", "-n", "8", "-t", "0", "--stop", "x") == 0
    out, err = capsys.readouterr()
    assert out == "a b c\n"
    assert err == ""
    (request,) = router.requests
    assert request.prompt.text == "Once"  # type: ignore[attr-defined]
    assert request.sampling.max_tokens == 8  # type: ignore[attr-defined]
    assert request.sampling.HasField("temperature")  # type: ignore[attr-defined]
    assert list(request.sampling.stop) == ["x"]  # type: ignore[attr-defined]


async def test_run_reads_a_piped_prompt(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("from a pipe\n"))
    assert await brisk(router, "run", "tiny") == 0
    assert router.requests[0].prompt.text == "from a pipe\n"  # type: ignore[attr-defined]


async def test_timings_are_a_table_of_the_phases_on_standard_error(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await brisk(router, "run", "tiny", "Once", "--timings") == 0
    out, err = capsys.readouterr()
    assert out == "a b c\n"
    assert "cold start" in err
    assert "load" in err
    assert "250.0" in err
    assert "from ssd" in err


async def test_json_is_one_object_with_everything(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await brisk(router, "run", "tiny", "Once", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["text"] == "a b c"
    assert value["finish_reason"] == "length"
    assert value["start"]["phases"] == [{"phase": "load", "duration_s": 0.25}]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (code_pb2.NOT_FOUND, ("MODEL_NOT_FOUND", 3, "brisk ls")),
        (code_pb2.INVALID_ARGUMENT, ("INVALID_SAMPLING", 2, "")),
        (code_pb2.RESOURCE_EXHAUSTED, ("INSUFFICIENT_MEMORY", 5, "--device")),
        (code_pb2.RESOURCE_EXHAUSTED, ("QUEUE_FULL", 5, "try again")),
        (code_pb2.INTERNAL, ("ENGINE_FAILED", 1, "brisk status")),
        (code_pb2.DEADLINE_EXCEEDED, ("DEADLINE_EXCEEDED", 6, "--timeout")),
    ],
)
async def test_a_failure_is_one_line_of_what_and_one_of_what_to_do(
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    code: int,
    expected: tuple[str, int, str],
) -> None:
    reason, exit_code, hint = expected
    router.scripts = [(Refuse(code, reason, message="what was wrong"),)]
    assert await brisk(router, "run", "tiny", "Once") == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: what was wrong\n")
    assert hint in err
    assert "Traceback" not in err


async def test_a_failure_with_json_is_json_on_standard_error(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(Refuse(code_pb2.NOT_FOUND, "MODEL_NOT_FOUND", message="no tiny"),)]
    assert await brisk(router, "run", "tiny", "Once", "--json") == 3
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["reason"], error["message"]) == ("MODEL_NOT_FOUND", "no tiny")


async def test_nobody_there_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert await brisk(None, "ls", "--endpoint", "127.0.0.1:1") == 4
    err = capsys.readouterr().err
    assert "127.0.0.1:1" in err
    assert "brisk up" in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("lss",),
        ("run",),
        ("run", "m", "p", "--max-tokens", "many"),
        ("deploy", "m"),
        ("deploy", "m", "--from", "/x", "--model", "y"),
        ("deploy", "m", "--from", "/x", "--keep-alive", "soon"),
        ("deploy", "m", "--from", ""),
        ("import", ""),
        ("ls", "--endpoint", "nonsense"),
        ("up", "--device", "gpu"),
        ("up", "--port", "70000"),
    ],
    ids=" ".join,
)
async def test_wrong_usage_exits_with_2_and_no_traceback(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert await brisk(None, *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--as-is",)], ids=str)
async def test_import_keeps_the_files_only_when_told_to(
    router: ScriptedRouter, options: tuple[str, ...]
) -> None:
    router.scripts = [(control_pb2.ImportResponse(model=deployment().model),)]
    assert await brisk(router, "import", "/models/base", *options) == 0
    (request,) = router.requests
    assert request.as_is is bool(options)  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", [(), ("--detach",)], ids=str)
@pytest.mark.parametrize("folder", ["/proc/x", "/etc/passwd", "/etc/passwd/x"])
async def test_a_data_folder_that_cannot_be_is_one_line_that_names_its_option(
    capsys: pytest.CaptureFixture[str], folder: str, how: tuple[str, ...]
) -> None:
    assert await brisk(None, "up", "--data-dir", folder, *how) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {folder} cannot be the data folder: ")
    assert "--data-dir" in line


@pytest.fixture
def full_disk() -> Iterator[IO[str]]:
    with Path("/dev/full").open("w") as opened:
        yield opened


@pytest.mark.parametrize("arguments", [("run", "tiny", "hi"), ("ls", "--json")], ids=" ".join)
async def test_output_that_cannot_be_written_is_one_line(
    router: ScriptedRouter, full_disk: IO[str], arguments: tuple[str, ...]
) -> None:
    if arguments[0] == "ls":
        router.scripts = [(control_pb2.ListModelsResponse(deployments=[deployment()]),)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "brisk_client.cli", *arguments, "--endpoint", router.address),
        stdout=full_disk,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 1
    (line,) = err.decode().splitlines()
    assert "the output cannot be written: No space left on device" in line


async def test_chat_keeps_the_conversation(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("one\n\ntwo\nmore\n/clear\nthree\n/exit\nx\n"))
    assert await brisk(router, "chat", "tiny", "--system", "be brief") == 0
    turns = [
        [(turn.role, turn.content) for turn in request.messages]  # type: ignore[attr-defined]
        for request in router.requests
    ]
    system, said = ("system", "be brief"), ("assistant", "a b c")
    assert turns == [
        [system, ("user", "one")],
        [system, ("user", "one"), said, ("user", "two")],
        [system, ("user", "one"), said, ("user", "two"), said, ("user", "more")],
        [system, ("user", "three")],
    ]
    assert capsys.readouterr().out == "a b c\n" * 4


async def test_chat_survives_a_failure_for_now(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("one\ntwo\n"))
    router.scripts = [(Refuse(code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),), ANSWER]
    assert await brisk(router, "chat", "tiny") == 0
    assert [len(request.messages) for request in router.requests] == [1, 1]  # type: ignore[attr-defined]
    out, err = capsys.readouterr()
    assert "a b c" in out
    assert "error:" in err


async def test_chat_ends_if_it_can_never_work(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("one\ntwo\n"))
    router.scripts = [(Refuse(code_pb2.INVALID_ARGUMENT, "NO_CHAT_TEMPLATE"),)]
    assert await brisk(router, "chat", "tiny") == 2
    assert len(router.requests) == 1


async def test_ls_ps_and_status_show_what_is_there(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    models = control_pb2.ListModelsResponse(deployments=[deployment()])
    router.scripts = [(models,)]
    assert await brisk(router, "ls") == 0
    shown = capsys.readouterr().out
    for text in ("tiny", "LlamaForCausalLM", "1.5M", "5.7 MiB", "forever", "1 ready, 2 loading"):
        assert text in shown
    router.scripts = [(control_pb2.ListInstancesResponse(instances=[instance()]),)]
    assert await brisk(router, "ps") == 0
    shown = capsys.readouterr().out
    for text in ("i-1", "w-1", "cpu:0", "6.7 MiB", "ready", "0 of 4", "1m 30s"):
        assert text in shown
    router.scripts = [(nodes(),), (models,)]
    assert await brisk(router, "status") == 0
    shown = capsys.readouterr().out
    for text in (router.address, "s-1 (epoch 7)", "512.0 MiB", "1.0 GiB", "local"):
        assert text in shown


@pytest.mark.parametrize("command", ["ls", "ps", "status"])
async def test_views_print_json(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    models = control_pb2.ListModelsResponse(deployments=[deployment()])
    scripts: dict[str, list[tuple[object, ...]]] = {
        "ls": [(models,)],
        "ps": [(control_pb2.ListInstancesResponse(instances=[instance()]),)],
        "status": [(nodes(),), (models,)],
    }
    router.scripts = scripts[command]
    assert await brisk(router, command, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    first = value[0] if isinstance(value, list) else value["models"][0]
    assert first.get("keep_alive_s") is None  # forever
    assert "tiny" in json.dumps(value)


async def test_an_empty_list_says_what_to_do_next(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(control_pb2.ListModelsResponse(),)]
    assert await brisk(router, "ls") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "brisk deploy" in err


async def test_deploy_sends_an_absolute_folder_and_the_specification(
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    router.scripts = [(control_pb2.DeployResponse(deployment=deployment()),)]
    arguments = ("--from", "m", "--keep-alive", "1h30m", "--slots", "2", "--context", "64")
    assert await brisk(router, "deploy", "tiny", *arguments) == 0
    (request,) = router.requests
    assert request.source_path == f"{tmp_path}/m"  # type: ignore[attr-defined]
    assert request.spec.keep_alive.seconds == 5_400  # type: ignore[attr-defined]
    assert request.spec.slots == 2  # type: ignore[attr-defined]
    assert request.spec.context_tokens_max == 64  # type: ignore[attr-defined]
    assert "tiny is deployed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refused", "code", "lines"),
    [
        (
            (code_pb2.NOT_FOUND, "SOURCE_NOT_FOUND", None, "there is no folder at source_path"),
            3,
            ("there is no folder {} on the cluster's machine", "has to be on each machine"),
        ),
        (
            (code_pb2.INVALID_ARGUMENT, "SOURCE_NOT_A_FOLDER", None, "source_path is not a folder"),
            2,
            ("{} is not a folder", "config.json"),
        ),
        (
            (code_pb2.INVALID_ARGUMENT, "SOURCE_UNREADABLE", None, "must not read source_path"),
            2,
            ("must not read {}", "chmod"),
        ),
        (
            (code_pb2.INVALID_ARGUMENT, "INVALID_SOURCE", None, "source_path leads nowhere"),
            2,
            ("{} leads nowhere", "absolute path"),
        ),
    ],
    ids=["missing", "file", "unreadable", "nowhere"],
)
async def test_a_folder_that_is_refused_is_named_as_it_was_given(
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    refused: tuple[int, str, None, str],
    code: int,
    lines: tuple[str, str],
) -> None:
    says, hint = lines
    router.scripts = [(Refuse(*refused),)]
    for command in (("deploy", "tiny", "--from"), ("import",)):
        assert await brisk(router, *command, "given") == code
        problem, advice = capsys.readouterr().err.splitlines()
        assert problem == f"error: {says.format(Path.cwd() / 'given')}"
        assert hint in advice


async def test_rm_removes_each_name(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(control_pb2.DeleteResponse(),)]
    assert await brisk(router, "rm", "a", "b", "--keep-files") == 0
    assert [(entry.name, entry.keep_files) for entry in router.requests] == [  # type: ignore[attr-defined]
        ("a", True),
        ("b", True),
    ]


async def test_what_a_model_says_reaches_a_pipe_unchanged(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(chunk(0, 5, text="\x1b[2J\u00e9", last=True),)]
    assert await brisk(router, "run", "tiny", "Once") == 0
    assert capsys.readouterr().out == "\x1b[2J\u00e9\n"


async def test_grpc_lists_describes_and_calls_by_reflection(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    service = "brisk.inference.v1.InferenceService"
    assert await brisk(router, "grpc", "list") == 0
    assert service in capsys.readouterr().out.splitlines()
    assert await brisk(router, "grpc", "list", service) == 0
    names = ("Generate", "Chat", "Tokenize")
    assert capsys.readouterr().out.splitlines() == [f"{service}.{name}" for name in names]
    assert await brisk(router, "grpc", "describe", service) == 0
    shown = capsys.readouterr().out
    assert (
        "rpc Generate(brisk.inference.v1.GenerateRequest) returns "
        "(stream brisk.inference.v1.GenerateResponse);" in shown
    )
    assert await brisk(router, "grpc", "describe", "brisk.common.v1.SamplingParams") == 0
    shown = capsys.readouterr().out
    assert "optional double temperature = 1;" in shown
    assert "repeated string stop = 6;" in shown
    assert await brisk(router, "grpc", "describe", "brisk.common.v1.Prompt") == 0
    assert "oneof form {" in capsys.readouterr().out
    data = '{"model": "tiny", "prompt": {"text": "Once"}, "sampling": {"maxTokens": 4}}'
    assert await brisk(router, "grpc", "call", f"{service}/Generate", "-d", data) == 0
    shown = capsys.readouterr().out
    assert shown.count('"tokenIds"') == 3
    assert router.requests[-1].sampling.max_tokens == 4  # type: ignore[attr-defined]


async def test_grpc_call_reads_the_request_from_standard_input(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    router.scripts = [(control_pb2.GetModelResponse(deployment=deployment()),)]
    monkeypatch.setattr(sys, "stdin", StringIO('{"name": "tiny"}'))
    method = "brisk.control.v1.ControlService.GetModel"
    assert await brisk(router, "grpc", "call", method, "-d", "@-") == 0
    assert json.loads(capsys.readouterr().out)["deployment"]["name"] == "tiny"
    assert router.requests[0].name == "tiny"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("describe", "brisk.Nothing"), 3, "brisk grpc list"),
        (("call", "brisk.control.v1.ControlService/Nothing"), 3, "not known"),
        (("call", "brisk.control.v1.ControlService/GetModel", "-d", "{"), 2, "GetModelRequest"),
        (("call", "brisk.control.v1.ControlService/GetModel", "-d", '{"x": 1}'), 2, '"x"'),
        (("call", "brisk.control.v1.ControlService"), 2, "no method"),
        (
            ("call", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
            2,
            "stream of requests",
        ),
        (("call", "a.B/C", "-d", "@/nowhere"), 2, "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_grpc_explains_what_is_wrong(
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    assert await brisk(router, "grpc", *arguments) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "tiny", "Once"),
        ("grpc", "call", "brisk.control.v1.ControlService/GetModel", "-d", '{"name": "tiny"}'),
    ],
    ids=lambda value: value[0],
)
async def test_a_time_that_is_up_is_told_with_its_length(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    router.scripts = [(HANG,)]
    assert await brisk(router, *arguments, "--timeout", "0.5") == 6
    err = capsys.readouterr().err
    assert err.splitlines()[0] == "error: the time was up after 0.5 s"


async def test_help_says_what_goes_with_a_deployment_and_how_long_a_stop_may_take(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await brisk(None, "rm", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "files in the store go too, unless another deployment uses them or --keep-files" in shown
    assert await brisk(None, "up", "--help") == 0
    drain_s = ClusterSpec.__dataclass_fields__["drain_s"].default
    assert f"answers under way have {drain_s:g} s to end" in " ".join(
        capsys.readouterr().out.split()
    )


async def test_version_names_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert await brisk(None, "version", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"brisk", "grpcio", "protobuf", "python"}


async def test_down_without_a_cluster_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert await brisk(None, "down", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stopped"] is False


def explained() -> control_pb2.ExplainResponse:
    near = control_pb2.PlacementCandidate(
        way=control_pb2.PLACEMENT_WAY_EVICT,
        node_id="n-1",
        worker_id="w-1",
        device_id="cpu:0",
        tier=model_pb2.TIER_DRAM,
        victim_instance_ids=["i-7"],
    )
    near.transfer.FromMilliseconds(120)
    near.init.FromMilliseconds(30)
    far = control_pb2.PlacementCandidate(
        way=control_pb2.PLACEMENT_WAY_MIGRATE, worker_id="w-2", refused="workers cannot"
    )
    made = control_pb2.ExplainResponse(placement_id="p-1", deployment="tiny")
    choice = made.choices.add(chosen=near, considered=[near, far])
    choice.at.FromMilliseconds(5)
    attempt = made.attempts.add(instance_id="i-8", expected=near)
    attempt.took.FromMilliseconds(170)
    phase = attempt.report.phases.add(phase=model_pb2.START_PHASE_LOAD)
    phase.duration.FromMilliseconds(140)
    made.attempts.add(instance_id="i-9", expected=near, failure="DATA_LOSS")
    made.served.add(request_id="r-1").start.cold = True
    return made


async def test_explain_shows_what_was_compared_and_what_happened(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(explained(),)]
    assert await brisk(router, "explain", "r-1") == 0
    shown = capsys.readouterr().out
    for text in (
        "p-1: tiny",
        "evict on n-1/w-1/cpu:0, ready in 150 ms",
        "evicts i-7",
        "workers cannot",
        "transfer 140 ms (120 ms)",
        "DATA_LOSS",
        "r-1",
    ):
        assert text in shown
    assert await brisk(router, "explain", "r-1", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["choices"][0]["chosen"]["victims"] == ["i-7"]
    assert value["attempts"][1]["report"] is None


async def test_explain_says_what_is_not_kept(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(Refuse(code_pb2.NOT_FOUND, "PLACEMENT_NOT_FOUND"),)]
    assert await brisk(router, "explain", "r-1") != 0
    assert "newest few thousand" in capsys.readouterr().err


async def test_nodes_and_top_show_devices_and_loads(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    told = nodes()
    told.nodes[0].io.loads = 3
    told.nodes[0].io.ssd_bytes_per_s = 2**30
    told.nodes[0].io.models_in_dram = 5
    router.scripts = [(told,)]
    assert await brisk(router, "nodes") == 0
    shown = capsys.readouterr().out
    for text in ("512.0 MiB", "1.0 GiB", "1.0 GiB/s", "5 models", "3"):
        assert text in shown
    models = control_pb2.ListModelsResponse(deployments=[deployment()])
    instances = control_pb2.ListInstancesResponse(instances=[instance()])
    router.scripts = [(told,), (instances,), (models,)]
    assert await brisk(router, "top") == 0  # no terminal: one look
    shown = capsys.readouterr().out
    for text in ("s-1 (epoch 7)", "1 ready, 0 loading", "w-1", "0 of 4", "█"):
        assert text in shown


async def test_deploy_sends_how_a_deployment_scales(
    router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.scripts = [(control_pb2.DeployResponse(deployment=deployment()),)]
    arguments = ("--min", "1", "--max", "4", "--target", "8", "--max-queue", "9")
    more = ("--priority", "-2", "--keep-alive", "learned")
    assert await brisk(router, "deploy", "tiny", "--model", "m", *arguments, *more) == 0
    (request,) = router.requests
    spec = request.spec  # type: ignore[attr-defined]
    assert (spec.min_replicas, spec.max_replicas) == (1, 4)
    assert (spec.target_concurrency, spec.max_queue, spec.priority) == (8, 9, -2)
    assert spec.learned_keep_alive
    assert not spec.HasField("keep_alive")
