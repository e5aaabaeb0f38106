"""The control socket: real sockets, several clients, and clients that misbehave."""

import inspect
import logging
import os
import socket
import stat
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.client import Client
from tbshare.daemon import control
from tbshare.daemon.control import Emit, Handlers
from tbshare.errors import DiskFull, FormatInvalid, ObjectInUse, StoreUnusable, TbshareError, UsageError
from tbshare.wire import files, local, report
from tbshare.wire.envelope import Opener, seal
from tbshare.wire.where import Where

R = TypeVar("R")


class Few:
    """The handlers that these tests call."""

    def __init__(self) -> None:
        self.cancelled = trio.Event()
        self.shut = trio.Event()
        self.verified = trio.Event()
        self.emitted = 0

    async def node_list(self, params: local.NodeListParams, emit: Emit) -> report.NodeList:
        return report.NodeList(nodes=[report.NodeLine(name="n", id="00", state="here")])

    async def gc(self, params: local.GcParams, emit: Emit) -> report.GcReport:
        raise ObjectInUse("it is in use", cure="tbshare ps")

    async def du(self, params: local.DuParams, emit: Emit) -> report.DiskUse:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._full)
        raise AssertionError

    async def _full(self) -> None:
        raise DiskFull("no room", cure="tbshare du")

    async def status(self, params: local.StatusParams, emit: Emit) -> report.StatusReport:
        raise ValueError("the secret of the daemon\nin two lines")

    async def show(self, params: local.ShowParams, emit: Emit) -> report.ShowReport:
        line = report.RefLine(
            ref="a@1", volume="", name="a", rev=1, size_bytes=0, files=0, tree="", when_seconds=0.0, author=""
        )
        file = report.FileLine(path="x" * 200, size_bytes=1, object="0" * 64)
        return report.ShowReport(line=line, files=[file] * params.files_max, files_total=params.files_max)

    async def run(self, params: local.RunParams, emit: Emit) -> report.RunReport:
        try:
            for number in range(params.max_tokens):
                await emit(report.Text(text=f"{number} " + "x" * 1000))
                self.emitted += 1
            if params.prompt == "hang":
                await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return report.RunReport(tokens=params.max_tokens)

    async def file_read(self, params: files.FileReadParams, emit: Emit) -> files.FileRead:
        assert params.length is not None
        for offset in range(0, params.length, files.CHUNK_BYTES_MAX):
            await emit(files.Chunk(offset, bytes(files.CHUNK_BYTES_MAX)))
            self.emitted += 1
        return files.FileRead("", params.length, params.length)

    async def verify(self, params: local.VerifyParams, emit: Emit) -> report.VerifyReport:
        for number in range(20_000):
            await emit(report.Checked(bytes_done=number, bytes_total=20_000))
        await emit(report.Noted(text="checked"))
        self.verified.set()
        return report.VerifyReport(bytes=1, blocks=1)

    async def shutdown(self, params: local.ShutdownParams, emit: Emit) -> report.Done:
        self.shut.set()
        return report.Done(text="bye")


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tbshare-") as directory:
        yield Path(directory)


@asynccontextmanager
async def served(home: Path) -> AsyncGenerator[Few]:
    few = Few()
    async with trio.open_nursery() as nursery:
        await nursery.start(_serve, home, few)
        yield few
        nursery.cancel_scope.cancel()


async def _serve(home: Path, few: Few, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    await control.serve(home / "run" / "control.sock", cast("Handlers", few), task_status=task_status)


async def asked(home: Path, question: Callable[[Client], R]) -> R:
    """Ask with the real client, in a thread as it is synchronous."""

    def ask() -> R:
        with Client.connect(home) as client:
            return question(client)

    return await trio.to_thread.run_sync(ask)


class Raw:
    """A client that may say anything."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._opener = Opener()

    async def send(self, identifier: int, method: str, params: msgspec.Struct | dict[str, int]) -> None:
        request = local.Request(identifier, method, msgspec.Raw(msgspec.msgpack.encode(params)))
        await self.stream.send_all(seal(msgspec.msgpack.encode(request)))

    async def hello(self) -> None:
        await self.send(1, "hello", local.HelloParams(level=local.LEVEL, version="x"))
        assert (await self.answer()).result

    async def answer(self) -> local.Answer:
        while (payload := self._opener.take()) is None:
            data = await self.stream.receive_some(1 << 16)
            assert data, "the daemon closed the connection"
            self._opener.feed(data)
        return msgspec.msgpack.decode(payload, type=local.Answer)


@asynccontextmanager
async def raw(home: Path) -> AsyncGenerator[Raw]:
    async with await trio.open_unix_socket(os.fspath(home / "run" / "control.sock")) as stream:
        yield Raw(stream)


def test_each_method_has_a_handler_and_a_client_method() -> None:
    handlers = {name for name, _ in inspect.getmembers(Handlers, inspect.isfunction) if not name.startswith("_")}
    assert handlers == set(local.METHODS) - {"hello"}
    others = {name for name in handlers if not name.startswith("mount_")}  # a mount has a link of its own
    assert others <= set(dir(Client))
    for name in handlers:
        signature = inspect.signature(getattr(Handlers, name))
        assert signature.parameters["params"].annotation is local.METHODS[name][0]
        assert signature.return_annotation is local.METHODS[name][1]


async def test_errors_arrive_as_what_they_were(home: Path) -> None:
    async with served(home):
        with pytest.raises(ObjectInUse, match="it is in use") as caught:
            await asked(home, lambda client: client.gc())
        assert caught.value.cure == "tbshare ps"
        with pytest.raises(DiskFull, match="no room"):  # out of a nursery: wrapped in a group
            await asked(home, lambda client: client.du())


async def test_a_mistake_of_ours_is_logged_and_not_sent(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(home):
        with caplog.at_level(logging.ERROR), pytest.raises(TbshareError) as caught:
            await asked(home, lambda client: client.status())
        assert "internal error in status (ValueError)" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "the secret of the daemon" in caplog.text
        assert (await asked(home, lambda client: client.node_list())).nodes


@pytest.mark.parametrize("files", [0, 1, 10_000, 100_000])
async def test_a_long_answer_comes_in_parts(home: Path, files: int) -> None:
    async with served(home):
        shown = await asked(home, lambda client: client.show(local.ShowParams(files_max=files)))
        assert len(shown.files) == files


async def test_an_answer_that_is_too_long_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RESULT_BYTES_MAX", 10_000)
    async with served(home):
        with pytest.raises(FormatInvalid, match="too long"):
            await asked(home, lambda client: client.show(local.ShowParams(files_max=100)))


async def test_a_slow_client_holds_up_nobody_else(home: Path) -> None:
    async with served(home) as few, raw(home) as slow:
        await slow.hello()
        await slow.send(2, "run", local.RunParams(ref="a", prompt="", max_tokens=100_000))
        before = -1
        while before < few.emitted:  # until it waits for the client
            before = few.emitted
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await asked(home, lambda client: client.node_list())).nodes
        assert few.emitted < 100_000
        for number in range(before):  # nothing is lost or out of order
            event = (await slow.answer()).event
            assert isinstance(event, report.Text)
            assert event.text.startswith(f"{number} ")


async def test_a_file_that_is_read_slowly_does_not_fill_the_memory(home: Path) -> None:
    chunks = 64
    async with served(home) as few, raw(home) as slow:
        await slow.hello()
        params = files.FileReadParams(Where("film"), length=chunks * files.CHUNK_BYTES_MAX)
        await slow.send(2, "file_read", params)
        await trio.testing.wait_all_tasks_blocked(0.05)
        waiting = few.emitted * files.CHUNK_BYTES_MAX
        assert waiting <= control.EVENT_BYTES_WAITING + 2 * files.CHUNK_BYTES_MAX  # one is on its way, one is sent
        for number in range(chunks):
            event = (await slow.answer()).event
            assert isinstance(event, files.Chunk)
            assert event.offset == number * files.CHUNK_BYTES_MAX
        assert (await slow.answer()).result


async def test_calls_of_one_client_that_wait_for_room_all_go_on(home: Path) -> None:
    async with served(home), raw(home) as slow:
        await slow.hello()
        for identifier in (2, 3, 4):
            params = files.FileReadParams(Where("film"), length=16 * files.CHUNK_BYTES_MAX)
            await slow.send(identifier, "file_read", params)
        await trio.testing.wait_all_tasks_blocked(0.05)
        ended: set[int] = set()
        with trio.fail_after(10):
            while len(ended) < 3:
                answer = await slow.answer()
                if answer.result:
                    ended.add(answer.id)


async def test_what_fails_in_the_caller_is_not_the_daemons_fault(home: Path) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError("nobody reads")

    async with served(home):
        params = files.FileReadParams(Where("film"), length=files.CHUNK_BYTES_MAX)
        with pytest.raises(BrokenPipeError, match="nobody reads"):
            await asked(home, lambda client: client.file_read(params, broken))


async def test_progress_that_nobody_reads_is_replaced_by_newer(home: Path) -> None:
    async with served(home) as few, raw(home) as slow:
        await slow.hello()
        await slow.send(2, "verify", local.VerifyParams())
        with trio.fail_after(10):
            await few.verified.wait()  # though nothing is read
        seen: list[int] = []
        while True:
            answer = await slow.answer()
            if answer.id == 2 and answer.result:
                break
            if isinstance(answer.event, report.Checked):
                seen.append(answer.event.bytes_done)
        assert seen == sorted(seen)
        assert seen[-1] == 19_999


async def test_closing_the_connection_cancels_its_calls(home: Path) -> None:
    async with served(home) as few:
        async with raw(home) as leaving:
            await leaving.hello()
            await leaving.send(2, "run", local.RunParams(ref="a", prompt="hang", max_tokens=1))
            assert (await leaving.answer()).event
            assert not few.cancelled.is_set()
        with trio.fail_after(5):
            await few.cancelled.wait()


async def test_the_answer_to_shutdown_still_goes_out(home: Path) -> None:
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            few = Few()
            await nursery.start(_serve, home, few)
            async with raw(home) as client:
                await client.hello()
                await client.send(2, "shutdown", local.ShutdownParams())
                await few.shut.wait()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    answer = await client.answer()
                    assert msgspec.msgpack.decode(answer.result, type=report.Done).text == "bye"
        assert not (home / "run" / "control.sock").exists()


async def test_what_is_no_call(home: Path) -> None:
    async with served(home):
        async with raw(home) as client:
            await client.hello()
            await client.send(2, "fly", local.StatusParams())
            failed = (await client.answer()).error
            assert failed is not None
            assert (failed.kind, failed.cure) == ("UsageError", "tbshare restart")
            await client.send(3, "run", {"ref": 5})
            failed = (await client.answer()).error
            assert failed is not None
            assert (failed.kind, failed.exit_status) == ("UsageError", 2)
            await client.send(4, "__init__", local.StatusParams())
            assert (await client.answer()).error
            await client.send(5, "node_list", local.NodeListParams())
            assert (await client.answer()).result
        async with raw(home) as client:
            await client.send(1, "node_list", local.NodeListParams())
            failed = (await client.answer()).error
            assert failed is not None
            assert "hello" in failed.message
            assert await client.stream.receive_some(1) == b""


async def test_too_many_calls_at_once(home: Path) -> None:
    async with served(home), raw(home) as client:
        await client.hello()
        for number in range(control.CALLS_MAX + 1):
            await client.send(2 + number, "run", local.RunParams(ref="a", prompt="hang", max_tokens=0))
        failed = await client.answer()
        assert failed.id == 2 + control.CALLS_MAX
        assert failed.error is not None
        assert failed.error.kind == "UsageError"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(min_size=1, max_size=200), st.binary(min_size=1, max_size=200).map(seal)))
def test_garbage_harms_nobody(home: Path, data: bytes) -> None:
    trio.run(partial(_garbage, home, data))


async def _garbage(home: Path, data: bytes) -> None:
    async with served(home):
        async with raw(home) as client:
            await client.stream.send_all(data)
            await client.stream.send_eof()
            with trio.fail_after(5):
                try:
                    while await client.stream.receive_some(1 << 16):
                        pass
                except trio.BrokenResourceError:
                    return
        assert (await asked(home, lambda client: client.node_list())).nodes


async def test_only_this_user_may_enter(home: Path) -> None:
    (home / "run").mkdir(mode=0o777)
    async with served(home):
        assert stat.S_IMODE(os.stat(home / "run").st_mode) == 0o700


async def test_the_peer_is_asked_for_its_uid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(home):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        async with raw(home) as stranger:
            try:
                await stranger.send(1, "hello", local.HelloParams(level=1, version="x"))
                assert await stranger.stream.receive_some(1) == b""
            except trio.BrokenResourceError:
                pass


async def test_two_daemons_on_one_socket_and_a_leftover(home: Path) -> None:
    async with served(home):
        with pytest.raises(StoreUnusable, match="another daemon"):
            await control.serve(home / "run" / "control.sock", cast("Handlers", Few()))
        assert (await asked(home, lambda client: client.node_list())).nodes
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(os.fspath(home / "run" / "control.sock"))
    async with served(home):
        assert (await asked(home, lambda client: client.node_list())).nodes


async def test_a_request_that_is_too_long_is_refused_by_the_client(home: Path) -> None:
    async with served(home):
        with pytest.raises(UsageError, match="too long"):
            await asked(home, lambda client: client.run(local.RunParams(ref="a", prompt="x" * 3_000_000)))
        with pytest.raises(UsageError, match="UTF-8"):
            await asked(home, lambda client: client.pin("a\udc80"))
