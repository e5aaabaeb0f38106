"""Maps and memory, threads and children, a daemon that ends, a writer that died."""

import fcntl
import io
import mmap
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tbshare.filesystem import TbshareFileSystem
from tbshare.filesystem.reading import MappedReader
from tests.nodes import MIB, Node, running
from tests.volume_nodes import create


def test_a_complete_file_is_a_map_of_the_store(fs: Any, film: str) -> None:
    path, data = f"{film}/a", Random(7).randbytes(3 * MIB)
    fs.pipe_file(path, data)
    with fs.open(path) as file:
        assert isinstance(file, MappedReader)
        assert file.memoryview().obj is file
        assert mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)[:] == data
    fs.pipe_file(path, b"small")
    with fs.open(path) as file, pytest.raises(io.UnsupportedOperation):
        file.fileno()


_READS = """
import sys
from tbshare.filesystem import TbshareFileSystem
fs = TbshareFileSystem(home=sys.argv[1])
def own():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
with fs.open(sys.argv[2]) as file:
    file.read(1 << 20)
    before = most = own()
    while file.read(1 << 20):
        most = max(most, own())
print((most - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel how much memory is a process's own")
def test_reading_much_takes_little_memory(fs: Any, film: str, ada: Node) -> None:
    size = 256 * MIB
    with fs.open(f"{film}/large", "wb") as file:
        for number in range(size // MIB):
            file.write(bytes([number]) * MIB)
    words = [sys.executable, "-c", _READS, str(ada.home), f"{film}/large"]
    grown = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert grown < 32 * MIB


def test_it_travels_to_other_processes_and_threads(fs: Any, film: str) -> None:
    fs.pipe_file(f"{film}/a", b"bytes")
    assert pickle.loads(pickle.dumps(fs)).cat_file(f"{film}/a") == b"bytes"
    assert TbshareFileSystem.from_json(fs.to_json()).cat_file(f"{film}/a") == b"bytes"
    seen: list[bytes] = []

    def work(number: int) -> None:
        own = TbshareFileSystem(home=fs.home)
        own.pipe_file(f"{film}/{number}", b"%d" % number)
        seen.append(own.cat_file(f"{film}/{number}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(b"%d" % number for number in range(20))
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # it never outlives a test that failed
        try:
            fs.pipe_file(f"{film}/child", b"child")
            os._exit(0 if all(fs.cat_file(f"{film}/a") == b"bytes" for _ in range(200)) else 1)
        finally:
            os._exit(2)
    assert all(fs.cat_file(f"{film}/7") == b"7" for _ in range(200)), "while the child asks for another file"
    assert os.waitpid(child, 0)[1] == 0
    assert fs.cat_file(f"{film}/child") == b"child"


def test_the_daemon_may_be_started_again(tmp_path: Path) -> None:
    node = Node(tmp_path / "b", "bert")
    fs = TbshareFileSystem(home=str(node.home))
    with running(node):
        create(node, "film")
        data = Random(8).randbytes(2 * MIB)
        fs.pipe_file("film/a", data)
        left = fs.open("film/left", "wb")
        left.write(b"was open while the daemon was away")
        with fs.open("film/a") as file:
            assert file.read(MIB) == data[:MIB]
            node.stop()
            assert file.read() == data[MIB:], "a reader of bytes that are here notices nothing"
        with pytest.raises(ConnectionRefusedError, match=r"tbshare --home .* up"):
            fs.cat_file("film/a")
        with pytest.raises(ConnectionRefusedError):
            fs.exists("film/a")
        node.start()
        fs.cat_file("film/a")
        node.stop()
        node.start()
        left.close()
        assert fs.cat_file("film/left") == b"was open while the daemon was away"


def test_what_a_dead_writer_left_is_swept(tmp_path: Path) -> None:
    node = Node(tmp_path / "b", "bert")
    dead = node.home / "tmp" / "writer-dead"
    living = node.home / "tmp" / "writer-living"
    for directory in (dead, living):
        directory.mkdir(parents=True)
        (directory / "half").write_bytes(b"half")
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with running(node):
        assert not dead.exists()
        assert (living / "half").exists()
        os.close(descriptor)
        with node.client() as client:
            client.gc()
        assert not living.exists()
