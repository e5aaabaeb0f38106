"""What programs expect of bytes and attributes."""

import errno
import mmap
import os
import stat
from pathlib import Path
from random import Random

from tests.fuse.system_calls import fallocated, raises


class ByteCases:
    """Reading, writing, mapping; modes, times, extended attributes. Part of PosixCases."""

    lacks: frozenset[str] = frozenset()

    def test_bytes_anywhere(self, here: Path) -> None:
        random = Random(4)
        expected = bytearray()
        descriptor = os.open(here / "a", os.O_CREAT | os.O_RDWR)
        for _ in range(200):
            offset, data = random.randrange(300_000), random.randbytes(random.randrange(1, 40_000))
            assert os.pwrite(descriptor, data, offset) == len(data)
            expected.extend(bytes(max(0, offset + len(data) - len(expected))))
            expected[offset : offset + len(data)] = data
            place, size = random.randrange(350_000), random.randrange(60_000)
            assert os.pread(descriptor, size, place) == expected[place : place + size]
        os.close(descriptor)
        assert (here / "a").read_bytes() == expected

    def test_large_writes_and_reads(self, here: Path) -> None:
        data = Random(5).randbytes(5_000_001)
        (here / "a").write_bytes(data)
        assert (here / "a").read_bytes() == data

    def test_truncation(self, here: Path) -> None:
        path = here / "a"
        path.write_bytes(b"x" * 10_000)
        os.truncate(path, 5)
        assert path.read_bytes() == b"xxxxx"
        os.truncate(path, 9000)
        assert path.read_bytes() == b"xxxxx" + bytes(8995)
        path.write_bytes(b"new")  # O_TRUNC
        assert path.read_bytes() == b"new"
        with path.open("r+b") as file:
            os.ftruncate(file.fileno(), 1)
            assert os.fstat(file.fileno()).st_size == 1

    def test_append_from_two_descriptors(self, here: Path) -> None:
        first = os.open(here / "a", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        second = os.open(here / "a", os.O_WRONLY | os.O_APPEND)
        for number in range(20):
            os.write(first if number % 2 else second, b"%02d" % number)
        os.close(first)
        os.close(second)
        assert (here / "a").read_bytes() == b"".join(b"%02d" % number for number in range(20))

    def test_sparse_files(self, here: Path) -> None:
        descriptor = os.open(here / "a", os.O_CREAT | os.O_RDWR)
        os.pwrite(descriptor, b"end", 50 << 20)
        os.fsync(descriptor)
        assert os.fstat(descriptor).st_size == (50 << 20) + 3
        assert os.fstat(descriptor).st_blocks * 512 < 10 << 20
        assert os.pread(descriptor, 4096, 10 << 20) == bytes(4096)
        os.close(descriptor)

    def test_holes_are_found(self, here: Path) -> None:
        descriptor = os.open(here / "a", os.O_CREAT | os.O_RDWR)
        os.pwrite(descriptor, b"x" * 65536, 1 << 20)
        os.fsync(descriptor)
        if "lseek" in self.lacks:  # the whole file is data then
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        else:
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == 1 << 20
            assert os.lseek(descriptor, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 65536
        with raises(errno.ENXIO):
            os.lseek(descriptor, 2 << 20, os.SEEK_DATA)
        os.close(descriptor)

    def test_reserving_and_punching(self, here: Path) -> None:
        descriptor = os.open(here / "a", os.O_CREAT | os.O_RDWR)
        os.write(descriptor, b"x" * 100_000)
        if "fallocate" in self.lacks:
            assert fallocated(descriptor, 0, 0, 4096) == errno.EOPNOTSUPP
        else:
            assert fallocated(descriptor, 0, 0, 1 << 20) == 0
            assert os.fstat(descriptor).st_size == 1 << 20
            assert fallocated(descriptor, 3, 8192, 8192) == 0  # PUNCH_HOLE, KEEP_SIZE
            assert os.pread(descriptor, 24576, 0) == b"x" * 8192 + bytes(8192) + b"x" * 8192
            assert fallocated(descriptor, 1, 2 << 20, 4096) == 0  # KEEP_SIZE
            assert os.fstat(descriptor).st_size == 1 << 20
        os.close(descriptor)

    def test_copy_within(self, here: Path) -> None:
        data = Random(6).randbytes(300_000)
        (here / "a").write_bytes(data)
        source, target = os.open(here / "a", os.O_RDONLY), os.open(here / "b", os.O_CREAT | os.O_RDWR)
        done = 0
        while copied := os.copy_file_range(source, target, len(data) - done, done, done + 7):
            done += copied
        assert os.pread(target, 400_000, 0) == bytes(7) + data
        os.close(source)
        os.close(target)

    def test_maps(self, here: Path) -> None:
        (here / "a").write_bytes(bytes(100_000))
        with (here / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[50_000:50_005] = b"there"
            mapped.flush()
            assert os.pread(file.fileno(), 5, 50_000) == b"there"
            os.pwrite(file.fileno(), b"again", 60_000)
            assert mapped[60_000:60_005] == b"again"
            mapped[70_000:70_005] = b"later"
        data = (here / "a").read_bytes()
        assert (data[50_000:50_005], data[60_000:60_005], data[70_000:70_005]) == (b"there", b"again", b"later")

    def test_a_map_of_an_unlinked_file(self, here: Path) -> None:
        (here / "a").write_bytes(b"x" * 10_000)
        with (here / "a").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        os.unlink(here / "a")
        assert mapped[9_990:] == b"x" * 10
        mapped.close()

    def test_what_one_writes_another_reads(self, here: Path) -> None:
        writer = os.open(here / "a", os.O_CREAT | os.O_WRONLY)
        reader = os.open(here / "a", os.O_RDONLY)
        for number in range(20):
            os.write(writer, b"line %d\n" % number)
            assert os.read(reader, 100) == b"line %d\n" % number
        os.close(writer)
        os.close(reader)

    def test_sync(self, here: Path) -> None:
        descriptor = os.open(here / "a", os.O_CREAT | os.O_RDWR)
        os.write(descriptor, b"x")
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.close(descriptor)
        directory = os.open(here, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    # --- attributes -------------------------------------------------------------------------------------------

    def test_modes(self, here: Path) -> None:
        (here / "a").write_bytes(b"")
        for mode in (0o600, 0o755, 0o444):
            os.chmod(here / "a", mode)
            assert stat.S_IMODE((here / "a").stat().st_mode) == mode
        os.mkdir(here / "d", 0o700)
        assert (here / "d").stat().st_mode == stat.S_IFDIR | 0o700
        before = os.umask(0o027)
        try:
            os.close(os.open(here / "b", os.O_CREAT | os.O_WRONLY, 0o666))
        finally:
            os.umask(before)
        assert stat.S_IMODE((here / "b").stat().st_mode) == 0o640

    def test_times(self, here: Path) -> None:
        path = here / "a"
        path.write_bytes(b"")
        os.utime(path, ns=(1_500_000_000_123_456_789, 1_600_000_000_987_654_321))
        shown = path.stat()
        assert (shown.st_atime_ns, shown.st_mtime_ns) == (1_500_000_000_123_456_789, 1_600_000_000_987_654_321)
        os.utime(path, ns=(0, 0))
        assert path.stat().st_mtime_ns == 0
        os.utime(path)
        assert path.stat().st_mtime > 1_700_000_000
        os.utime(path, ns=(5, 6))
        with path.open("ab") as file:
            file.write(b"x")
        assert path.stat().st_mtime > 1_700_000_000
        os.utime(here, ns=(7, 8))
        assert here.stat().st_mtime_ns == 8
        (here / "b").write_bytes(b"")
        assert here.stat().st_mtime > 1_700_000_000

    def test_extended_attributes(self, here: Path) -> None:
        path = here / "a"
        path.write_bytes(b"")
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", b"\0" * 3000)
        os.setxattr(path, "user.none", b"")
        assert os.getxattr(path, "user.one") == b"1"
        assert os.getxattr(path, "user.two") == b"\0" * 3000
        assert os.getxattr(path, "user.none") == b""
        assert {"user.one", "user.two", "user.none"} <= set(os.listxattr(path))
        with raises(errno.EEXIST):
            os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
        with raises(errno.ENODATA):
            os.setxattr(path, "user.new", b"2", os.XATTR_REPLACE)
        os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
        os.removexattr(path, "user.two")
        assert os.getxattr(path, "user.one") == b"2"
        with raises(errno.ENODATA):
            os.getxattr(path, "user.two")
        with raises(errno.ENODATA):
            os.removexattr(path, "user.two")
        os.setxattr(here, "user.directory", b"d")
        assert os.getxattr(here, "user.directory") == b"d"

    def test_room(self, here: Path) -> None:
        room = os.statvfs(here)
        assert room.f_namemax == 255
        assert 0 < room.f_bavail <= room.f_bfree <= room.f_blocks
        assert room.f_frsize > 0
