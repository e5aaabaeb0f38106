"""What is read of the kernel's messages, and what is said: as pure values, and through a loop on a socket."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from tbshare.fuse import negotiation, protocol, replies
from tbshare.fuse.backing import Backings
from tbshare.fuse.calls import Calls
from tbshare.fuse.loop import Loop
from tbshare.fuse.negotiation import InitFlag, Wishes
from tbshare.fuse.operations import (
    Answer,
    Attributes,
    Entry,
    FileSystemStatus,
    FuseError,
    Lock,
    Opened,
    Operations,
    RequestContext,
    SetAttributes,
)
from tbshare.fuse.protocol import Malformed, Opcode

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
NAMES = st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"x"))
TIMES = st.integers(-(2**40), 2**62)


NOBODY = 1 << 30  # the id of no process: larger than any may be


def message(opcode: int, body: bytes = b"", *, unique: int = 7, inode: int = 1) -> bytes:
    header = protocol.IN_HEADER.pack(40 + len(body), opcode, unique, inode, 1000, 1001, NOBODY, 0, 0)
    return header + body


def view(data: bytes) -> memoryview:
    return memoryview(data)


# --- taking messages apart ------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        request = protocol.parse(view(data))
    except Malformed:
        return
    assert len(request.body) <= len(data) - 40


@given(U64, U64, st.binary(max_size=100), st.integers(0, 3))
def test_a_header_is_read(unique: int, inode: int, body: bytes, extensions: int) -> None:
    data = protocol.IN_HEADER.pack(40 + len(body) + 8 * extensions, 1, unique, inode, 5, 6, 7, extensions, 0)
    request = protocol.parse(view(data + body + b"e" * 8 * extensions))
    assert (request.unique, request.inode, bytes(request.body)) == (unique, inode, body)
    assert request.context() == RequestContext(5, 6, 7)


@given(NAMES)
def test_a_name_is_read(name: bytes) -> None:
    assert protocol.name(view(name + b"\0")) == name
    for wrong in (name, name + b"\0\0", name + b"\0x", b""):
        with pytest.raises(Malformed):
            protocol.name(view(wrong))


@given(NAMES, NAMES)
def test_two_names_are_read(first: bytes, second: bytes) -> None:
    body = b"12345678" + first + b"\0" + second + b"\0"
    assert protocol.names(view(body), 2, 8) == [first, second]
    with pytest.raises(Malformed):
        protocol.names(view(body + b"x"), 2, 8)
    with pytest.raises(Malformed):
        protocol.names(view(body), 1, 8)


@given(TIMES, st.integers(0, 999_999_999), U32, U64)
def test_changes_are_read(seconds: int, rest: int, mode: int, size: int) -> None:
    valid = protocol.FATTR_MODE | protocol.FATTR_MTIME | protocol.FATTR_SIZE | protocol.FATTR_FH
    data = struct.pack("<IIQQQqqqIIIIIIII", valid, 0, 9, size, 0, 1, seconds, 2, 3, rest, 4, mode, 0, 5, 6, 0)
    changes, handle = protocol.setattr_in(view(data))
    assert changes == SetAttributes(mode=mode, mtime_ns=seconds * 10**9 + rest, size=size)
    assert handle == 9


@given(st.binary(max_size=300), st.integers(-2, 2))
def test_a_write_has_as_many_bytes_as_it_says(data: bytes, more: int) -> None:
    body = protocol.WRITE_IN.pack(1, 2, max(0, len(data) + more), protocol.WRITE_KILL_SUIDGID, 0, 0, 0) + data
    if max(0, len(data) + more) != len(data):
        with pytest.raises(Malformed):
            protocol.write_in(view(body))
        return
    handle, offset, found, kill = protocol.write_in(view(body))
    assert (handle, offset, bytes(found), kill) == (1, 2, data, True)


@given(st.lists(st.tuples(U64, U64), max_size=20), st.integers(0, 30))
def test_inodes_to_forget(pairs: list[tuple[int, int]], count: int) -> None:
    body = protocol.BATCH_FORGET_IN.pack(count, 0) + b"".join(protocol.FORGET_ONE.pack(*pair) for pair in pairs)
    request = protocol.parse(view(message(Opcode.BATCH_FORGET, body)))
    if count == len(pairs):
        assert protocol.forgets(request) == pairs
    else:
        with pytest.raises(Malformed):
            protocol.forgets(request)


class Everything(Operations):
    """Answers all that is asked, with as little as will do."""

    def lookup(self, parent: int, name: bytes, context: RequestContext) -> Entry:
        return Entry(2, Attributes(ino=2, mode=0o100644))

    def getattr(self, inode: int, handle: int | None, context: RequestContext) -> Attributes:
        return Attributes(ino=2, mode=0o100644)

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Opened:
        return Opened(1)

    def read(self, handle: int, offset: int, size_bytes: int) -> Answer[bytes]:
        return b"x" * min(size_bytes, 10)

    def statfs(self, inode: int) -> FileSystemStatus:
        return FileSystemStatus(1, 1, 1, 1, 1)

    def getlk(self, handle: int, owner: int, lock: Lock) -> Lock:
        return lock


@given(st.sampled_from(sorted(Opcode)), st.binary(max_size=200))
@example(Opcode.RENAME2, b"")
@example(Opcode.SETXATTR, b"\0" * 9)
def test_any_body_is_answered_or_malformed(opcode: Opcode, body: bytes) -> None:
    call = Calls(Everything(), Backings(-1)).table.get(opcode)
    if call is None:
        return
    with contextlib.suppress(Malformed, FuseError):
        answer, encode = call(protocol.parse(view(message(opcode, body))))
        encode(answer)


# --- answers --------------------------------------------------------------------------------------------------


@given(TIMES, st.integers(0, 2**63 - 1), st.floats(0, 10**6))
def test_attributes_are_written(moment: int, size: int, seconds: float) -> None:
    given_ = Attributes(ino=3, mode=0o100644, size=size, mtime_ns=moment, timeout_seconds=seconds, nlink=2, uid=4)
    fields = replies.ATTR_OUT.unpack(replies.attributes_out(given_))
    assert fields[0] + fields[1] / 10**9 == pytest.approx(seconds, abs=2e-9)
    assert (fields[3], fields[4]) == (3, size)
    assert fields[7] * 10**9 + fields[10] == moment
    assert fields[12:15] == (0o100644, 2, 4)
    assert len(replies.statx_out(given_)) == 288
    assert len(replies.entry_out(Entry(1, given_))) == 128


@given(st.lists(NAMES, max_size=40), st.integers(0, 3000), st.booleans())
def test_a_listing_fits_and_is_read_back(names: list[bytes], size: int, plus: bool) -> None:
    listing = replies.Listing(size, plus)
    taken: list[bytes] = []
    for number, name in enumerate(names, 1):
        entry = Entry(number + 10, Attributes(ino=number + 10, mode=0o040755))
        added = (
            listing.add_entry(name, number, entry) if plus else listing.add(name, number, number + 10, 0o040755)
        )
        if not added:
            break
        taken.append(name)
    data = listing.encoded()
    assert len(data) <= size
    assert [name for name, _, _, _ in listed(data, plus)] == taken
    for number, (_, ino, offset, kind) in enumerate(listed(data, plus), 1):
        assert (ino, offset, kind) == (number + 10, number, 4)
    if len(taken) < len(names):
        assert not listing.add(b"x", 1, 1, 0) or len(listing.encoded()) <= size


def listed(data: bytes, plus: bool) -> list[tuple[bytes, int, int, int]]:
    """Read fuse_dirent or fuse_direntplus as the kernel does."""
    found: list[tuple[bytes, int, int, int]] = []
    place = 0
    while place < len(data):
        place += 128 if plus else 0
        ino, offset, length, kind = struct.unpack_from("<QQII", data, place)
        found.append((data[place + 24 : place + 24 + length], ino, offset, kind))
        place += 24 + (length + 7) // 8 * 8
    return found


@given(st.binary(max_size=50), st.integers(0, 60))
def test_attribute_values_ask_for_room(value: bytes, room: int) -> None:
    if room == 0:
        assert replies.attribute_value_out(value, 0) == struct.pack("<II", len(value), 0)
    elif room < len(value):
        with pytest.raises(FuseError):
            replies.attribute_value_out(value, room)
    else:
        assert replies.attribute_value_out(value, room) == value


# --- what INIT agrees on --------------------------------------------------------------------------------------


@given(st.integers(31, 60), st.integers(0, 2**64 - 1), st.booleans(), st.booleans())
@example(45, 1 << 37, True, True)
def test_only_what_is_offered_is_taken(minor: int, flags: int, passthrough: bool, locks: bool) -> None:
    body = struct.pack("<IIIII44x", 7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)
    offered = negotiation.offer(view(body))
    agreed = negotiation.negotiate(offered, Wishes(passthrough=passthrough, locks=locks))
    known = flags if flags & InitFlag.INIT_EXT else flags & 0xFFFFFFFF
    assert agreed.flags & ~known == 0
    assert not agreed.flags & 1 << 16  # WRITEBACK_CACHE excludes passthrough
    assert agreed.capabilities.passthrough == bool(passthrough and known & InitFlag.PASSTHROUGH)
    fields = negotiation.INIT_OUT.unpack(agreed.reply)
    assert len(agreed.reply) == 64
    assert fields[:2] == (7, min(minor, 45))
    assert fields[3] | fields[10] << 32 == agreed.flags
    assert fields[11] == (1 if agreed.capabilities.passthrough else 0)  # max_stack_depth


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (6, 99), (8, 1)])
def test_other_protocols_are_refused(major: int, minor: int) -> None:
    with pytest.raises(Malformed):
        negotiation.negotiate(negotiation.offer(view(struct.pack("<IIII", major, minor, 0, 0))), Wishes())


# --- a loop whose device is a socket --------------------------------------------------------------------------

INIT = message(Opcode.INIT, struct.pack("<IIIII44x", 7, 45, 131072, 0xFFFFFFFF, 0))
STATFS = message(Opcode.STATFS, unique=99)


def conversation(
    operations: Operations,
    messages: Sequence[bytes],
    until: Callable[[bytes], bool],
    greeting: Sequence[bytes] = (INIT,),
) -> list[bytes]:
    """Say these things to a loop, and return what it says until something is said."""
    said: list[bytes] = []

    async def main() -> None:
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        loop = Loop(operations, device.fileno(), Wishes())
        kernel_side = trio.socket.from_stdlib_socket(kernel)
        with device, trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(loop.run)
                for data in (*greeting, *messages):
                    await kernel_side.send(data)
                while not said or not until(said[-1]):
                    said.append(await kernel_side.recv(1 << 21))
                kernel_side.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
    return said


def answered(unique: int) -> Callable[[bytes], bool]:
    return lambda data: replies.OUT_HEADER.unpack_from(data)[2] == unique


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=120)), min_size=1, max_size=10))
@example([(Opcode.INTERRUPT, b"")])
@example([(Opcode.FORGET, b"")])
@example([(Opcode.WRITE, b"\0" * 40)])
def test_absurd_messages_are_answered_and_the_loop_goes_on(bodies: list[tuple[int, bytes]]) -> None:
    messages = [message(opcode, body, unique=100 + number) for number, (opcode, body) in enumerate(bodies)]
    said = conversation(Everything(), [*messages, STATFS], answered(99))
    uniques = [replies.OUT_HEADER.unpack_from(data)[2] for data in said]
    for number, (opcode, _) in enumerate(bodies):
        assert (100 + number in uniques) == (opcode not in protocol.UNANSWERED), opcode


@given(st.binary(min_size=1, max_size=60))
def test_bytes_that_are_no_message_do_not_end_the_loop(data: bytes) -> None:
    assert conversation(Everything(), [data, STATFS], answered(99))


def test_a_first_message_that_is_not_understood_is_survived() -> None:
    early = message(Opcode.STATFS, unique=55)
    said = conversation(Everything(), [STATFS], answered(99), greeting=(b"x", early, INIT))
    assert said[0] == replies.failure(55, errno.EIO)


class Waiting(Everything):
    """Reads wait until they are interrupted; forgets are noted."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, int]] = []

    async def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        await trio.sleep_forever()
        return b""

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        self.forgotten += forgotten


def test_an_interrupt_cancels_what_waits_and_nothing_else() -> None:
    read = protocol.READ_IN.pack(1, 0, 4096, 0, 0, 0, 0)
    messages = [
        message(Opcode.READ, read, unique=10),
        message(Opcode.READ, read, unique=20),
        message(Opcode.INTERRUPT, struct.pack("<Q", 10), unique=11),
        message(Opcode.INTERRUPT, struct.pack("<Q", 12345), unique=13),  # answered long ago
    ]
    said = conversation(Waiting(), messages, answered(10))
    assert said[-1] == replies.failure(10, errno.EINTR)
    assert not any(answered(20)(data) for data in said)


def test_forgets_reach_the_operations() -> None:
    operations = Waiting()
    forget = protocol.BATCH_FORGET_IN.pack(2, 0) + struct.pack("<QQQQ", 5, 1, 6, 2)
    messages = [
        message(Opcode.FORGET, struct.pack("<Q", 3), inode=4),
        message(Opcode.BATCH_FORGET, forget),
        STATFS,
    ]
    conversation(operations, messages, answered(99))
    assert operations.forgotten == [(4, 3), (5, 1), (6, 2)]


class Slow(Everything):
    """Writes end in the order in which they are let go; each keeps its own bytes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> int:
        await trio.testing.wait_all_tasks_blocked()
        self.written.append(bytes(data))
        return len(data)


def test_writes_that_wait_keep_their_bytes() -> None:
    operations = Slow()
    data = [bytes([number]) * 5000 for number in range(20)]
    bodies = [protocol.WRITE_IN.pack(1, 0, 5000, 0, 0, 0, 0) + part for part in data]
    messages = [message(Opcode.WRITE, body, unique=100 + number) for number, body in enumerate(bodies)]
    remaining = {100 + number for number in range(20)}

    def all_answered(said: bytes) -> bool:
        remaining.discard(replies.OUT_HEADER.unpack_from(said)[2])
        return not remaining

    conversation(operations, messages, all_answered)
    assert sorted(operations.written) == data


class Closing(Everything):
    """Closing a file takes its time; reading waits for ever."""

    def __init__(self) -> None:
        self.closed: list[int] = []

    async def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        await trio.sleep_forever()
        return b""

    async def release(self, handle: int, flock_owner: int | None) -> None:
        await trio.sleep(1)
        self.closed.append(handle)


def test_unmounting_lets_files_be_closed() -> None:
    operations = Closing()
    messages = [
        message(Opcode.READ, protocol.READ_IN.pack(1, 0, 4096, 0, 0, 0, 0), unique=12),
        message(Opcode.RELEASE, protocol.RELEASE_IN.pack(5, 0, 0, 0), unique=14),
        STATFS,
    ]
    conversation(operations, messages, answered(99))
    assert operations.closed == [5]


class Buggy(Everything):
    """Fails in ways that nobody expects."""

    def open(self, inode: int, flags: int, kill_privileges: bool, context: RequestContext) -> Opened:
        return Opened(-1)  # no such number in the protocol

    def read(self, handle: int, offset: int, size_bytes: int) -> bytes:
        raise ZeroDivisionError

    async def write(self, handle: int, offset: int, data: memoryview, kill_privileges: bool) -> int:
        await trio.lowlevel.checkpoint()
        raise KeyError("a bug")

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        raise KeyError("a bug")


def test_a_bug_is_eio_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    messages = [
        message(Opcode.FORGET, struct.pack("<Q", 3)),
        message(Opcode.OPEN, protocol.OPEN_IN.pack(0, 0), unique=10),
        message(Opcode.READ, protocol.READ_IN.pack(1, 0, 4096, 0, 0, 0, 0), unique=12),
        message(Opcode.WRITE, protocol.WRITE_IN.pack(1, 0, 1, 0, 0, 0, 0) + b"x", unique=14),
    ]
    said = conversation(Buggy(), messages, answered(14))
    assert said[1:] == [replies.failure(unique, errno.EIO) for unique in (10, 12, 14)]
    failed = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(failed) == 4
    assert os.strerror(errno.EIO) not in failed


def test_a_second_kind_of_kernel_is_told_so() -> None:
    old = message(Opcode.INIT, struct.pack("<IIII", 7, 12, 0, 0), unique=3)

    async def main() -> bytes:
        kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with kernel, device:
            kernel.send(old)
            with pytest.RaisesGroup(Malformed, flatten_subgroups=True):
                await Loop(Everything(), device.fileno(), Wishes()).run()
            return kernel.recv(100)

    assert trio.run(main) == replies.failure(3, errno.EPROTO)
