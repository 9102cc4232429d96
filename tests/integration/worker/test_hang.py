"""A worker whose device does not answer says so to its clients and leaves, with exit code 1."""

from pathlib import Path

from brisk.common.v1 import model_pb2
from brisk.worker.v1 import worker_service_pb2 as pb2

from services.common.errors import Reason, UnavailableError
from tests.integration.worker.house import connect, load, load_request, refusal, run_cluster
from tests.models import DEMO_MODEL

PROMPT = " ".join(["You may copy and distribute the Program"] * 20)


async def test_a_step_over_the_limit_ends_the_worker(tmp_path: Path, redis_url: str) -> None:
    # No step of this model is as fast as the limit: to the worker, its device hangs.
    with run_cluster(
        tmp_path, redis_url, step_s_max="0.001", drain_s="2", announce_s="0", exact="true"
    ) as cluster:
        info = await cluster.import_model(DEMO_MODEL, "demo")
        async with connect(cluster.worker.grpc) as stub:
            await load(stub, load_request(info, "i"))
            request = pb2.GenerateRequest(
                request_id="r",
                instance_id="i",
                prompt=model_pb2.Prompt(text=PROMPT),
                sampling=model_pb2.SamplingParams(temperature=0, max_tokens=50, ignore_eos=True),
            )
            error = await refusal(stub.Generate(request, timeout=60))
        assert isinstance(error, UnavailableError)
        assert error.reason == Reason.WORKER_LOST
        assert cluster.worker.wait() == 1
        assert "a decode step has not ended within 0.001 s" in cluster.worker.log()
        packed = [each for each in cluster.worker.events() if "exact_rows" in each]
        assert [each["exact_rows"] for each in packed] == [16]  # as it was set
