"""One lane over loopback, two processes, against a bare copy and rsync.

    python -m bench.lane [--size GiB] [--runs N] [--warm GiB] [--scratch DIR]

The source is a random file in the page cache, the destination a new file, allocated before it is filled. *bare*
is the least a verified copy can do: sendfile, receive into one buffer, BLAKE3, write, one thread each side, no
headers and no leaves. *rsync* takes the whole file from a daemon. All run at the niceness of a lane's threads, so
that whatever else the machine does weighs on each alike.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from blake3 import blake3

from bench.measuring import (
    GIB,
    Demand,
    Usage,
    add_options,
    make_random_file,
    median_of,
    print_table,
    print_verdict,
    run_forked,
    scratch_directory,
    take_turns,
)
from tbshare.content.block import BLOCK_BYTES, BlockId, block_id
from tbshare.transport.lane import NICE, connect_lane
from tbshare.transport.lane_receive import FileWrite, ReceiveLane
from tbshare.transport.lane_send import QUEUE_ITEMS_MAX, SendLane
from tbshare.transport.link import Item, Target
from tbshare.transport.pool import BufferPool, make_buffer
from tbshare.wire.lane import GREETING_BYTES, TOKEN_BYTES, Tokens

LANE = 1


@contextlib.contextmanager
def new_file(path: Path, size: int) -> Generator[int]:
    """Yield the descriptor of a new file with room for `size` bytes."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        yield fd
    finally:
        os.close(fd)


class Bench:
    """The source, its blocks, and the contenders."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        self.source = directory / "module" / "source"
        self.destination = directory / "destination"
        self.source.parent.mkdir()
        make_random_file(self.source, size)
        self.blocks = self._blocks()

    def _blocks(self) -> list[tuple[int, int, BlockId]]:
        with self.source.open("rb") as file:
            blocks: list[tuple[int, int, BlockId]] = []
            while data := file.read(BLOCK_BYTES):
                blocks.append((len(blocks) * BLOCK_BYTES, len(data), block_id(data)))
            return blocks

    def two_processes(
        self, send: Callable[[socket.socket], None], receive: Callable[[tuple[str, int], int], None]
    ) -> Usage:
        """Run `send(listener)` and `receive(address, new file)` in a process each."""

        def send_nicely() -> None:
            os.nice(NICE)
            send(listener)

        def receive_into_file() -> None:
            os.nice(NICE)
            with new_file(self.destination, self.size) as fd:
                receive(address, fd)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            wall, cpu = run_forked([send_nicely, receive_into_file])
        self.check()
        return Usage(self.size, wall, cpu)

    def check(self) -> None:
        """See that the first and last block arrived, then remove the destination."""
        with self.destination.open("rb") as file:
            for offset, length, name in (self.blocks[0], self.blocks[-1]):
                if block_id(os.pread(file.fileno(), length, offset)) != name:
                    raise SystemExit(f"the block at {offset} did not arrive")
        self.destination.unlink()

    def bare(self) -> Usage:
        """Send, receive, hash and write, and nothing else."""
        return self.two_processes(self._bare_send, self._bare_receive)

    def _bare_send(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, self.source.open("rb") as file:
            offset = 0
            while offset < self.size:
                offset += os.sendfile(connection.fileno(), file.fileno(), offset, BLOCK_BYTES)

    def _bare_receive(self, address: tuple[str, int], fd: int) -> None:
        buffer = make_buffer()
        with socket.create_connection(address) as connection:
            connection.settimeout(None)
            for offset, length, _ in self.blocks:
                view = buffer[:length]
                got = 0
                while got < length:
                    got += connection.recv_into(view[got:], 0, socket.MSG_WAITALL)
                blake3(view).digest()
                FileWrite(fd, offset)(view)

    def lane(self, *, sealed: bool) -> Usage:
        """Move the file over a lane."""
        token, key = os.urandom(TOKEN_BYTES), os.urandom(32) if sealed else b""
        return self.two_processes(
            lambda listener: self._lane_send(listener, token, key),
            lambda address, fd: self._lane_receive(address, fd, token, key),
        )

    def _lane_send(self, listener: socket.socket, token: bytes, key: bytes) -> None:
        tokens = Tokens()
        tokens.issue(LANE, token)
        connection, _ = listener.accept()
        tokens.redeem(connection.recv(GREETING_BYTES, socket.MSG_WAITALL))
        room = threading.Semaphore(QUEUE_ITEMS_MAX)
        with self.source.open("rb") as file:
            end = _Provider()
            lane = SendLane(connection, end, key=key)
            for request, (offset, length, _) in enumerate(self.blocks):
                room.acquire()
                lane.submit([Item(request, file.fileno(), offset, length, room.release)])
            lane.finish()
            lane.join()
        if end.error is not None:
            raise end.error

    def _lane_receive(self, address: tuple[str, int], fd: int, token: bytes, key: bytes) -> None:
        sink = _Fetcher(self.blocks, fd)
        lane = ReceiveLane(connect_lane(address, LANE, token), sink, BufferPool(), key=key)
        lane.join()
        if sink.error is not None:
            raise sink.error
        if sink.left:
            raise SystemExit(f"{sink.left} blocks did not arrive")

    def rsync(self) -> Usage:
        """Take the file from an rsync daemon."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = self.directory / "rsyncd.conf"
        config.write_text(f"use chroot = no\n[module]\npath = {self.source.parent}\nread only = yes\n")
        command = ["nice", f"-{NICE}", "rsync", "--daemon", "--no-detach", f"--port={port}", f"--config={config}"]
        daemon = subprocess.Popen(command)
        _wait_for_port(port)
        source = f"rsync://127.0.0.1:{port}/module/source"
        fetch = ["nice", f"-{NICE}", "rsync", "-a", "--whole-file", source, str(self.destination)]
        started = time.perf_counter()
        client = subprocess.Popen(fetch)
        _, status, client_used = os.wait4(client.pid, 0)
        wall = time.perf_counter() - started
        client.returncode = status
        daemon.terminate()
        _, _, daemon_used = os.wait4(daemon.pid, 0)
        daemon.returncode = 0
        if status:
            raise SystemExit(f"rsync failed ({status})")
        self.check()
        cpu = sum(used.ru_utime + used.ru_stime for used in (client_used, daemon_used))
        return Usage(self.size, wall, cpu)


class _Provider:
    error: BaseException | None = None

    def refused(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        self.error = error


class _Fetcher:
    def __init__(self, blocks: Sequence[tuple[int, int, BlockId]], fd: int) -> None:
        self.left = len(blocks)
        self.error: BaseException | None = None
        self._blocks = blocks
        self._fd = fd

    def target(self, request: int) -> Target:
        offset, length, name = self._blocks[request]
        return Target(name, length, FileWrite(self._fd, offset))

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        self.left -= len(blocks)

    def failed(self, request: int, error: OSError) -> None:
        raise error

    def ended(self, error: BaseException | None) -> None:
        self.error = error


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser, size_gib=2)
    parser.add_argument("--only", nargs="*", help="contenders to run")
    options = parser.parse_args()
    with scratch_directory(options.scratch) as directory:
        bench = Bench(directory, int(options.size * GIB))
        contenders: dict[str, Callable[[], Usage]] = {
            "bare": bench.bare,
            "lane": lambda: bench.lane(sealed=False),
            "sealed": lambda: bench.lane(sealed=True),
        }
        if shutil.which("rsync"):
            contenders["rsync"] = bench.rsync
        else:
            print("rsync is not installed: skipped (apt-get install rsync)")
        if options.only:
            contenders = {name: run for name, run in contenders.items() if name in options.only}
        results = take_turns(contenders, options.runs, warm_gib=options.warm)
    medians = {name: median_of(usages) for name, usages in results.items()}
    print_table(medians, ["bare", "rsync"])
    demands: list[Demand] = []
    if (lane := medians.get("lane")) is not None:
        demands.append(Demand("lane, CPU s/GB", lane.cpu_seconds_per_gb, 1.0))
        if (rsync := medians.get("rsync")) is not None:
            ratio = lane.cpu_seconds_per_gb / rsync.cpu_seconds_per_gb
            demands.append(Demand("lane, CPU as a multiple of rsync's", ratio, 0.8))
            speed = lane.gb_per_second / rsync.gb_per_second
            demands.append(Demand("lane, speed as a multiple of rsync's", speed, 1.25, at_most=False))
        if (bare := medians.get("bare")) is not None:
            speed = lane.gb_per_second / bare.gb_per_second
            demands.append(Demand("lane, speed as a multiple of the bare copy's", speed, 0.85, at_most=False))
    if (sealed := medians.get("sealed")) is not None:
        demands.append(Demand("sealed lane, CPU s/GB", sealed.cpu_seconds_per_gb, 1.5))
        demands.append(Demand("sealed lane, GB/s", sealed.gb_per_second, 1.0, at_most=False))
    return 0 if print_verdict("lane", demands, medians) else 1


if __name__ == "__main__":
    sys.exit(main())
