"""Leases on files, bundles and directories: who may hold what, until when. Pure; `now` is monotonic seconds.

A lease keeps two people from editing the same thing while they can reach each other. **Nothing may rest on one**:
on the two sides of a cut both sides grant, and what is saved then is a fork, as it would be without leases.

Nothing is agreed on but by messages: a granter counts the end from when it grants, a holder from when it asked,
which is earlier, so the holder stops first. Each grant has a higher epoch than those before. A granter that starts
knows of no grants; until one term is over, or all members have told what they hold, it gives new ones to nobody.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tbshare.content.block import named_hash
from tbshare.wire import limits

TERM_SECONDS: Final = 10.0
RENEW_SECONDS: Final = 3.0
GRANTS_MAX: Final = 65_536  # that one node gives, or hears of
ENDED_MAX: Final = 65_536  # whose epochs are remembered
EPOCH_MAX: Final = 1 << 62  # that is believed of another node
GRANTER_CONTEXT: Final = "tbshare 2026-11-23 who grants a lease"

Kind = Literal["file", "bundle", "directory"]
Key = tuple[int, int]  # volume, and the id in it


def granter(volume: int, id_: int, nodes: Iterable[bytes]) -> bytes:
    """Return which of these nodes grants leases on this id. Rendezvous hashing: few change when a node goes."""
    about = volume.to_bytes(8, "big") + id_.to_bytes(8, "big")
    return max(nodes, key=lambda node: named_hash(GRANTER_CONTEXT, [node, about]))


def granters(volume: int, id_: int, kind: Kind, nodes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return all whose word is needed: for a directory everybody's, as any may grant something below."""
    return tuple(sorted(nodes)) if kind == "directory" else (granter(volume, id_, nodes),)


@dataclass(frozen=True, slots=True)
class Request:
    """What a node asks for. `epoch`: of the lease it renews, else the highest it has heard of."""

    volume: int
    id: int
    kind: Kind
    node: bytes
    ancestors: tuple[int, ...] = ()  # the directories above it
    epoch: int = 0
    renews: bool = False

    @property
    def key(self) -> Key:
        """What it is on."""
        return self.volume, self.id


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease as this node knows of it; `expires` is on its own clock."""

    volume: int
    id: int
    kind: Kind
    node: bytes
    epoch: int
    expires: float
    ancestors: tuple[int, ...] = ()
    granter: bytes = b""

    @property
    def key(self) -> Key:
        """What it is on."""
        return self.volume, self.id


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no lease: `held` by another node, or the granter has just started: ask again later."""

    held: Grant | None = None
    wait_seconds: float = 0.0


def conflicts(one: Request | Grant, other: Grant) -> bool:
    """Say whether two leases are of different nodes, and on one thing or one above the other."""
    if one.volume != other.volume or one.node == other.node:
        return False
    return one.id == other.id or one.id in other.ancestors or other.id in one.ancestors


class _Table:
    """Grants by key, and by the directories above them."""

    def __init__(self) -> None:
        self.grants: dict[tuple[Key, bytes], Grant] = {}  # with the node that holds it
        self._here: dict[Key, set[tuple[Key, bytes]]] = {}  # what is on this id or below it

    def put(self, grant: Grant) -> None:
        self.drop(grant.key, grant.node)
        name = (grant.key, grant.node)
        self.grants[name] = grant
        for id_ in {grant.id, *grant.ancestors}:
            self._here.setdefault((grant.volume, id_), set()).add(name)

    def drop(self, key: Key, node: bytes) -> Grant | None:
        name = (key, node)
        grant = self.grants.pop(name, None)
        if grant is not None:
            for id_ in {grant.id, *grant.ancestors}:
                names = self._here[grant.volume, id_]
                names.discard(name)
                if not names:
                    del self._here[grant.volume, id_]
        return grant

    def expire(self, now: float) -> list[Grant]:
        over = [grant for grant in self.grants.values() if grant.expires <= now]
        for grant in over:
            self.drop(grant.key, grant.node)
        return over

    def conflict(self, wanted: Request | Grant, now: float) -> Grant | None:
        """Return a grant that stands against this one."""
        names = set(self._here.get((wanted.volume, wanted.id), ()))  # on it, or below it
        for id_ in wanted.ancestors:
            names |= {name for name in self._here.get((wanted.volume, id_), ()) if name[0] == (wanted.volume, id_)}
        found = [self.grants[name] for name in names]
        against = [grant for grant in found if grant.expires > now and conflicts(wanted, grant)]
        return min(against, key=lambda grant: (grant.id, grant.node), default=None)


class Grants:
    """The granter's side."""

    def __init__(self, node: bytes, now: float) -> None:
        self.node = node
        self._table = _Table()
        self._epoch = 0  # the highest given or heard of
        self._ended: dict[Key, int] = {}  # the last epoch of each lease given, oldest first
        self._quiet_until = now + TERM_SECONDS

    def all_told(self) -> None:
        """Note that every member has told what it holds: from now on new leases are given."""
        self._quiet_until = float("-inf")

    def ask(self, request: Request, now: float) -> Grant | Refusal:
        """Give or renew a lease, or say why not."""
        self._table.expire(now)
        if request.epoch < EPOCH_MAX:
            self._epoch = max(self._epoch, request.epoch)
        against = self._table.conflict(request, now)
        if against is not None:
            return Refusal(against)
        mine = self._table.grants.get((request.key, request.node))
        if mine is not None:
            return self._give(replace(mine, expires=now + TERM_SECONDS, ancestors=request.ancestors))
        if request.renews:
            if request.epoch < self._ended.get(request.key, 0):
                return Refusal()  # somebody else had it since
            return self._give(self._grant(request, request.epoch, now))
        wait = TERM_SECONDS if len(self._table.grants) >= GRANTS_MAX else self._quiet_until - now
        if wait > 0:
            return Refusal(wait_seconds=wait)
        self._epoch += 1
        return self._give(self._grant(request, self._epoch, now))

    def _grant(self, request: Request, epoch: int, now: float) -> Grant:
        return Grant(
            volume=request.volume,
            id=request.id,
            kind=request.kind,
            node=request.node,
            epoch=epoch,
            expires=now + TERM_SECONDS,
            ancestors=request.ancestors,
            granter=self.node,
        )

    def _give(self, grant: Grant) -> Grant:
        self._table.put(grant)
        self._ended.pop(grant.key, None)
        self._ended[grant.key] = grant.epoch
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        return grant

    def release(self, volume: int, id_: int, node: bytes, epoch: int) -> bool:
        """End a lease before its time; False when the node has none of this epoch."""
        grant = self._table.grants.get(((volume, id_), node))
        if grant is None or grant.epoch > epoch:  # of a directory the holder has the highest of several epochs
            return False
        self._table.drop(grant.key, node)
        return True

    def standing(self, now: float) -> list[Grant]:
        """Return what is granted."""
        self._table.expire(now)
        return list(self._table.grants.values())


class Held:
    """The holder's side: what this node holds, and when that ends."""

    def __init__(self) -> None:
        self._grants: dict[Key, Grant] = {}
        self._renewed: dict[Key, float] = {}  # when it last asked

    def took(self, grant: Grant, asked: float, now: float) -> bool:
        """Note a lease that was asked for at `asked`; False when the answer came too late to be of use."""
        if asked + TERM_SECONDS <= now:
            return False
        self._grants[grant.key] = replace(grant, expires=asked + TERM_SECONDS)
        self._renewed[grant.key] = asked
        return True

    def renewed(self, key: Key, epoch: int, asked: float) -> None:
        """Note that the lease of this epoch was renewed; one that is over stays over."""
        grant = self._grants.get(key)
        if grant is not None and grant.epoch == epoch and grant.expires < asked + TERM_SECONDS:
            self._grants[key] = replace(grant, expires=asked + TERM_SECONDS)

    def asking(self, key: Key, now: float) -> None:
        """Note that a renewal is on its way: the next one is due later."""
        self._renewed[key] = now

    def drop(self, key: Key, epoch: int | None = None) -> Grant | None:
        """Forget a lease: released, or refused."""
        grant = self._grants.get(key)
        if grant is None or (epoch is not None and grant.epoch != epoch):
            return None
        self._renewed.pop(key, None)
        return self._grants.pop(key)

    def get(self, key: Key, now: float) -> Grant | None:
        """Return the lease on this, if it is held and not over."""
        grant = self._grants.get(key)
        return grant if grant is not None and grant.expires > now else None

    def due(self, now: float) -> list[Grant]:
        """Return what is to be renewed now."""
        return [grant for key, grant in self._grants.items() if self._renewed[key] + RENEW_SECONDS <= now]

    def next_due(self) -> float:
        """Return when the next renewal is due; infinity without any lease."""
        return min(self._renewed.values(), default=float("inf")) + RENEW_SECONDS

    def lost(self, now: float) -> list[Grant]:
        """Forget and return what is over because nobody renewed it."""
        over = [grant for grant in self._grants.values() if grant.expires <= now]
        for grant in over:
            self.drop(grant.key)
        return over

    def all(self, now: float) -> list[Grant]:
        """Return all that is held."""
        return [grant for grant in self._grants.values() if grant.expires > now]


class Known:
    """What others say they hold: for messages to people, and for a granter that has just become one."""

    def __init__(self) -> None:
        self._table = _Table()

    def heard(self, grants: Sequence[Grant], now: float) -> None:
        """Note what somebody said is held; no end is believed that is further off than a term."""
        self._table.expire(now)
        for grant in grants:
            if len(self._table.grants) < GRANTS_MAX and len(grant.ancestors) <= limits.ANCESTORS_MAX:
                self._table.put(replace(grant, expires=min(grant.expires, now + TERM_SECONDS)))

    def ended(self, keys: Iterable[Key], node: bytes) -> None:
        """Note that a node no longer holds these."""
        for key in keys:
            self._table.drop(key, node)

    def forget(self, node: bytes) -> None:
        """Forget what a node held that cannot be reached any more."""
        for key, holder in list(self._table.grants):
            if holder == node:
                self._table.drop(key, holder)

    def against(self, wanted: Request, now: float) -> Grant | None:
        """Return a lease that stands against this one."""
        return self._table.conflict(wanted, now)

    def holders(self, volume: int, ids: Collection[int], now: float) -> list[Grant]:
        """Return the leases on any of these ids."""
        return [grant for grant in self.all(now) if grant.volume == volume and grant.id in ids]

    def all(self, now: float) -> list[Grant]:
        """Return all that others are known to hold."""
        self._table.expire(now)
        return sorted(self._table.grants.values(), key=lambda grant: (grant.key, grant.node))
