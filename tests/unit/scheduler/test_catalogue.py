"""A model is on every node or on none, and a deployment is durable before anyone can use it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from structlog.testing import capture_logs

from services.common.errors import (
    BriskError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model import ModelInfo, ModelRef
from services.common.names import parse_model_name
from services.scheduler import catalogue as module
from services.scheduler import imports as imports_module
from services.scheduler.catalogue import Catalogue, DeployWish
from services.scheduler.deployment import Deployment, SpecWish
from services.scheduler.deployments import MARK, Deployments
from services.scheduler.imports import Chores, Imports
from services.scheduler.ports import ImportProgress
from tests.unit.scheduler.doubles import Hash, TwoStores, settled, until
from tests.unit.scheduler.test_shell import Court, reigning

LEASED = FailedPreconditionError("leased", reason=Reason.MODEL_LEASED)


@dataclass(slots=True, kw_only=True)
class Office:
    """A catalogue and all that it deals with."""

    catalogue: Catalogue
    court: Court
    stores: TwoStores
    records: Hash

    def names(self) -> list[list[str]]:
        """Return the names of the models on each node."""
        return [[info.ref.name for info in held] for held in self.stores.held.values()]

    async def imported(self, path: str, name: str = "") -> list[ImportProgress | ModelInfo]:
        """Import to the end."""
        told = self.catalogue.import_model(self.court.reign, path, name)
        return [each async for each in told]

    async def deployed(
        self, source: str | ModelRef, name: str = "", spec: SpecWish | None = None
    ) -> Deployment:
        """Deploy to the end."""
        wish = DeployWish(name=name, source=source, spec=spec or SpecWish())
        last = [each async for each in self.catalogue.deploy(self.court.reign, wish)][-1]
        assert isinstance(last, Deployment)
        return last


@pytest.fixture
async def office(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    monkeypatch.setattr(module, "_DELETE_PAUSE_S", 0.01)
    monkeypatch.setattr(imports_module, "_LOOKS_AFTER_S", (0.0, 0.01))
    async with reigning() as court:
        stores, records, chores = TwoStores(), Hash(epoch=7), Chores()
        deployments = Deployments(records)
        await deployments.load(7)
        imports = Imports(stores=stores, peers=court.peers, chores=chores)
        yield Office(
            catalogue=Catalogue(
                deployments=deployments, imports=imports, workers=court.worker, chores=chores
            ),
            court=court,
            stores=stores,
            records=records,
        )
        await chores.close()


def ref(name: str, revision: str = "") -> ModelRef:
    return ModelRef(name=parse_model_name(name), revision=revision)


@pytest.mark.parametrize("as_is", [True, False])
async def test_every_node_hears_whether_an_import_keeps_its_files(
    office: Office, *, as_is: bool
) -> None:
    told = office.catalogue.import_model(office.court.reign, "/m/gamma", "", as_is=as_is)
    assert [each async for each in told]
    assert office.stores.kept_as_is == [as_is, as_is]


async def test_a_deployment_from_a_source_may_keep_its_files(office: Office) -> None:
    wish = DeployWish(name="gamma", source="s3://b/gamma", spec=SpecWish(), as_is=True)
    assert [each async for each in office.catalogue.deploy(office.court.reign, wish)]
    assert office.stores.kept_as_is == [True, True]


async def test_an_import_tells_the_progress_of_all_nodes_together(office: Office) -> None:
    *told, last = await office.imported("/m/gamma")
    assert isinstance(last, ModelInfo)
    assert last.ref == ref("gamma", "1")
    assert told[-1] == ImportProgress(bytes_done=20, bytes_total=80, file="config.json")
    assert office.names() == [["gamma"], ["gamma"]]
    assert "check gamma" in office.court.worker.calls


async def test_a_bad_name_is_refused_before_anything_is_read(office: Office) -> None:
    with pytest.raises(InvalidArgumentError):
        await office.imported("/m/gamma", "../gamma")
    assert office.stores.begun == []


@pytest.mark.parametrize("how", ["fails", "differs", "says nothing"])
async def test_a_node_that_spoils_an_import_undoes_it_everywhere(office: Office, how: str) -> None:
    kind: type[BriskError] = InvalidArgumentError
    if how == "fails":
        office.stores.errors["n2:1"] = ResourceExhaustedError("full", reason=Reason.DISK_FULL)
        kind = ResourceExhaustedError
    elif how == "differs":
        office.stores.revisions["n2:1"] = "2"
    else:
        office.stores.ends_without_result = True
        kind = UnavailableError
    with pytest.raises(kind):
        await office.imported("/m/gamma")
    assert office.names() == [[], []]


async def test_progress_is_told_when_there_is_some_and_not_else(office: Office) -> None:
    office.stores.held_back.add("n2:1")
    call = office.catalogue.import_model(office.court.reign, "/m/gamma", "")
    first = await anext(call)
    assert isinstance(first, ImportProgress)
    more = asyncio.ensure_future(anext(call))
    await settled()
    assert not more.done()  # the first node is done and the second one says nothing
    office.stores.may_finish.set()
    assert isinstance(await more, ModelInfo)


async def test_a_node_that_fails_while_nobody_listens_fails_the_import(office: Office) -> None:
    office.stores.errors["n2:1"] = ResourceExhaustedError("full")
    office.stores.held_back |= {"n1:1", "n2:1"}
    call = office.catalogue.import_model(office.court.reign, "/m/gamma", "")
    await anext(call)
    office.stores.may_finish.set()
    await settled()  # both nodes end before the caller asks for more
    with pytest.raises(ResourceExhaustedError):
        await anext(call)
    assert office.names() == [[], []]


async def test_what_a_node_had_before_stays_when_the_import_fails(office: Office) -> None:
    await office.imported("/m/gamma")
    office.stores.held["n2:1"].clear()
    office.stores.errors["n2:1"] = ResourceExhaustedError("full")
    with pytest.raises(ResourceExhaustedError):
        await office.imported("/m/gamma")
    assert office.names() == [["gamma"], []]


async def test_an_import_that_is_left_takes_back_what_is_done(office: Office) -> None:
    office.stores.held_back.add("n2:1")
    call = office.catalogue.import_model(office.court.reign, "/m/gamma", "")
    await anext(call)
    await settled()
    assert office.names() == [["gamma"], []]
    await call.aclose()
    await settled()
    assert office.names() == [[], []]


async def test_a_node_that_publishes_what_we_have_cancelled_is_looked_at_again(
    office: Office,
) -> None:
    office.stores.errors["n2:1"] = ResourceExhaustedError("full")
    office.stores.held_back.add("n1:1")
    office.stores.publishes_late = True
    with pytest.raises(ResourceExhaustedError):
        await office.imported("/m/gamma")
    assert office.stores.deleted == ["gamma at n1:1"]
    assert office.names() == [[], []]


async def test_a_node_that_cannot_be_asked_is_left_as_it_is(office: Office) -> None:
    office.stores.errors["n2:1"] = ResourceExhaustedError("full")
    office.stores.models_errors["n1:1"] = deque([None, UnavailableError("away")])
    with pytest.raises(ResourceExhaustedError):
        await office.imported("/m/gamma")


async def test_imports_of_one_name_come_one_after_another(office: Office) -> None:
    office.stores.held_back |= {"n1:1", "n2:1"}
    first = asyncio.ensure_future(office.imported("/m/gamma"))
    second = asyncio.ensure_future(office.imported("/n/gamma/"))
    other = asyncio.ensure_future(office.imported("/m/delta"))
    await settled()
    assert office.stores.begun == ["/m/gamma", "/m/gamma", "/m/delta", "/m/delta"]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    office.stores.may_finish.set()
    await second
    await other
    assert office.names() == [["delta", "gamma"], ["delta", "gamma"]]


async def test_an_import_that_is_left_during_its_check_is_taken_back(office: Office) -> None:
    office.court.worker.may_check.clear()
    importing = asyncio.ensure_future(office.imported("/m/gamma"))
    await until(lambda: "check gamma" in office.court.worker.calls)
    importing.cancel()
    await asyncio.gather(importing, return_exceptions=True)
    await settled()
    assert office.names() == [[], []]


@pytest.mark.parametrize(
    "verdict", [InvalidArgumentError("bad", reason=Reason.INVALID_MODEL), DataLossError("bad")]
)
async def test_a_verdict_against_a_model_takes_it_back(office: Office, verdict: BriskError) -> None:
    office.court.worker.check_error = verdict
    with pytest.raises(type(verdict)):
        await office.imported("/m/gamma")
    assert office.names() == [[], []]
    with pytest.raises(type(verdict)):
        await office.deployed("/m/gamma")
    assert office.names() == [[], []]
    assert list(office.records.fields) == [MARK]


async def test_a_model_in_use_is_never_taken_back(office: Office) -> None:
    await office.deployed("/m/gamma")
    office.stores.held["n2:1"].clear()
    office.court.worker.check_error = InvalidArgumentError("bad", reason=Reason.INVALID_MODEL)
    with pytest.raises(InvalidArgumentError):
        await office.imported("/m/gamma")
    assert office.names() == [["gamma"], ["gamma"]]


async def test_a_check_that_nobody_could_decide_is_left_to_the_first_load(office: Office) -> None:
    office.court.worker.check_error = UnavailableError("away")
    assert (await office.deployed("/m/gamma")).name == "gamma"


async def test_a_deployment_is_durable_then_known(office: Office) -> None:
    made = await office.deployed("/m/gamma", name="org/gamma", spec=SpecWish(slots=2))
    assert made.spec.slots == 2
    assert made.name in office.records.fields
    assert office.court.reign.state.deployments["org/gamma"] == made
    again = await office.deployed(ref("gamma"), name="org/gamma")
    assert again.created_at == made.created_at
    assert again.spec.slots == 4


async def test_a_bad_specification_takes_the_import_back(office: Office) -> None:
    with pytest.raises(InvalidArgumentError, match="at most 128"):
        await office.deployed("/m/gamma", spec=SpecWish(context_tokens_max=129))
    assert office.names() == [[], []]
    with pytest.raises(InvalidArgumentError, match="slots"):
        await office.deployed("/m/gamma", spec=SpecWish(slots=0))


async def test_an_imported_model_is_found_by_name_and_revision(office: Office) -> None:
    office.stores.revisions = {"n1:1": "1", "n2:1": "1"}
    await office.imported("/m/gamma")
    office.stores.revisions = {"n1:1": "2", "n2:1": "2"}
    await office.imported("/m/gamma")
    assert (await office.deployed(ref("gamma"))).model.ref.revision == "2"
    assert (await office.deployed(ref("gamma", "1"))).model.ref.revision == "1"
    with pytest.raises(NotFoundError, match="at revision 3"):
        await office.deployed(ref("gamma", "3"))
    with pytest.raises(NotFoundError, match="did you mean gamma"):
        await office.deployed(ref("gama"))
    with pytest.raises(NotFoundError):
        await office.deployed(ref("zzz"))


async def test_a_model_on_the_second_node_only_is_found(office: Office) -> None:
    await office.imported("/m/gamma")
    office.stores.held["n1:1"].clear()
    assert (await office.deployed(ref("gamma"))).name == "gamma"


async def test_without_nodes_nothing_can_be_imported(office: Office) -> None:
    office.court.peers.nodes = ()
    for source in ("/m/gamma", ref("gamma")):
        with pytest.raises(UnavailableError) as refusal:
            await office.deployed(source)
        assert refusal.value.reason == Reason.NO_NODE


async def test_a_deposed_leader_deploys_nothing_and_steps_down(office: Office) -> None:
    office.records.epoch = 8
    with pytest.raises(UnavailableError) as refusal:
        await office.deployed("/m/gamma")
    assert refusal.value.reason == Reason.NOT_LEADER
    await settled()
    with pytest.raises(UnavailableError):
        office.court.reign.check()
    assert office.names() == [[], []]
    with pytest.raises(UnavailableError):
        await office.imported("/m/gamma")
    with pytest.raises(UnavailableError):
        await office.catalogue.delete(office.court.reign, "alpha", keep_files=True)


async def test_an_odd_refusal_by_redis_is_passed_on(office: Office) -> None:
    office.records.errors.append(FailedPreconditionError("odd"))
    with pytest.raises(FailedPreconditionError, match="odd"):
        await office.deployed("/m/gamma")


async def test_a_caller_that_goes_during_the_write_changes_nothing_half_way(
    office: Office,
) -> None:
    office.records.may_write.clear()
    deploying = asyncio.ensure_future(office.deployed("/m/gamma"))
    await settled()
    deploying.cancel()
    await settled()
    office.records.may_write.set()
    await settled()
    assert "gamma" in office.records.fields
    assert "gamma" in office.court.reign.state.deployments


async def test_delete_takes_record_and_files(office: Office) -> None:
    await office.deployed("/m/gamma")
    await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)
    assert list(office.records.fields) == [MARK]
    assert "gamma" not in office.court.reign.state.deployments
    assert office.names() == [[], []]
    with pytest.raises(NotFoundError):
        await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)


async def test_delete_keeps_files_that_are_wanted_or_used(office: Office) -> None:
    await office.deployed("/m/gamma", name="one")
    await office.deployed("/m/gamma", name="two")
    await office.catalogue.delete(office.court.reign, "one", keep_files=False)
    await office.catalogue.delete(office.court.reign, "two", keep_files=True)
    assert office.names() == [["gamma"], ["gamma"]]


async def test_leased_files_go_when_the_lease_is_over(office: Office) -> None:
    await office.deployed("/m/gamma")
    office.stores.delete_errors["n1:1"] = deque([LEASED, UnavailableError("away"), LEASED])
    await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)
    assert office.names() == [["gamma"], []]
    await until(lambda: not any(office.names()))


async def test_files_of_a_registry_that_is_away_go_later(office: Office) -> None:
    await office.deployed("/m/gamma")
    office.court.peers.error = UnavailableError("away")
    await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)
    office.court.peers.error = None
    await until(lambda: not any(office.names()))


async def test_files_that_are_wanted_again_stay(office: Office) -> None:
    await office.deployed("/m/gamma")
    office.stores.delete_errors["n1:1"] = deque([LEASED])
    office.stores.delete_errors["n2:1"] = deque([LEASED])
    await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)
    await office.deployed(ref("gamma"))
    await asyncio.sleep(0.05)
    assert office.names() == [["gamma"], ["gamma"]]


async def test_files_that_nobody_lets_go_are_left(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DELETE_TRIES_MAX", 3)
    await office.deployed("/m/gamma")
    office.stores.delete_errors["n1:1"] = deque([LEASED] * 100)
    await office.catalogue.delete(office.court.reign, "gamma", keep_files=False)
    await until(lambda: len(office.stores.delete_errors["n1:1"]) <= 96)
    await asyncio.sleep(0.05)
    assert len(office.stores.delete_errors["n1:1"]) == 96
    assert office.names() == [["gamma"], []]


async def test_a_chore_that_fails_unexpectedly_is_logged_and_a_refused_one_hardly() -> None:
    async def fail(error: Exception) -> None:
        raise error

    chores = Chores()
    with capture_logs() as lines:
        chores.spawn(fail(ValueError("odd")))
        chores.spawn(fail(NotFoundError("no")))
        await settled()
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("chore failed", "error"),
        ("chore refused", "debug"),
    ]


async def test_chores_get_a_moment_to_finish_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports_module, "_CLOSE_S_MAX", 0.02)
    ended: list[str] = []

    async def work(name: str, takes_s: float) -> None:
        try:
            await asyncio.sleep(takes_s)
            ended.append(name)
        except asyncio.CancelledError:
            ended.append(f"{name} cancelled")
            raise

    chores = Chores()
    chores.spawn(work("short", 0.001))
    chores.spawn(work("long", 60))
    await chores.close()
    assert ended == ["short", "long cancelled"]
    await chores.close()
