"""Leases over real control sessions: nodes in one process, each with its own key, log and port."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tbshare.errors import Locked, NotPermitted
from tbshare.peers.identity import Identity
from tbshare.peers.leasing import Leasing
from tbshare.peers.mesh import Mesh, Peer
from tbshare.transport.listener import Kind, listen
from tbshare.volumes.catalogue import volume_id
from tbshare.volumes.entry import Role, RoleSet, VolumeCreate
from tbshare.volumes.leases import TERM_SECONDS, Grant, granter
from tbshare.volumes.log import Log
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, Hello, LeaseAnswer, LeaseAsk, Leased, LeaseNews

FILE, DIRECTORY, OTHER = 1001, 1002, 1003


@pytest.fixture
def clock() -> MockClock:
    """A clock that runs like any other, and can be put forward."""
    return MockClock(rate=1)


class Machine:
    """A node with a mesh and leases."""

    def __init__(self, home: Path, name: str) -> None:
        home.mkdir()
        self.name = name
        self.identity = Identity.load_or_create(home / "device.key")
        self.node = self.identity.node
        self.log = Log.open(home / "log.db", self.identity)
        self.port = 0
        self.mesh = Mesh(self.identity, self.log, name=lambda: name, hello=self.hello)
        self.leasing = Leasing(self.mesh)
        self.lost: list[Grant] = []
        self.leasing.lost.append(self.lost.append)

    def hello(self) -> Hello:
        return Hello(
            level=limits.LEVEL, node=self.node, name=self.name, version="0", cluster=self.log.cluster,
            listen_port=self.port, addresses=[f"127.0.0.1:{self.port}"],
        )  # fmt: skip


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await trio.sleep(0.01)
    raise AssertionError("not within ten seconds")


class Cluster:
    """Machines that know each other, and one volume."""

    def __init__(self, machines: list[Machine], volume: int) -> None:
        self.machines, self.volume = machines, volume

    def granting(self, id_: int) -> Machine:
        """Return who grants leases on this id while all are connected."""
        node = granter(self.volume, id_, [each.node for each in self.machines])
        return next(each for each in self.machines if each.node == node)

    def others(self, machine: Machine) -> list[Machine]:
        return [each for each in self.machines if each is not machine]


@asynccontextmanager
async def cluster(path: Path, *roles: Role) -> AsyncGenerator[Cluster]:
    """Run an admin and more nodes with these roles, all connected with all."""
    machines = [Machine(path / f"n{number}", f"n{number}") for number in range(1 + len(roles))]
    first = machines[0]
    genesis = first.log.create_cluster("n0")
    created = first.log.append([VolumeCreate(name="film", mode="media")])
    entries = [genesis, created]
    for machine, role in zip(machines[1:], roles, strict=True):
        entries.append(first.log.add_member(machine.identity.certificate, machine.name, role))
    for machine in machines[1:]:
        machine.log.join(first.log.cluster, certificate=first.identity.certificate, name="n0")
        assert not machine.log.receive([entry.encoded for entry in entries]).rejected
    try:
        async with trio.open_nursery() as nursery:
            for machine in machines:
                start = partial(listen, host="127.0.0.1")
                machine.port = int(str(await nursery.start(start, 0, {Kind.CONTROL: machine.mesh.accept})))
                nursery.start_soon(machine.leasing.run)
                nursery.start_soon(machine.mesh.run)
            for number, one in enumerate(machines):  # each pair dials once: no session replaces another later
                for other in machines[:number]:
                    one.mesh.learn(other.node, [f"127.0.0.1:{other.port}"])
            await until(lambda: all(len(each.mesh.peers) == len(roles) for each in machines))
            yield Cluster(machines, volume_id(created.hash, 0))
            nursery.cancel_scope.cancel()
    finally:
        for machine in machines:
            machine.log.close()


async def cut(one: Machine, two: Machine) -> None:
    """End the session of two nodes that are alone, and let neither find the other again."""
    for machine in (one, two):
        machine.mesh.addresses.clear()
    for peer in list(one.mesh.peers.values()):
        await peer.session.aclose()
    await until(lambda: not one.mesh.peers and not two.mesh.peers)


async def pass_time(clock: MockClock, seconds: float) -> None:
    """Let time go by in steps short enough for heartbeats."""
    for _ in range(round(seconds / 0.5)):
        clock.jump(0.5)
        await wait_all_tasks_blocked(0.02)


async def test_one_holds_it_and_the_other_is_told_who(tmp_path: Path) -> None:
    async with cluster(tmp_path, "write", "publish") as lab:
        one, two, three = lab.machines
        grant = await one.leasing.take(lab.volume, FILE, (DIRECTORY, 0))
        assert grant.epoch > 0
        assert await one.leasing.take(lab.volume, FILE, (DIRECTORY, 0)) == one.leasing.holds(lab.volume, FILE)
        for other in (two, three):
            with pytest.raises(Locked, match="n0") as caught:
                await other.leasing.take(lab.volume, FILE, (DIRECTORY, 0))
            assert caught.value.cure
            await until(lambda other=other: bool(other.leasing.holder_of(lab.volume, {FILE, DIRECTORY})))  # type: ignore[misc]
            (listed,) = other.leasing.listed()
            assert (listed.node, listed.id, listed.kind) == (one.node, FILE, "file")
        assert one.leasing.holder_of(lab.volume, {FILE}) is None, "its own is in nobody's way"
        await one.leasing.release(lab.volume, FILE)
        await until(lambda: two.leasing.holder_of(lab.volume, {FILE}) is None)
        assert (await two.leasing.take(lab.volume, FILE, (DIRECTORY, 0))).epoch > grant.epoch


async def test_a_directory_is_asked_of_all(tmp_path: Path) -> None:
    """Whoever grants the file below it must know, whichever node that is."""
    async with cluster(tmp_path, "admin", "admin") as lab:
        one, two, three = lab.machines
        await one.leasing.take(lab.volume, DIRECTORY, (0,), "directory")
        for id_ in range(2000, 2012):
            with pytest.raises(Locked, match="n0"):
                await two.leasing.take(lab.volume, id_, (DIRECTORY, 0))
        await three.leasing.take(lab.volume, OTHER, (0,))
        await one.leasing.release(lab.volume, DIRECTORY)
        await until(lambda: two.leasing.holder_of(lab.volume, {DIRECTORY}) is None)
        await two.leasing.take(lab.volume, FILE, (DIRECTORY, 0))
        with pytest.raises(Locked, match="n1"):
            await three.leasing.take(lab.volume, DIRECTORY, (0,), "directory")


async def test_who_may_not_write_gets_no_lease(tmp_path: Path) -> None:
    async with cluster(tmp_path, "read", "write") as lab:
        one, reader, writer = lab.machines
        for id_ in (FILE, DIRECTORY, OTHER):
            with pytest.raises(NotPermitted):
                await reader.leasing.take(lab.volume, id_)
        with pytest.raises(NotPermitted):
            await writer.leasing.take(lab.volume + 1, FILE)
        entry = one.log.append([RoleSet(volume=lab.volume, node=writer.node, role="read")])
        await one.mesh.grown([entry])
        await until(lambda: writer.log.state().role(writer.node, lab.volume) == "read")
        with pytest.raises(NotPermitted):
            await writer.leasing.take(lab.volume, FILE)


async def test_an_honest_granter_asks_for_the_role_itself(tmp_path: Path) -> None:
    """A reader that asks all the same, past its own check."""
    async with cluster(tmp_path, "read") as lab:
        one, reader = lab.machines
        (peer,) = reader.mesh.peers.values()
        heard: list[AnyMessage] = []

        async def note(_: Peer, message: AnyMessage) -> None:
            heard.append(message)

        reader.mesh._handlers[LeaseAnswer] = note  # pyright: ignore[reportPrivateUsage]
        await peer.send(LeaseAsk(7, Leased(lab.volume, FILE, "file", 0)))
        await until(lambda: any(isinstance(each, LeaseAnswer) for each in heard))
        (answer,) = [each for each in heard if isinstance(each, LeaseAnswer)]
        assert (answer.request, answer.epoch) == (7, 0)
        assert "may not write" in answer.reason
        assert one.leasing.listed() == []


async def test_it_is_renewed_while_it_is_held(tmp_path: Path, clock: MockClock) -> None:
    async with cluster(tmp_path, "admin", "admin") as lab:
        holder = lab.others(lab.granting(FILE))[0]
        other = next(each for each in lab.machines if each not in (holder, lab.granting(FILE)))
        grant = await holder.leasing.take(lab.volume, FILE)
        await pass_time(clock, 3 * TERM_SECONDS)
        held = holder.leasing.holds(lab.volume, FILE)
        assert held is not None
        assert held.epoch == grant.epoch
        assert not holder.lost
        with pytest.raises(Locked, match=holder.name):
            await other.leasing.take(lab.volume, FILE)


async def test_both_sides_of_a_cut_get_it_and_one_keeps_it(tmp_path: Path, clock: MockClock) -> None:
    async with cluster(tmp_path, "admin") as lab:
        one, two = lab.machines
        await one.leasing.take(lab.volume, FILE)
        await cut(one, two)
        if lab.granting(FILE) is two:
            await pass_time(clock, TERM_SECONDS)  # what it granted stands until its end
        await two.leasing.take(lab.volume, FILE)
        assert one.leasing.holds(lab.volume, FILE), "nobody can tell it"
        one.mesh.learn(two.node, [f"127.0.0.1:{two.port}"])
        await until(lambda: bool(one.mesh.peers and two.mesh.peers))
        await pass_time(clock, TERM_SECONDS)
        holders = [each for each in lab.machines if each.leasing.holds(lab.volume, FILE)]
        assert len(holders) == 1
        (loser,) = lab.others(holders[0])
        assert [grant.id for grant in loser.lost] == [FILE], "and it is told"


async def test_what_a_dead_node_held_is_free_after_a_term(tmp_path: Path, clock: MockClock) -> None:
    async with cluster(tmp_path, "admin") as lab:
        granting = lab.granting(FILE)
        (holder,) = lab.others(granting)
        await holder.leasing.take(lab.volume, FILE)
        await cut(holder, granting)
        with pytest.raises(Locked):
            await granting.leasing.take(lab.volume, FILE)
        await pass_time(clock, TERM_SECONDS)
        assert await granting.leasing.take(lab.volume, FILE)


async def test_a_single_node_waits_for_nobody(tmp_path: Path) -> None:
    async with cluster(tmp_path) as lab:
        (one,) = lab.machines
        started = trio.current_time()
        await one.leasing.take(lab.volume, FILE)
        assert trio.current_time() - started < 1


async def test_a_member_that_lies_about_leases_ends_alone(tmp_path: Path) -> None:
    """It can only claim its own, and only for a term."""
    async with cluster(tmp_path, "write") as lab:
        one, liar = lab.machines
        (peer,) = liar.mesh.peers.values()
        await until(lambda: liar.node in one.leasing._told)  # pyright: ignore[reportPrivateUsage]
        lie = LeaseNews([Leased(lab.volume, FILE, "file", (1 << 63) - 1, [DIRECTORY] * 4096)])
        await peer.send(lie)
        await peer.send(LeaseNews([], whole=True))  # as after a greeting: what is forgotten was named many times
        await peer.send(lie)
        await until(lambda: bool(one.leasing.listed()))
        (claimed,) = one.leasing.listed()
        assert claimed.node == liar.node
        assert claimed.expires <= trio.current_time() + TERM_SECONDS
        await one.leasing.take(lab.volume, OTHER)


async def test_what_a_node_says_it_holds_and_may_not_is_not_believed(tmp_path: Path) -> None:
    async with cluster(tmp_path, "read", "write") as lab:
        _, reader, writer = lab.machines
        news = LeaseNews([Leased(lab.volume, FILE, "file", 7, [DIRECTORY])])
        for peer in list(reader.mesh.peers.values()):
            await peer.send(news)
        reader.log.rename_member(reader.node, "told")  # comes after the news
        await until(lambda: all(each.log.vector() == reader.log.vector() for each in lab.machines))
        assert (await writer.leasing.take(lab.volume, FILE, (DIRECTORY,))).node == writer.node
        assert all(grant.node != reader.node for each in lab.others(reader) for grant in each.leasing.listed())
