"""Control calls return plain values, report progress, and repeat only what is safe to repeat."""

import math
from datetime import UTC, datetime

import pytest
from brisk.control.v1 import control_service_pb2 as control_pb2
from brisk_client import (
    AsyncClient,
    FailedPreconditionError,
    ImportProgress,
    InstanceState,
    InvalidRequestError,
    StreamBrokenError,
    UnavailableError,
)
from google.rpc import code_pb2  # type: ignore[import-untyped]  # ships without annotations

from tests.integration.sdk.scripted import (
    NOT_NOW,
    Refuse,
    ScriptedRouter,
    deployment,
    instance,
    nodes,
)


def importing(done: int) -> control_pb2.DeployResponse:
    return control_pb2.DeployResponse(
        progress=control_pb2.ImportProgress(bytes_done=done, bytes_total=8, file="a.safetensors")
    )


async def test_deploy_reports_progress_and_returns_the_deployment(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [
        (importing(4), importing(8), control_pb2.DeployResponse(deployment=deployment()))
    ]
    seen: list[ImportProgress] = []
    deployed = await client.deploy(
        "tiny", source="/models/base", keep_alive_s=math.inf, on_progress=seen.append
    )
    assert [event.fraction for event in seen] == [0.5, 1.0]
    assert seen[0].file == "a.safetensors"
    assert deployed.name == "tiny"
    assert deployed.model.revision == "0123456789abcdef"
    assert deployed.keep_alive_s == math.inf
    assert deployed.created_at == datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
    (request,) = router.requests
    assert request.source_path == "/models/base"  # type: ignore[attr-defined]
    assert request.spec.keep_alive.seconds == -1  # type: ignore[attr-defined]


@pytest.mark.parametrize("as_is", [True, False])
async def test_import_returns_the_published_model(
    client: AsyncClient, router: ScriptedRouter, *, as_is: bool
) -> None:
    router.scripts = [(control_pb2.ImportResponse(model=deployment().model),)]
    model = await client.import_model("/models/base", name="base", as_is=as_is)
    assert (model.name, model.parameters) == ("base", 1_500_000)
    (request,) = router.requests
    assert request.as_is is as_is  # type: ignore[attr-defined]


async def test_a_url_is_sent_as_it_is_and_progress_tells_speed_and_time_left(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    fetching = control_pb2.ImportProgress(
        bytes_done=2, bytes_total=8, bytes_per_second=3, origin="s3"
    )
    router.scripts = [
        (
            control_pb2.DeployResponse(progress=fetching),
            control_pb2.DeployResponse(deployment=deployment()),
        )
    ]
    seen: list[ImportProgress] = []
    await client.deploy("tiny", source="s3://b/x", as_is=True, on_progress=seen.append)
    assert (seen[0].origin, seen[0].bytes_per_s, seen[0].left_s) == ("s3", 3, 2.0)
    (request,) = router.requests
    assert request.source_path == "s3://b/x"  # type: ignore[attr-defined]
    assert request.as_is  # type: ignore[attr-defined]


@pytest.mark.parametrize("script", [(), (importing(4),)], ids=["nothing", "only progress"])
async def test_a_deploy_stream_without_its_last_message_is_an_error(
    client: AsyncClient, router: ScriptedRouter, script: tuple[object, ...]
) -> None:
    router.scripts = [script]
    with pytest.raises(StreamBrokenError):
        await client.deploy("tiny", model="base")


async def test_views_are_plain_values(client: AsyncClient, router: ScriptedRouter) -> None:
    router.scripts = [
        (control_pb2.ListModelsResponse(deployments=[deployment("a"), deployment("b")]),),
        (control_pb2.GetModelResponse(deployment=deployment(), instances=[instance()]),),
        (nodes(),),
        (control_pb2.ListInstancesResponse(instances=[instance()]),),
    ]
    assert [entry.name for entry in await client.list_models()] == ["a", "b"]
    detail = await client.get_model("tiny")
    assert detail.deployment.name == "tiny"
    view = await client.nodes()
    assert (view.leader_id, view.leader_epoch) == ("s-1", 7)
    assert view.nodes[0].workers[0].devices[0].free_bytes == 2**29
    (found,) = await client.instances()
    assert found == detail.instances[0] == view.nodes[0].workers[0].instances[0]
    assert found.state is InstanceState.READY
    assert found.idle_s == 2.5
    assert found.keep_alive_left_s == 90


async def test_values_of_a_newer_server_do_not_break_an_older_client(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    entry = instance()
    entry.state = 99  # type: ignore[assignment]
    router.scripts = [(control_pb2.ListInstancesResponse(instances=[entry]),)]
    (found,) = await client.instances()
    assert found.state is InstanceState.UNKNOWN


async def test_a_view_is_tried_again_while_no_scheduler_leads(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(NOT_NOW,), (control_pb2.ListModelsResponse(),)]
    assert await client.list_models() == ()
    assert len(router.requests) == 2


async def test_delete_is_never_repeated(client: AsyncClient, router: ScriptedRouter) -> None:
    router.scripts = [(NOT_NOW,), (control_pb2.DeleteResponse(),)]
    with pytest.raises(UnavailableError):
        await client.delete("tiny")
    assert len(router.requests) == 1


async def test_refusals_keep_reason_and_message(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(Refuse(code_pb2.FAILED_PRECONDITION, "MODEL_LEASED", message="in use"),)]
    with pytest.raises(FailedPreconditionError, match="in use") as caught:
        await client.delete("tiny", keep_files=False)
    assert caught.value.reason == "MODEL_LEASED"


async def test_every_call_carries_a_deadline_and_a_request_id_of_its_own(
    client: AsyncClient, router: ScriptedRouter
) -> None:
    router.scripts = [(control_pb2.ListModelsResponse(),)]
    await client.list_models()
    await client.list_models(timeout_s=3)
    first_s, second_s = router.deadlines_s
    assert 5 < (first_s or 0) < 10.5  # the client's
    assert 0 < (second_s or 0) < 3.5  # the call's own
    assert len({entry["x-request-id"] for entry in router.metadata}) == 2


async def test_a_deployment_needs_exactly_one_source(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequestError, match="either"):
        await client.deploy("tiny")
    with pytest.raises(InvalidRequestError, match="either"):
        await client.deploy("tiny", source="/a", model="b")
