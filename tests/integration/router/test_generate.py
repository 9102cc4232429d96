"""Through a real router process: tokens arrive whole and in order, warm and cold."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from brisk.common.v1 import model_pb2
from brisk.inference.v1 import inference_service_pb2 as pb2

from services.common.errors import Reason
from tests.fakes.workers import FakeWorker, continuation
from tests.integration.router.fake_worker import MODEL, Cable, until
from tests.integration.router.house import SEED, Answer, ask, expected, run_house


async def test_a_warm_request_streams_without_asking_the_scheduler(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1", tokens_per_chunk=3)))
        answer = await house.generate(ask(8, request_id="req-1"))
        assert answer.error is None
        assert answer.tokens == expected(8)
        assert answer.last is not None
        assert answer.last.finish_reason == model_pb2.FINISH_REASON_LENGTH
        assert answer.last.usage.completion_tokens == 8
        assert answer.start is not None
        assert not answer.start.cold
        assert answer.start.source == model_pb2.TIER_DEVICE
        assert [phase.phase for phase in answer.start.phases] == [
            model_pb2.START_PHASE_QUEUE,
            model_pb2.START_PHASE_FIRST_TOKEN,
        ]
        assert house.scheduler.acquired == []
        assert house.worker.servicer.request_ids == ["req-1"]
        assert house.worker.servicer.requests[0].request_id == "req-1"


async def test_a_worker_is_connected_before_its_first_request(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house, Cable(house.worker.address) as cable:
        route = house.worker.hold(FakeWorker(name="i1"))
        await house.serve(replace(route, worker_address=cable.address))
        await until(lambda: cable.connections)


async def test_a_request_without_a_seed_gets_one_and_without_an_id_too(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        request = ask(2)
        request.sampling.ClearField("seed")
        for _ in range(2):
            assert (await house.generate(request)).error is None
        sent = house.worker.servicer.requests
        assert all(each.sampling.HasField("seed") for each in sent)
        assert sent[0].sampling.seed != sent[1].sampling.seed
        assert sent[0].request_id != sent[1].request_id


async def test_the_callers_metadata_names_the_request_if_the_message_does_not(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        await house.generate(ask(1), metadata=(("x-request-id", "from-metadata"),))
        assert house.worker.servicer.requests[0].request_id == "from-metadata"


async def test_chat_is_generate_with_a_conversation(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        turn = model_pb2.ChatMessage(role="user", content="hello")
        request = pb2.ChatRequest(
            model=MODEL,
            messages=[turn],
            sampling=model_pb2.SamplingParams(seed=SEED, max_tokens=5),
        )
        answer = Answer()
        async for response in house.inference.Chat(request):
            answer.take(response)
        assert answer.tokens == continuation(tuple(b"user: hello"), SEED, 5)
        [sent] = house.worker.servicer.requests
        assert list(sent.prompt.conversation.messages) == [turn]


async def test_a_cold_request_waits_for_the_start_and_shows_it(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        stream = await house.begin(ask(8, want_progress=True))
        assert stream.answer.progress[0].phase == model_pb2.START_PHASE_LOAD
        house.scheduler.started.set()
        answer = await stream.rest()
        assert answer.tokens == expected(8)
        assert [p.bytes_done for p in answer.progress] == [0, 50, 0]
        assert answer.progress[-1].phase == model_pb2.START_PHASE_FIRST_TOKEN
        assert answer.start is not None
        assert answer.start.cold
        assert answer.start.source == model_pb2.TIER_SSD
        assert [phase.phase for phase in answer.start.phases] == [
            model_pb2.START_PHASE_QUEUE,
            model_pb2.START_PHASE_LOAD,
            model_pb2.START_PHASE_INIT,
            model_pb2.START_PHASE_FIRST_TOKEN,
        ]
        await until(lambda: house.scheduler.released)
        assert house.scheduler.released == [house.scheduler.acquired[0].request_id]


async def test_progress_is_only_for_those_who_want_it(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        house.scheduler.started.set()
        answer = await house.generate(ask(4))
        assert (answer.progress, answer.tokens) == ([], expected(4))


async def test_many_cold_requests_all_get_their_tokens(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        worker = FakeWorker(name="i1")
        house.scheduler.startable["i1"] = house.worker.hold(worker, slots=2)
        running = [asyncio.create_task(house.generate(ask(4))) for _ in range(12)]
        await until(lambda: house.scheduler.acquiring == 12)
        house.scheduler.started.set()
        answers = await asyncio.gather(*running)
        assert all(answer.tokens == expected(4) for answer in answers)
        assert worker.running_most <= 2
        while len(house.scheduler.released) < 12:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_a_granted_acquisition_is_left_to_end_by_itself(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        house.scheduler.started.set()
        house.scheduler.linger_s = 0.05
        assert (await house.generate(ask(4))).tokens == expected(4)
        await until(lambda: not house.scheduler.acquiring)
        assert house.scheduler.given_up.locked(), "a call cancelled now would give the grant up"


async def test_an_unknown_model_is_told_with_its_near_matches(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path) as house:
        answer = await house.generate(ask(model="opt-125n"))
        assert answer.error is not None
        assert (answer.error.code, answer.error.reason) == ("NOT_FOUND", Reason.MODEL_NOT_FOUND)
        assert "opt-125n" in answer.error.message


async def test_slots_are_given_in_the_order_of_arrival(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        pace = asyncio.Semaphore(1)
        worker = FakeWorker(name="i1", pace=pace)
        await house.serve(house.worker.hold(worker, slots=1))
        names = [f"r{number}" for number in range(6)]
        running = []
        for waiting, name in enumerate(names):
            running.append(asyncio.create_task(house.generate(ask(2, request_id=name))))
            await house.shows(f"brisk_router_num_requests_waiting {float(waiting)}")
            await until(lambda: worker.requests)
        for _ in range(2 * len(names)):
            pace.release()
        answers = await asyncio.gather(*running)
        assert [answer.tokens for answer in answers] == [expected(2)] * len(names)
        assert worker.requests == names
        assert worker.running_most == 1


async def test_deadlines_go_on_to_every_hop(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        house.scheduler.startable["i1"] = house.worker.hold(FakeWorker(name="i1"))
        house.scheduler.started.set()
        assert (await house.generate(ask(1), timeout=20.0)).error is None
        assert 15.0 < house.scheduler.acquire_seconds[0] < 21.0  # gRPC rounds up
        assert 15.0 < house.worker.servicer.seconds[0] < 21.0
        assert (await house.generate(ask(1))).error is None
        assert 590.0 < house.worker.servicer.seconds[1] < 610.0


async def test_a_request_without_a_deadline_ends_at_the_default(
    redis_url: str, tmp_path: Path
) -> None:
    async with run_house(redis_url, tmp_path, request_s_default=0.5) as house:
        worker = FakeWorker(name="i1", pace=asyncio.Semaphore(1))
        await house.serve(house.worker.hold(worker))
        answer = await house.generate(ask(4))
        assert answer.tokens == expected(1)
        assert answer.error is not None
        assert answer.error.code == "DEADLINE_EXCEEDED"
        await house.worker.servicer.cancelled.acquire()
        assert worker.running == 0


async def test_what_happened_is_counted(redis_url: str, tmp_path: Path) -> None:
    async with run_house(redis_url, tmp_path) as house:
        await house.serve(house.worker.hold(FakeWorker(name="i1")))
        await house.generate(ask(4))
        await house.generate(ask(0))
        metrics = house.router.metrics()
        for line in (
            'brisk_requests_total{outcome="finished",reason="FINISH_REASON_LENGTH"} 1.0',
            'brisk_requests_total{outcome="refused",reason="INVALID_SAMPLING"} 1.0',
            'brisk_router_time_to_first_token_seconds_count{cold="false"} 1.0',
            "brisk_router_inter_token_latency_seconds_count 3.0",
            "brisk_e2e_request_latency_seconds_count 1.0",
            "brisk_router_num_requests_running 0.0",
            "brisk_router_num_requests_waiting 0.0",
        ):
            assert line in metrics, line
