"""Leases between nodes: asks whoever grants, renews what is held, says who holds what.

The rules are in volumes/leases.py. Everybody tells everybody connected what it holds itself, never what another
does: so `locks` knows, and a node that has just become the granter of something does not give it twice.

All state is in the trio thread.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from tbshare.errors import Locked, NotPermitted, PeerError
from tbshare.peers.mesh import Mesh, Peer
from tbshare.volumes.leases import (
    TERM_SECONDS,
    Grant,
    Grants,
    Held,
    Kind,
    Known,
    Refusal,
    Request,
    granters,
)
from tbshare.wire import limits
from tbshare.wire.message import AnyMessage, LeaseAnswer, LeaseAsk, Leased, LeaseNews, LeaseRelease

_log = logging.getLogger("tbshare.peers.leasing")
ANSWER_SECONDS: Final = 2.0  # a granter that is silent for so long is passed over
PATIENCE_SECONDS: Final = TERM_SECONDS + ANSWER_SECONDS  # for a granter that has just started
POLL_SECONDS: Final = 0.5  # while a granter that has just started may hear from the others


@dataclass(frozen=True)
class Denied:
    """The granter says that this node may not write there."""

    reason: str


def _parts(grants: Sequence[Grant]) -> list[list[Leased]]:
    """Return leases in lists that fit into one message each; one empty list of none."""
    parts, ids = [list[Leased]()], 0
    for each in grants:
        ids += 1 + len(each.ancestors)
        if ids > limits.LEASE_IDS_PER_MESSAGE and parts[-1]:
            parts.append([])
            ids = 1 + len(each.ancestors)
        parts[-1].append(Leased(each.volume, each.id, each.kind, each.epoch, list(each.ancestors)))
    return parts


class Leasing:
    """The leases this node holds and grants."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.node = mesh.identity.node
        self.lost: list[Callable[[Grant], None]] = []  # called for each lease that ended without being released
        self._held = Held()
        self._known = Known()
        self._grants: Grants | None = None  # from `run` on, whose clock it counts on
        self._told: set[bytes] = set()  # peers that said what they hold
        self._answers: dict[int, tuple[Peer, trio.MemorySendChannel[LeaseAnswer]]] = {}
        self._requests = 0
        self._changed = trio.Event()
        mesh.on(LeaseAsk, self._on_ask)
        mesh.on(LeaseAnswer, self._on_answer)
        mesh.on(LeaseRelease, self._on_release)
        mesh.on(LeaseNews, self._on_news)
        mesh.on_joined(self._on_joined)
        mesh.on_left(self._on_left)

    # ---- for whoever writes -------------------------------------------------------------------------------

    async def take(self, volume_id: int, id_: int, ancestors: Sequence[int] = (), kind: Kind = "file") -> Grant:
        """Return the lease on a file, bundle or directory, asking for it unless it is held already.

        Locked, which names the holder, when another node has it, or one of the directories `ancestors`;
        NotPermitted when this node may not write there. It is kept until `release`.
        """
        key = (volume_id, id_)
        silent: set[bytes] = set()
        deadline = trio.current_time() + PATIENCE_SECONDS
        while True:
            held = self._held.get(key, trio.current_time())
            if held is not None:
                return held
            request = Request(volume_id, id_, kind, self.node, tuple(ancestors))
            asked = trio.current_time()
            outcome = await self._ask_all(request, silent)
            if isinstance(outcome, Grant):
                if self._held.took(outcome, asked, trio.current_time()):
                    self._wake()
                    await self._tell([outcome])
                    return outcome
                continue
            if isinstance(outcome, Denied):
                raise NotPermitted(outcome.reason, cure="tbshare volume ls")
            if outcome is not None and outcome.held is not None:
                raise await self._locked(outcome.held)
            if trio.current_time() >= deadline:
                raise Locked("the node that gives this lock has just started; try again in ten seconds")
            if outcome is not None:
                await trio.sleep(min(max(outcome.wait_seconds, 0.01), POLL_SECONDS))

    async def release(self, volume_id: int, id_: int) -> None:
        """Give a lease back; nothing happens when it is not held."""
        grant = self._held.drop((volume_id, id_))
        if grant is None:
            return
        for node in granters(volume_id, id_, grant.kind, self._reachable()):
            await self._give_back(node, grant)
        await self._broadcast(LeaseNews(ended=[(volume_id, id_)]))

    def holds(self, volume_id: int, id_: int) -> Grant | None:
        """Return the lease this node holds on just this, None without one."""
        return self._held.get((volume_id, id_), trio.current_time())

    def holder_of(self, volume_id: int, ids: Collection[int]) -> Grant | None:
        """Return a lease of another node on one of these ids: something and the directories above it."""
        holders = self._known.holders(volume_id, ids, trio.current_time())
        return next((grant for grant in holders if grant.node in self.mesh.peers), None)

    def listed(self) -> list[Grant]:
        """Return all leases known here, this node's own first."""
        now = trio.current_time()
        return [*self._held.all(now), *self._known.all(now)]

    # ---- asking -------------------------------------------------------------------------------------------

    def _reachable(self) -> list[bytes]:
        speaking = [node for node, peer in self.mesh.peers.items() if peer.hello.level >= limits.LEVEL_VOLUMES]
        return [self.node, *speaking]

    async def _ask_all(self, request: Request, silent: set[bytes]) -> Grant | Refusal | Denied | None:
        """Ask all whose word is needed, in one order for all askers; None when one of them fell silent."""
        given: list[tuple[bytes, Grant]] = []
        outcome: Grant | Refusal | Denied | None = None
        for node in granters(
            request.volume, request.id, request.kind, [node for node in self._reachable() if node not in silent]
        ):
            outcome = await self._ask(node, request)
            if not isinstance(outcome, Grant):
                if outcome is None:
                    silent.add(node)
                for giver, grant in given:
                    await self._give_back(giver, grant)
                return outcome
            given.append((node, outcome))
        return max((grant for _, grant in given), key=lambda grant: grant.epoch)

    async def _ask(self, node: bytes, request: Request) -> Grant | Refusal | Denied | None:
        if node == self.node:
            return await self._judge(request)
        peer = self.mesh.peers.get(node)
        if peer is None:
            return None
        self._requests += 1
        number = self._requests
        send, receive = trio.open_memory_channel[LeaseAnswer](1)
        self._answers[number] = (peer, send)
        lease = Leased(request.volume, request.id, request.kind, request.epoch, list(request.ancestors))
        try:
            await peer.send(LeaseAsk(number, lease, request.renews))
            with trio.move_on_after(ANSWER_SECONDS):
                return self._outcome(await receive.receive(), lease, node)
        except trio.EndOfChannel:
            pass  # the session is over
        finally:
            self._answers.pop(number, None)
        return None

    def _outcome(self, answer: LeaseAnswer, lease: Leased, granter: bytes) -> Grant | Refusal | Denied:
        if answer.epoch:
            return self._grant(lease, self.node, epoch=answer.epoch, granter=granter)
        if answer.reason:
            return Denied(answer.reason)
        held = self._grant(lease, answer.holder, epoch=0, granter=granter) if answer.holder else None
        return Refusal(held, answer.wait_milliseconds / 1000)

    @staticmethod
    def _grant(lease: Leased, node: bytes, *, epoch: int, granter: bytes = b"") -> Grant:
        return Grant(
            volume=lease.volume_id,
            id=lease.id,
            kind=lease.kind,
            node=node,
            epoch=epoch,
            expires=trio.current_time() + TERM_SECONDS,
            ancestors=tuple(lease.ancestors),
            granter=granter,
        )

    async def _give_back(self, node: bytes, grant: Grant) -> None:
        if node == self.node:
            if self._grants is not None:
                self._grants.release(grant.volume, grant.id, self.node, grant.epoch)
        elif (peer := self.mesh.peers.get(node)) is not None:
            await peer.send(LeaseRelease(grant.volume, grant.id, grant.epoch))

    async def _locked(self, held: Grant) -> Locked:
        state = await self.mesh.state()
        member = state.members.get(held.node)
        name = member.name if member else "another node"
        return Locked(f"{name} has it open for writing", cure="tbshare locks")

    # ---- granting -----------------------------------------------------------------------------------------

    async def _judge(self, request: Request) -> Grant | Refusal | Denied:
        state = await self.mesh.state()
        if not state.may_write(request.volume, request.node):
            return Denied("that node may not write to this volume")
        now = trio.current_time()
        if self._grants is None:
            self._grants = Grants(self.node, now)
        if self._told | self.mesh.absent >= set(state.members) - {self.node}:
            self._grants.all_told()
        if not request.renews and (against := self._known.against(request, now)) is not None:
            return Refusal(against)
        return self._grants.ask(request, now)

    async def _on_ask(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LeaseAsk)
        lease = message.lease
        request = Request(
            volume=lease.volume_id,
            id=lease.id,
            kind=lease.kind,
            node=peer.node,
            ancestors=tuple(lease.ancestors),
            epoch=lease.epoch,
            renews=message.renews,
        )
        outcome = await self._judge(request)
        if isinstance(outcome, Grant):
            answer = LeaseAnswer(message.request, outcome.epoch)
        elif isinstance(outcome, Denied):
            answer = LeaseAnswer(message.request, reason=outcome.reason)
        else:
            holder = outcome.held.node if outcome.held is not None else b""
            wait = round(outcome.wait_seconds * 1000)
            answer = LeaseAnswer(message.request, holder=holder, wait_milliseconds=wait)
        await peer.send(answer)

    async def _on_answer(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LeaseAnswer)
        asked, send = self._answers.pop(message.request, (None, None))
        if asked is peer and send is not None:
            send.send_nowait(message)
        elif asked is not None:
            raise PeerError(f"{peer.hello.name} answered what it was not asked")

    async def _on_release(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LeaseRelease)
        if self._grants is not None:
            self._grants.release(message.volume_id, message.id, peer.node, message.epoch)

    # ---- news ---------------------------------------------------------------------------------------------

    async def _on_news(self, peer: Peer, message: AnyMessage) -> None:
        assert isinstance(message, LeaseNews)
        if message.whole:
            self._known.forget(peer.node)
            self._told.add(peer.node)
        self._known.ended(message.ended, peer.node)
        state = await self.mesh.state()
        may_write = {lease.volume_id: state.may_write(lease.volume_id, peer.node) for lease in message.leases}
        heard = [
            self._grant(lease, peer.node, epoch=lease.epoch)
            for lease in message.leases
            if may_write[lease.volume_id]
        ]
        self._known.heard(heard, trio.current_time())

    async def _on_joined(self, peer: Peer) -> None:
        if peer.hello.level >= limits.LEVEL_VOLUMES:
            for number, part in enumerate(_parts(self._held.all(trio.current_time()))):
                await peer.send(LeaseNews(part, whole=number == 0))

    async def _on_left(self, peer: Peer) -> None:
        self._known.forget(peer.node)
        for number, (asked, send) in list(self._answers.items()):
            if asked is peer:
                self._answers.pop(number)
                send.close()

    async def _tell(self, grants: Sequence[Grant]) -> None:
        for part in _parts(grants):
            await self._broadcast(LeaseNews(part))

    async def _broadcast(self, news: LeaseNews) -> None:
        for node in self._reachable():
            peer = self.mesh.peers.get(node)
            if peer is not None:
                await peer.send(news)

    # ---- renewing -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Renew what is held and tell the others of it, for ever."""
        if self._grants is None:
            self._grants = Grants(self.node, trio.current_time())
        async with trio.open_nursery() as nursery:
            while True:
                now = trio.current_time()
                for grant in self._held.lost(now):
                    self._report(grant, "nobody who grants it could be reached")
                due = self._held.due(now)
                for grant in due:
                    self._held.asking(grant.key, now)
                    nursery.start_soon(self._renew, grant)
                if due:
                    nursery.start_soon(self._tell, due)
                ends = [grant.expires for grant in self._held.all(now)]
                self._changed = trio.Event()
                with trio.move_on_at(min([self._held.next_due(), *ends])):
                    await self._changed.wait()

    async def _renew(self, grant: Grant) -> None:
        request = Request(
            volume=grant.volume,
            id=grant.id,
            kind=grant.kind,
            node=self.node,
            ancestors=grant.ancestors,
            epoch=grant.epoch,
            renews=True,
        )
        asked = trio.current_time()
        for node in granters(grant.volume, grant.id, grant.kind, self._reachable()):
            outcome = await self._ask(node, request)
            if outcome is None:
                return  # it is asked again when the next one is due, and then perhaps of somebody else
            if not isinstance(outcome, Grant):
                if self._held.drop(grant.key, grant.epoch) is not None:
                    self._report(grant, "it was not renewed")
                return
        self._held.renewed(grant.key, grant.epoch, asked)

    def _report(self, grant: Grant, why: str) -> None:
        _log.info("the lease on %x in volume %x is lost: %s", grant.id, grant.volume, why)
        for call in self.lost:
            call(grant)
