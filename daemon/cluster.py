"""The cluster as the user sees it: nodes, status, pairing."""

import contextlib
import os
import threading
import time
from collections.abc import Callable

import trio

from tbshare import __version__
from tbshare.content.ref import is_part
from tbshare.daemon.control import Emit
from tbshare.daemon.service import Service, own_name
from tbshare.daemon.volume_attention import volume_attention
from tbshare.errors import PairingFailed, TbshareError, UsageError
from tbshare.peers import discovery
from tbshare.peers.mesh import split_address
from tbshare.peers.pairing import Newcomer, Window, join, new_code, normal_code, offer
from tbshare.store import disk
from tbshare.wire.local import PairJoinParams
from tbshare.wire.report import (
    Attention,
    Code,
    LinkLine,
    NodeLine,
    NodeList,
    Paired,
    StatusReport,
    TryFailed,
)

DIAL_SECONDS = 5.0
LOOK_SECONDS = 3.0
POLL_SECONDS = 0.05
MEET_SECONDS = 10.0  # after pairing, for the first control session


class Cluster:
    """Answers about nodes; owns the pairing window."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._window: Window | None = None
        self._attempts_send, self._attempts = trio.open_memory_channel[Newcomer | PairingFailed](16)
        service.answer_pairing = self.answer_pairing

    # nodes -----------------------------------------------------------------------------------------------------

    async def node_list(self) -> NodeList:
        """Return all nodes, this one first."""
        service = self.service
        state = await service.mesh.state()
        lines = [self._own_line()]
        for node, member in sorted(state.members.items(), key=lambda item: item[1].name):
            if node == service.identity.node:
                continue
            lines.append(self._line(node, member.name))
        return NodeList(lines)

    def _own_line(self) -> NodeLine:
        service = self.service
        return NodeLine(
            name=service.name(),
            id=service.identity.node.hex(),
            state="here",
            addresses=service.addresses(),
            version=__version__,
            accept=service.config.text("store.accept"),
            free_bytes=service.store.room_bytes(),
            seen_seconds=time.time(),
        )

    def _line(self, node: bytes, name: str) -> NodeLine:
        service = self.service
        peer = service.mesh.peers.get(node)
        addresses = service.mesh.addresses.get(node, [])
        if peer is None:
            seen = service.mesh.seen.get(node)
            when = time.time() - (trio.current_time() - seen) if seen is not None else None
            return NodeLine(name, node.hex(), "away", addresses, seen_seconds=when)
        rtt = peer.session.rtt_seconds
        links = [
            LinkLine(
                "control",
                peer.session.remote_address,
                service.is_direct(peer.lane_host),
                rtt if rtt < 60 else None,
            )
        ]
        for key, lanes in service.lanes.by_peer.items():
            if key.node == node:
                kind = "lane, sealed" if key.sealed else "lane"
                rate = lanes.rate.bytes_per_second / max(1, len(lanes.lanes)) if lanes.outstanding else 0.0
                links += [LinkLine(kind, peer.lane_host, service.is_direct(peer.lane_host), None, rate)] * len(
                    lanes.lanes
                )
        return NodeLine(
            name=name,
            id=node.hex(),
            state="connected",
            addresses=addresses,
            links=links,
            version=peer.hello.version,
            accept=peer.hello.accept,
            free_bytes=peer.hello.store_free_bytes,
            seen_seconds=time.time(),
        )

    async def rename(self, text: str, name: str) -> str:
        """Give a node another name; return it."""
        service = self.service
        state = await service.mesh.state()
        if not is_part(name):
            raise UsageError(
                f"{name!r} is no name: letters, digits, '.', '_' and '-', not starting with a dot",
                cure="tbshare node rename OLD NEW",
            )
        member = state.member_named(text)
        if any(other.name.lower() == name.lower() for node, other in state.members.items() if node != member.node):
            raise UsageError(f"another node is called {name} already", cure="tbshare node ls")
        entry = await trio.to_thread.run_sync(service.log.rename_member, member.node, name)
        await service.mesh.grown([entry])
        return name

    async def status(self) -> StatusReport:
        """Return the state of this node."""
        service = self.service
        nodes = (await self.node_list()).nodes
        state = await service.mesh.state()
        free, _ = disk.free_bytes(service.store.home.root)
        of_volumes = await trio.to_thread.run_sync(volume_attention, service)
        return StatusReport(
            attention=[*self._attention(nodes, free), *of_volumes],
            node=nodes[0],
            nodes=nodes[1:],
            cluster=service.log.cluster.hex(),
            version=__version__,
            pid=os.getpid(),
            home=str(service.home),
            store_path=str(service.store.home.root),
            port=service.port,
            uptime_seconds=time.time() - service.started_at,
            refs=len(state.refs),
            stored_bytes=await trio.to_thread.run_sync(service.store.used_bytes),
            free_bytes=free,
            keep_free_bytes=service.store.keep_free_bytes,
            processes=len(service.processes.running()),
            survives_reboot="INVOCATION_ID" in os.environ,
        )

    def _attention(self, nodes: list[NodeLine], free: int) -> list[Attention]:
        service = self.service
        damaged = service.log.damaged  # said with its own cure
        told = [text for text in service.log.attention() if text != damaged]
        lines = [Attention("log", text, "tbshare node ls") for text in told]
        lines += [Attention("store", text, "tbshare verify") for text in service.store.notices]
        for path, object_id, blocks in service.store.index.quarantined():
            if not service.store.is_whole(object_id):
                text = f"{len(blocks)} corrupt blocks of object {object_id.hex()[:12]} are in quarantine ({path})"
                lines.append(Attention("corrupt", text, "tbshare verify --repair"))
        if free < service.store.keep_free_bytes:
            lines.append(Attention("disk", "the disk is under its reserve", "tbshare du; tbshare gc --now"))
        for node in nodes:
            if node.state == "away" and node.seen_seconds and time.time() - node.seen_seconds > 86400:
                days = int((time.time() - node.seen_seconds) / 86400)
                lines.append(Attention("away", f"{node.name} has been away for {days} days", "tbshare node ls"))
        for job in service.replicator.jobs.values():
            if job.failures and job.fetch.reason:
                lines.append(
                    Attention("fetch", f"{job.version.name}@{job.version.rev}: {job.fetch.reason}", "tbshare ps")
                )
        return lines

    # pairing ---------------------------------------------------------------------------------------------------

    async def open_window(self, emit: Emit) -> Paired:
        """Show a code and wait until a new node has used it."""
        service = self.service
        if self._window is not None and self._window.is_open(trio.current_time()):
            raise PairingFailed(
                "a code is shown already, in another terminal", cure="use that code, or wait for it to end"
            )
        now = trio.current_time()
        with contextlib.suppress(trio.WouldBlock):
            while True:
                self._attempts.receive_nowait()  # what came of an earlier code
        window = self._window = Window(new_code(), now)
        shown = await trio.to_thread.run_sync(self._announce)
        try:
            await emit(Code(window.code, window.seconds_left(now), service.addresses()))
            while window.is_open(trio.current_time()):
                with trio.move_on_after(window.seconds_left(trio.current_time())):
                    outcome = await self._attempts.receive()
                    if isinstance(outcome, Newcomer):
                        return await self._welcome(outcome)
                    await emit(TryFailed(window.tries_left))
            raise PairingFailed(
                "nobody used the code in time, or it was typed wrong too often", cure="tbshare pair"
            )
        finally:
            window.close()
            self._window = None
            if shown is not None:  # saying goodbye takes a second; nobody needs to wait for it
                threading.Thread(target=shown.close, name="unannounce", daemon=True).start()

    def _announce(self) -> discovery.Announcement | None:
        service = self.service
        return discovery.announce(service.name(), service.identity.short(), service.addresses(), service.port)

    async def _welcome(self, newcomer: Newcomer) -> Paired:
        await self._meet(newcomer.node)
        state = await self.service.mesh.state()
        member = state.members.get(newcomer.node)
        name = member.name if member else newcomer.name
        return Paired(name, newcomer.node.hex(), [member.name for member in state.members.values()])

    async def answer_pairing(self, stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        """Serve a connection that wants to pair; closed at once when no code is shown."""
        window = self._window
        if window is None or not window.is_open(trio.current_time()):
            await stream.aclose()
            return
        service = self.service

        async def admit(newcomer: Newcomer) -> None:
            admitted()  # it knows the code: no longer a stranger
            entry = await trio.to_thread.run_sync(service.log.add_member, newcomer.certificate, newcomer.name)
            await service.mesh.grown([entry])

        try:
            newcomer = await offer(
                stream,
                window,
                service.identity,
                name=service.name(),
                cluster=service.log.cluster,
                admit=admit,
            )
            outcome: Newcomer | PairingFailed = newcomer
        except TbshareError as error:
            outcome = error if isinstance(error, PairingFailed) else PairingFailed(str(error), cure=error.cure)
        with contextlib.suppress(trio.WouldBlock):  # more failures than anybody reads
            self._attempts_send.send_nowait(outcome)

    async def join(self, params: PairJoinParams) -> Paired:
        """Join the cluster that shows this code."""
        service = self.service
        state = await service.mesh.state()
        if len(state.members) > 1:
            raise PairingFailed(
                f"this node is in a cluster with {len(state.members) - 1} others already",
                cure="run `tbshare pair CODE` on the machine that is new",
            )
        normal_code(params.code)  # before anybody is bothered
        address = params.address or await self._look_around()
        host, port = split_address(address)
        try:
            with trio.fail_after(DIAL_SECONDS):
                stream = await trio.open_tcp_stream(host, port)
        except (OSError, trio.TooSlowError) as error:
            raise PairingFailed(
                f"nothing answers at {host}:{port}", cure="check the address; tbshare status there"
            ) from error
        async with stream:
            invitation = await join(stream, params.code, service.identity, name=own_name(service.config))
        await trio.to_thread.run_sync(
            lambda: service.log.join(invitation.cluster, certificate=invitation.certificate, name=invitation.name)
        )
        service.mesh.learn(invitation.node, [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"])
        await self._meet(invitation.node)
        await self._until_member()
        state = await service.mesh.state()
        return Paired(invitation.name, invitation.node.hex(), [member.name for member in state.members.values()])

    async def _look_around(self) -> str:
        """Return the address of the one machine around that shows a code."""
        found = await trio.to_thread.run_sync(discovery.look_around, LOOK_SECONDS)
        if not found:
            raise PairingFailed(
                "no machine on this network says that it shows a code",
                cure="tbshare pair CODE@ADDRESS, with an address that `tbshare pair` shows there",
            )
        if len(found) > 1:
            names = ", ".join(f"{name} at {address}" for name, address in sorted(found.items()))
            raise PairingFailed(f"several machines show a code: {names}", cure="tbshare pair CODE@ADDRESS")
        return next(iter(found.values()))

    async def _meet(self, node: bytes) -> None:
        """Wait for the first control session with a node that has just paired, but not for long."""
        await self._poll(lambda: node in self.service.mesh.peers)

    async def _until_member(self) -> None:
        await self._poll(lambda: self.service.log.state().is_member(self.service.identity.node))

    @staticmethod
    async def _poll(holds: Callable[[], bool]) -> None:
        with trio.move_on_after(MEET_SECONDS):
            while not await trio.to_thread.run_sync(holds):  # noqa: ASYNC110 - rare, and of another room
                await trio.sleep(POLL_SECONDS)
