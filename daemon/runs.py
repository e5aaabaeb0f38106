"""`run` on this node: a rank process over mapped weights, its text streamed to whoever asked."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import trio

from tbshare.daemon.control import Emit
from tbshare.daemon.processes import Process
from tbshare.daemon.refs import Refs
from tbshare.daemon.service import Service, boot_id
from tbshare.errors import Interrupted, ModelRefused, TbshareError
from tbshare.inference.check import check
from tbshare.volumes.fold import RefVersion
from tbshare.wire.local import RunParams
from tbshare.wire.report import Ready, RunReport, Started, Text

STOP_SECONDS = 5.0


class Runs:
    """Answers run."""

    def __init__(self, service: Service, refs: Refs) -> None:
        self.service, self.refs = service, refs
        self._boot = boot_id()

    async def run(self, params: RunParams, emit: Emit) -> RunReport:
        """Start a rank on a ref that is whole here, and stream what it says."""
        version = await self.refs.whole_version(params.ref)
        text = str(version)
        async with self._leased(version):
            directory, _ = await trio.to_thread.run_sync(self.refs.view, version, params.allow_code)
            await trio.to_thread.run_sync(check, directory)
            process = self.service.processes.begin("run", text)
            await emit(Started(process.id))
            with process.ending():
                with process.scope:
                    report = await self._run(process, str(directory), params, emit)
                    process.end("done")
                    return report
                raise Interrupted(f"{process.id} was stopped")

    @contextlib.asynccontextmanager
    async def _leased(self, version: RefVersion) -> AsyncGenerator[None, None]:
        """Keep the bytes of a version while they are mapped. In the daemon's name: a rank ends with its daemon."""
        leases = self.service.log.leases
        async with self.service.collecting:  # nothing goes between the look and the lease
            await self.refs.whole_version(str(version))
            lease = await trio.to_thread.run_sync(
                lambda: leases.add(
                    version.tree, kind="run", pid=os.getpid(), boot=self._boot, expires=float("inf")
                )
            )
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(leases.remove, lease)

    async def _run(self, process: Process, directory: str, params: RunParams, emit: Emit) -> RunReport:
        job: dict[str, Any] = {
            "model": directory,
            "prompt": params.prompt,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "seed": params.seed,
            "chat": not params.raw,
        }
        if params.system:
            job["system"] = params.system
        rank = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tbshare.inference.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        process.text = f"pid {rank.pid}"
        try:
            assert rank.stdin is not None
            await rank.stdin.send_all(json.dumps(job).encode() + b"\n")
            return await self._follow(rank, emit)
        finally:
            with trio.CancelScope(shield=True):
                await _end(rank)

    async def _follow(self, rank: trio.Process, emit: Emit) -> RunReport:
        started = time.monotonic()
        first = 0.0
        assert rank.stdout is not None
        assert rank.stderr is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drain, rank.stderr)
            async for line in _lines(rank.stdout):
                event = json.loads(line)
                match event.pop("event"):
                    case "ready":
                        await emit(
                            Ready(
                                seconds=event["seconds"],
                                mapped_bytes=event["mapped_bytes"],
                                copied_bytes=event["copied_bytes"] + event.get("loaded_bytes", 0),
                                tensors=event.get("tensors", 0),
                                copied_tensors=event["copied_tensors"],
                                note=event.get("note", ""),
                            )
                        )
                    case "text":
                        first = first or time.monotonic() - started
                        await emit(Text(event["text"]))
                    case "done":
                        nursery.cancel_scope.cancel()
                        return RunReport(
                            tokens=event["tokens"],
                            prompt_tokens=event["prompt_tokens"],
                            seconds_first=first,
                            seconds=time.monotonic() - started,
                            rate=event["tokens_per_second"],
                            finish=event.get("finish", "stop"),
                        )
                    case "error":
                        nursery.cancel_scope.cancel()
                        raise ModelRefused(event["message"], cure=event.get("cure", ""))
                    case _:
                        continue
            nursery.cancel_scope.cancel()
        code = await rank.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise TbshareError(
            f"the process that runs the model ended before its answer ({name})", cure="tbshare run again"
        )


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    buffer = b""
    async for data in stream:
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            yield line


async def _drain(stream: trio.abc.ReceiveStream) -> None:
    async for data in stream:
        sys.stderr.write(data.decode("utf-8", "replace")[-2000:])


async def _end(rank: trio.Process) -> None:
    """End a rank and all it started: first politely."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGTERM)
    with trio.move_on_after(STOP_SECONDS) as scope:
        await rank.wait()
    if scope.cancelled_caught:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, signal.SIGKILL)
        await rank.wait()
    for stream in (rank.stdin, rank.stdout, rank.stderr):
        if stream is not None:
            await stream.aclose()
