"""Locks against a model of single bytes."""

import fcntl

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tbshare.fuse.locks import END_MAX, Locks
from tbshare.fuse.operations import FuseError, Lock

BYTES = 12
KINDS = st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
STEPS = st.tuples(st.integers(1, 3), KINDS, st.integers(0, BYTES - 1), st.integers(0, BYTES - 1))


@given(st.lists(STEPS, max_size=30))
def test_ranges_are_as_single_bytes(steps: list[tuple[int, int, int, int]]) -> None:
    locks, model = Locks(), [dict[int, int]() for _ in range(BYTES)]
    for owner, kind, one, other in steps:
        start, end = min(one, other), max(one, other)
        taken = range(start, end + 1)
        free = kind == fcntl.F_UNLCK or not any(
            fcntl.F_WRLCK in (kind, held) for place in taken for who, held in model[place].items() if who != owner
        )
        wanted = Lock(kind, start, end)
        assert (locks.conflict(1, owner, wanted) is None) == free
        if not free:
            with pytest.raises(FuseError):
                locks.set(1, owner, wanted)
            continue
        locks.set(1, owner, wanted)
        for place in taken:
            model[place].pop(owner, None)
            if kind != fcntl.F_UNLCK:
                model[place][owner] = kind
        for place in range(BYTES):
            for who in (1, 2, 3, 4):
                writer = Lock(fcntl.F_WRLCK, place, place)
                assert (locks.conflict(1, who, writer) is None) == (not model[place].keys() - {who})
    assert locks.conflict(2, 4, Lock(fcntl.F_WRLCK, 0, END_MAX)) is None


async def test_waiting_for_a_lock(autojump_clock: trio.testing.MockClock) -> None:
    locks, got = Locks(), list[str]()
    whole = Lock(fcntl.F_WRLCK, 0, END_MAX)

    async def want(owner: int, name: str) -> None:
        await locks.wait(1, owner, whole)
        got.append(name)

    locks.set(1, 1, whole)
    async with trio.open_nursery() as nursery:
        given_up = trio.CancelScope()

        async def want_and_give_up() -> None:
            with given_up:
                await want(2, "given up")

        nursery.start_soon(want_and_give_up)
        nursery.start_soon(want, 3, "waited")
        await trio.testing.wait_all_tasks_blocked()
        given_up.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        locks.released(1, 1)
    assert got == ["waited"]
    locks.released(1, 3)
    assert locks.owned(1) == []
