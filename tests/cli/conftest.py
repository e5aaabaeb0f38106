"""A daemon's answers for tests: real structs over the real socket, from a table instead of a store."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from tbshare.cli.main import main
from tbshare.daemon import control
from tbshare.daemon.control import Emit
from tbshare.errors import ObjectInUse, RefUnknown, UsageError
from tbshare.wire import local, report
from tests.cli.volume_answers import VolumeAnswers

ID = "ab" * 32
OTHER = "cd" * 32


def ref_line(name: str = "llama-70b", rev: int = 1) -> report.RefLine:
    return report.RefLine(
        ref=f"{name}@{rev}",
        volume="models",
        name=name,
        rev=rev,
        size_bytes=141_000_000_000,
        files=31,
        tree="11" * 32,
        when_seconds=1_795_000_000.0,
        author="studio-1",
        on=["studio-1", "studio-2"],
        here="whole",
        pinned=True,
        bytes_here=141_000_000_000,
    )


def progress(name: str, state: str, present: int, total: int = 4_000_000_000) -> report.NodeProgress:
    return report.NodeProgress(
        name=name,
        id=OTHER,
        state=state,
        bytes_total=total,
        bytes_present=present,
        bytes_moved=present // 2,
        bytes_reused=present - present // 2,
        rate=1.5e9 if state == "fetching" else 0.0,
        eta_seconds=(total - present) / 1.5e9 if state == "fetching" else None,
        sources=[report.SourceLine(name="studio-1", rate=1.5e9, bytes=present)],
        reason="disk full" if state == "failed" else "",
    )


class Answers(VolumeAnswers):
    """Handlers whose answers depend on the ref, path or id they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled: list[str] = []
        self.shut = trio.Event()
        self.attention: list[report.Attention] = []

    async def status(self, params: local.StatusParams, emit: Emit) -> report.StatusReport:
        self.asked.append(params)
        nodes = (await self.node_list(local.NodeListParams(), emit)).nodes
        return report.StatusReport(
            attention=self.attention,
            node=nodes[0],
            nodes=nodes[1:],
            cluster="ef" * 32,
            version="0.1.0",
            pid=1,
            home="/home/x",
            store_path="/home/x",
            port=7347,
            uptime_seconds=3723.0,
            refs=1,
            stored_bytes=141_000_000_000,
            free_bytes=310_000_000_000,
            keep_free_bytes=31_000_000_000,
            features=[report.Feature(name="native", present=False, text="built without a compiler")],
        )

    async def node_list(self, params: local.NodeListParams, emit: Emit) -> report.NodeList:
        self.asked.append(params)
        link = report.LinkLine(kind="control", address="10.0.0.2:7347", direct=True, round_trip_seconds=0.00021)
        return report.NodeList(
            nodes=[
                report.NodeLine(name="studio-1", id=ID, state="here", free_bytes=310_000_000_000),
                report.NodeLine(name="studio-2", id=OTHER, state="connected", links=[link]),
            ]
        )

    async def node_rename(self, params: local.NodeRenameParams, emit: Emit) -> report.Done:
        self.asked.append(params)
        return report.Done(text=params.name)

    async def pair_open(self, params: local.PairOpenParams, emit: Emit) -> report.Paired:
        self.asked.append(params)
        await emit(report.Code(code="7-apple-tree", expires_seconds=120.0, addresses=["10.0.0.1:7347"]))
        await emit(report.TryFailed(tries_left=2))
        return report.Paired(name="studio-2", id=OTHER, nodes=["studio-1", "studio-2"])

    async def pair_join(self, params: local.PairJoinParams, emit: Emit) -> report.Paired:
        self.asked.append(params)
        return report.Paired(name="studio-1", id=ID, nodes=["studio-1", "studio-2"])

    async def push(self, params: local.PushParams, emit: Emit) -> report.PushReport:
        self.asked.append(params)
        try:
            return await self._push(params, emit)
        except trio.Cancelled:
            self.cancelled.append("push")
            raise

    async def _push(self, params: local.PushParams, emit: Emit) -> report.PushReport:
        await emit(report.Noted(text="left out by default: .git"))
        await emit(report.SpaceLine(node="studio-2", text="needs 4 GB, 310 GB free"))
        if params.dry_run:
            return report.PushReport(ref="m@1", tree="11" * 32, bytes=4_000_000_000, files=3, dry_run=True)
        await emit(report.Started(id="p1"))
        for done in (1, 2, 4):
            await emit(report.Ingest(bytes_done=done * 10**9, bytes_total=4 * 10**9, rate=2e9, files_total=3))
        if params.name == "hang-before":
            await trio.sleep_forever()
        await emit(report.Published(ref="m@1", tree="11" * 32, already=params.name == "same"))
        failed = params.name == "failing"
        if params.name != "same":
            for present in (0, 1, 2, 3):
                await emit(report.Nodes(nodes=[progress("studio-2", "fetching", present * 10**9)]))
                await trio.sleep(0.01)
            if params.name == "hang":
                await trio.sleep_forever()
        last = progress("studio-2", "failed" if failed else "durable", 4 * 10**9)
        await emit(report.Nodes(nodes=[last]))
        return report.PushReport(
            ref="m@1",
            tree="11" * 32,
            id="p1",
            bytes=4 * 10**9,
            files=3,
            already=params.name == "same",
            seconds=3.0,
            seconds_moving=2.0,
            rate_best=1.5e9,
            nodes=[last],
            blocks_total=1000,
            failed=["studio-2"] if failed else [],
            pending=["studio-3"] if params.name == "pending" else [],
        )

    async def _hang(self, what: str) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled.append(what)
            raise

    async def pull(self, params: local.PullParams, emit: Emit) -> report.PushReport:
        self._ref(params.ref)
        push = local.PushParams(path="/x", name="pulled")
        return await self.push(push, emit)

    async def ref_list(self, params: local.RefListParams, emit: Emit) -> report.RefList:
        self.asked.append(params)
        lines = [ref_line(), ref_line("mlx-community/SmolLM2-135M", 3)]
        return report.RefList(refs=[line for line in lines if line.ref.startswith(params.prefix)])

    async def show(self, params: local.ShowParams, emit: Emit) -> report.ShowReport:
        self.asked.append(params)
        self._ref(params.ref or "llama-70b")
        return report.ShowReport(
            line=msgspec.structs.replace(ref_line(), tree="", author="") if params.path else ref_line(),
            files=[
                report.FileLine(
                    path="model-00001.safetensors",
                    size_bytes=5_000_000_000,
                    object="22" * 32,
                    layout="shifted",
                    format="safetensors",
                    tensors=120,
                    aligned=120,
                    bytes_here=5_000_000_000,
                ),
                report.FileLine(path="evil\x1b[2Jname\n.json", size_bytes=10, object="33" * 32, layout="packed"),
            ],
            files_total=31,
            holders=[report.HolderLine(name="studio-2", id=OTHER, bytes_present=70_500_000_000)],
        )

    async def path(self, params: local.PathParams, emit: Emit) -> report.PathReport:
        self.asked.append(params)
        self._ref(params.ref)
        return report.PathReport(ref="llama-70b@1", directory="/home/x/path/llama-70b@1", left_out=["a.py"])

    async def remove(self, params: local.RemoveParams, emit: Emit) -> report.RemoveReport:
        self.asked.append(params)
        self._ref(params.ref)
        return report.RemoveReport(
            ref="llama-70b@1",
            removed=params.yes,
            nodes=["studio-1", "studio-2"],
            size_bytes=141_000_000_000,
            bytes_freed=141_000_000_000,
            grace_seconds=604800.0,
        )

    async def pin(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        self.asked.append(params)
        if params.where is not None:
            return report.KeepReport(ref=str(params.where), pinned=True)
        self._ref(params.ref)
        return report.KeepReport(ref="llama-70b@1", pinned=True, bytes_here=141_000_000_000)

    async def unpin(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        self.asked.append(params)
        self._ref(params.ref)
        return report.KeepReport(ref="llama-70b@1", pinned=False, bytes_here=141_000_000_000)

    async def evict(self, params: local.RefParams, emit: Emit) -> report.KeepReport:
        self.asked.append(params)
        if params.ref == "last":
            raise ObjectInUse("last@1 has its only copy here", cure="tbshare push last --to studio-2")
        self._ref(params.ref)
        return report.KeepReport(ref="llama-70b@1", pinned=False, bytes_freed=141_000_000_000)

    async def gc(self, params: local.GcParams, emit: Emit) -> report.GcReport:
        self.asked.append(params)
        held = report.HeldLine(by="studio-2", bytes=5, text="has not acknowledged")
        return report.GcReport(objects=3, bytes_freed=7_000_000_000, held=[held])

    async def verify(self, params: local.VerifyParams, emit: Emit) -> report.VerifyReport:
        self.asked.append(params)
        await emit(report.Checked(bytes_done=1, bytes_total=2))
        corrupt = 1 if params.ref == "rotten" else 0
        problem = report.Problem(path="a", block="44" * 32, text="does not match", repaired=params.repair)
        log_problem = report.Problem("log.db", "", "was damaged", repaired=params.repair)
        return report.VerifyReport(
            bytes=2,
            blocks=1,
            corrupt=corrupt,
            quarantined=corrupt,
            repaired=corrupt if params.repair else 0,
            seconds=0.1,
            problems=[problem] * corrupt + [log_problem] * (params.ref == "logless"),
        )

    async def du(self, params: local.DuParams, emit: Emit) -> report.DiskUse:
        line = report.DuLine(ref="llama-70b@1", logical_bytes=9, here_bytes=9, unique_bytes=3)
        return report.DiskUse(
            path="/home/x",
            logical_bytes=9,
            unique_bytes=8,
            shared_bytes=1,
            disk_bytes=7,
            reclaimable_bytes=0,
            lines=[line],
        )

    async def processes(self, params: local.ProcessesParams, emit: Emit) -> report.ProcessList:
        line = report.ProcessLine(
            id="p1",
            kind="push",
            what="m@1",
            state="fetching",
            started_seconds=0.0,
            bytes_done=1,
            bytes_total=4,
        )
        return report.ProcessList(processes=[line])

    async def stop(self, params: local.IdParams, emit: Emit) -> report.Done:
        if params.id != "p1":
            raise UsageError(f"nothing with the id {params.id!r} goes on here", cure="tbshare ps")
        return report.Done(text="stopped the push of m@1")

    async def wait(self, params: local.IdParams, emit: Emit) -> report.WaitReport:
        if params.id != "p1":
            raise UsageError(f"nothing with the id {params.id!r} goes on here", cure="tbshare ps")
        push = await self.push(local.PushParams(path="/x"), emit)
        return report.WaitReport(id="p1", kind="push", what="m@1", state="done", seconds=3.0, push=push)

    async def run(self, params: local.RunParams, emit: Emit) -> report.RunReport:
        self.asked.append(params)
        self._ref(params.ref)
        await emit(report.Ready(seconds=0.02, mapped_bytes=270_000_000, tensors=272, copied_tensors=1))
        if params.prompt == "hang":
            await self._hang("run")
        for word in ("The capital ", "of France ", "is Paris.\x1b[31m"):
            await emit(report.Text(text=word))
        return report.RunReport(tokens=8, prompt_tokens=7, seconds=0.4, rate=20.0)

    async def shutdown(self, params: local.ShutdownParams, emit: Emit) -> report.Done:
        self.shut.set()
        return report.Done()

    async def log_level(self, params: local.LogLevelParams, emit: Emit) -> report.Done:
        self.asked.append(params)
        return report.Done()

    def _ref(self, ref: str) -> None:
        if ref == "bug":
            nothing: dict[str, Any] = {}
            nothing["secret of the daemon"]
        if not ref.startswith(("llama", "rotten", "m@")):
            raise RefUnknown(
                f"no ref {ref!r} in volume models of this cluster; the nearest is llama-70b",
                cure="tbshare ls",
            )


@dataclass
class Serving:
    """A control socket in `home`, served by a thread."""

    home: Path
    answers: Answers
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, begun: Callable[[trio.CancelScope, trio.lowlevel.TrioToken], None]) -> None:
        trio.run(self._serve, begun)

    async def _serve(self, begun: Callable[[trio.CancelScope, trio.lowlevel.TrioToken], None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(control_server, self.home, self.answers)
            begun(nursery.cancel_scope, trio.lowlevel.current_trio_token())
            await self.answers.shut.wait()
            nursery.cancel_scope.cancel()


async def control_server(
    home: Path, answers: Answers, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    await control.serve(home / "run" / "control.sock", cast("control.Handlers", answers), task_status=task_status)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="tbshare-") as directory:
        yield Path(directory) / "home"


@pytest.fixture
def serving(home: Path) -> Iterator[Serving]:
    """A daemon that answers from the table."""
    serving = Serving(home, Answers())
    ready = threading.Event()
    handles: list[tuple[trio.CancelScope, trio.lowlevel.TrioToken]] = []

    def begun(scope: trio.CancelScope, token: trio.lowlevel.TrioToken) -> None:
        handles.append((scope, token))
        ready.set()

    thread = threading.Thread(target=serving.run, args=(begun,))
    thread.start()
    assert ready.wait(10)
    yield serving
    scope, token = handles[0]
    with contextlib.suppress(trio.RunFinishedError):  # shut down by the test
        token.run_sync_soon(scope.cancel)
    thread.join(10)
    assert not thread.is_alive()


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    status: int
    out: str
    err: str


class Cli:
    """The command line in this process, or in its own."""

    def __init__(self, home: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self.capture = capture

    def __call__(self, *words: str) -> Outcome:
        self.capture.readouterr()
        status = main(["--home", str(self.home), *words])
        out, err = self.capture.readouterr()
        assert "Traceback" not in out + err
        return Outcome(int(status), out, err)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tbshare.cli", "--home", str(self.home), *words]

    def process(self, *words: str, **changed: str) -> Outcome:
        ended = subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **changed},
            check=False,
        )
        assert "Traceback" not in ended.stdout + ended.stderr
        return Outcome(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(home, capsys)
