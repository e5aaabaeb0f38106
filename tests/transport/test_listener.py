import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tbshare.errors import PeerError, UsageError
from tbshare.transport.listener import STRANGERS_PER_ADDRESS_MAX, Handler, Kind, kind_of, listen
from tbshare.wire import limits


@asynccontextmanager
async def port_with(*, admit: bool = True) -> AsyncGenerator[tuple[int, list[tuple[Kind, bytes]]], None]:
    """Serve a port whose handlers echo all bytes; yields the port and what connections there were."""
    met: list[tuple[Kind, bytes]] = []

    def echo(kind: Kind) -> Handler:
        async def handle(stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
            if admit:
                admitted()
            first = bytes(await stream.receive_some(4096))
            met.append((kind, first))
            await stream.send_all(first)
            while data := await stream.receive_some(4096):
                await stream.send_all(data)

        return handle

    async with trio.open_nursery() as nursery:
        handlers = {kind: echo(kind) for kind in Kind}
        port = await nursery.start(partial(listen, 0, handlers, host="127.0.0.1"))
        yield port, met
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", list(Kind))
async def test_each_kind_goes_to_its_handler_with_nothing_consumed(kind: Kind) -> None:
    async with port_with() as (port, met), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(kind.value + b"rest")
        got = b""
        while len(got) < len(kind.value) + 4:
            got += await stream.receive_some()
        assert got == kind.value + b"rest"
    assert met[0][0] is kind


async def test_a_first_word_in_pieces() -> None:
    async with port_with() as (port, met), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for byte in Kind.LANE.value:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.01)
        assert await stream.receive_some() == Kind.LANE.value
    assert met == [(Kind.LANE, Kind.LANE.value)]


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x00", b"TBLANE2\n", b"TBX", b"SSH-2.0-x\r\n"])
async def test_anything_else_is_closed_at_once_without_a_word(junk: bytes) -> None:
    async with port_with() as (port, met):
        with trio.fail_after(1):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(junk)
                with suppress(trio.BrokenResourceError):  # unread bytes there make it a reset
                    assert await stream.receive_some() == b""
    assert not met


@given(st.binary(min_size=1, max_size=12))
def test_kind_of(start: bytes) -> None:
    try:
        kind = kind_of(start)
    except ValueError:
        assert not any(kind.value.startswith(start) or start.startswith(kind.value) for kind in Kind)
    else:
        if kind is None:
            assert any(kind.value.startswith(start) for kind in Kind)
        else:
            assert start.startswith(kind.value)


@pytest.mark.parametrize(("start", "admit"), [(b"", True), (b"TBLA", True), (b"\x16", False)])
async def test_a_stranger_s_time_ends(start: bytes, admit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.3)
    async with port_with(admit=admit) as (port, _):
        with trio.fail_after(2):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(start)
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass  # unread bytes there make it a reset


async def test_who_is_admitted_may_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.2)
    async with port_with() as (port, _), await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"\x16")
        assert await stream.receive_some() == b"\x16"
        await trio.sleep(0.4)
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"


async def test_at_most_so_many_strangers_at_once() -> None:
    async with port_with() as (port, _):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(STRANGERS_PER_ADDRESS_MAX)]
        await trio.sleep(0.05)
        async with await trio.open_tcp_stream("127.0.0.1", port) as one_more:
            with trio.fail_after(1):
                assert await one_more.receive_some() == b""
        async with await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.3") as elsewhere:
            await elsewhere.send_all(b"\x16")
            with trio.fail_after(1):
                assert await elsewhere.receive_some() == b"\x16", "another machine still gets in"
        await silent.pop().aclose()
        await trio.sleep(0.05)
        async with await trio.open_tcp_stream("127.0.0.1", port) as now:
            await now.send_all(b"\x16")
            assert await now.receive_some() == b"\x16"
        for stream in silent:
            await stream.aclose()


async def test_members_do_not_count_as_strangers() -> None:
    async with port_with() as (port, met):
        members: list[trio.SocketStream] = []
        for _ in range(limits.STRANGERS_MAX + 5):
            members.append(await trio.open_tcp_stream("127.0.0.1", port))
            await members[-1].send_all(b"\x16")
            assert await members[-1].receive_some() == b"\x16"
        assert len(met) == limits.STRANGERS_MAX + 5
        for member in members:
            await member.aclose()


async def test_what_one_peer_does_wrong_ends_its_connection_only() -> None:
    async def fail(stream: trio.SocketStream, admitted: Callable[[], None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.checkpoint)
            raise PeerError("broke the protocol")

    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(listen, 0, {Kind.CONTROL: fail}, host="127.0.0.1"))
        for first in (b"\x16", b"\x16", b"TBPAIR1\n"):  # nobody handles pairing here
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(first)
                with suppress(trio.BrokenResourceError):
                    assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_a_port_in_use_is_said() -> None:
    async with port_with() as (port, _):
        with pytest.raises(UsageError, match=str(port)) as caught:
            await listen(port, {}, host="127.0.0.1")
        assert caught.value.cure


async def test_every_address_on_one_chosen_port() -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(listen, 0, {}))
        for host in ("127.0.0.1", "::1"):
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError:
                assert host == "::1"
                continue
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()
        nursery.cancel_scope.cancel()
