"""What programs expect of names: files, directories, links, renames."""

import errno
import os
import stat
from pathlib import Path

from tests.fuse.system_calls import raises, renamed


class NameCases:
    """Names; part of PosixCases."""

    def test_write_and_read(self, here: Path) -> None:
        (here / "a").write_bytes(b"hello")
        assert (here / "a").read_bytes() == b"hello"
        assert os.listdir(here) == ["a"]
        assert (here / "a").stat().st_size == 5

    def test_what_is_not_there(self, here: Path) -> None:
        with raises(errno.ENOENT):
            os.stat(here / "none")
        with raises(errno.ENOENT):
            os.unlink(here / "none")
        with raises(errno.ENOENT):
            os.mkdir(here / "none" / "below")
        with raises(errno.ENOENT):
            os.rename(here / "none", here / "other")
        (here / "none").write_bytes(b"")  # that it was absent is not remembered
        assert (here / "none").exists()

    def test_exclusive_creation(self, here: Path) -> None:
        os.close(os.open(here / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with raises(errno.EEXIST):
            os.open(here / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with raises(errno.EEXIST):
            os.mkdir(here / "a")
        with raises(errno.EEXIST):
            os.symlink("x", here / "a")

    def test_directories(self, here: Path) -> None:
        (here / "d" / "e").mkdir(parents=True)
        (here / "d" / "f").write_bytes(b"f")
        with raises(errno.ENOTEMPTY):
            os.rmdir(here / "d")
        with raises(errno.ENOTDIR):
            os.rmdir(here / "d" / "f")
        with raises(errno.EISDIR, errno.EPERM):
            os.unlink(here / "d" / "e")
        with raises(errno.ENOTDIR):
            os.stat(here / "d" / "f" / "g")
        with raises(errno.EISDIR):
            os.open(here / "d", os.O_WRONLY)
        os.rmdir(here / "d" / "e")
        os.unlink(here / "d" / "f")
        os.rmdir(here / "d")
        assert os.listdir(here) == []

    def test_a_directory_of_many_names(self, here: Path) -> None:
        names = {f"name {number:05}" for number in range(3000)}
        for name in names:
            os.close(os.open(here / name, os.O_CREAT | os.O_WRONLY))
        assert set(os.listdir(here)) == names
        sizes = {item.name: item.stat().st_size for item in os.scandir(here)}
        assert sizes == dict.fromkeys(names, 0)
        for item in os.scandir(here):  # removed while it is read
            os.unlink(item.path)
        assert os.listdir(here) == []

    def test_rename_replaces(self, here: Path) -> None:
        (here / "a").write_bytes(b"a")
        (here / "b").write_bytes(b"bb")
        with (here / "b").open("rb") as old:
            os.rename(here / "a", here / "b")
            assert old.read() == b"bb"
        assert (here / "b").read_bytes() == b"a"
        assert os.listdir(here) == ["b"]

    def test_rename_of_directories(self, here: Path) -> None:
        for name in ("a/b", "c", "full"):
            (here / name).mkdir(parents=True)
        (here / "full" / "x").write_bytes(b"")
        (here / "file").write_bytes(b"")
        with raises(errno.EINVAL):
            os.rename(here / "a", here / "a" / "b" / "below")
        with raises(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(here / "a", here / "full")
        with raises(errno.ENOTDIR):
            os.rename(here / "a", here / "file")
        with raises(errno.EISDIR):
            os.rename(here / "file", here / "a")
        os.rename(here / "a", here / "c")
        assert sorted(os.listdir(here)) == ["c", "file", "full"]
        assert os.listdir(here / "c") == ["b"]

    def test_rename_without_replacing_and_by_exchange(self, here: Path) -> None:
        (here / "a").write_bytes(b"a")
        (here / "b").write_bytes(b"b")
        assert renamed(here / "a", here / "b", 1) == errno.EEXIST
        assert renamed(here / "a", here / "c", 1) == 0
        assert renamed(here / "c", here / "b", 2) == 0
        assert ((here / "b").read_bytes(), (here / "c").read_bytes()) == (b"a", b"b")
        assert renamed(here / "c", here / "none", 2) == errno.ENOENT

    def test_exchange_of_a_file_and_a_directory(self, here: Path) -> None:
        (here / "file").write_bytes(b"f")
        (here / "directory" / "below").mkdir(parents=True)
        assert renamed(here / "file", here / "directory", 2) == 0
        assert (here / "directory").read_bytes() == b"f"
        assert os.listdir(here / "file") == ["below"]

    def test_hard_links(self, here: Path) -> None:
        (here / "a").write_bytes(b"a")
        os.link(here / "a", here / "b")
        assert (here / "a").stat().st_ino == (here / "b").stat().st_ino
        assert (here / "a").stat().st_nlink == 2
        with raises(errno.EEXIST):
            os.link(here / "a", here / "b")
        os.unlink(here / "a")
        assert (here / "b").stat().st_nlink == 1
        assert (here / "b").read_bytes() == b"a"
        os.mkdir(here / "d")
        with raises(errno.EPERM):
            os.link(here / "d", here / "e")

    def test_symbolic_links(self, here: Path) -> None:
        os.symlink("a", here / "link")
        assert os.readlink(here / "link") == "a"
        assert stat.S_ISLNK(os.lstat(here / "link").st_mode)
        assert os.lstat(here / "link").st_size == 1
        with raises(errno.ENOENT):
            os.stat(here / "link")
        (here / "a").write_bytes(b"through")
        assert (here / "link").read_bytes() == b"through"
        with raises(errno.ELOOP):
            os.open(here / "link", os.O_RDONLY | os.O_NOFOLLOW)
        os.symlink("loop", here / "loop")
        with raises(errno.ELOOP):
            os.stat(here / "loop")
        long = "x" * 1000
        os.symlink(long, here / "long")
        assert os.readlink(here / "long") == long
        os.unlink(here / "link")
        assert (here / "a").exists()

    def test_long_and_strange_names(self, here: Path) -> None:
        names = [
            b"n" * 255,
            b" ",
            b"a\nb",
            b"\\",
            "\u00e9\u4e2d\U0001f600".encode(),
            b"-rf",
            b"~",
            b"a*?[",
            b"...",
        ]
        for name in names:
            descriptor = os.open(os.path.join(os.fsencode(here), name), os.O_CREAT | os.O_WRONLY)
            os.close(descriptor)
        assert sorted(os.listdir(os.fsencode(here))) == sorted(names)
        with raises(errno.ENAMETOOLONG):
            os.open(here / ("n" * 256), os.O_CREAT | os.O_WRONLY)
        with raises(errno.ENAMETOOLONG):
            os.mkdir(here / ("n" * 256))

    def test_deep_paths(self, here: Path) -> None:
        deep = here
        for _ in range(60):
            deep /= "directory"
            deep.mkdir()
        (deep / "file").write_bytes(b"deep")
        assert (deep / "file").read_bytes() == b"deep"
        above = os.open(deep, os.O_RDONLY)
        os.rename(here / "directory", here / "moved")
        descriptor = os.open("file", os.O_RDONLY, dir_fd=above)
        assert os.read(descriptor, 9) == b"deep"
        os.close(descriptor)
        os.close(above)

    def test_unlinked_while_open(self, here: Path) -> None:
        with (here / "a").open("w+b") as file:
            file.write(b"still here")
            file.flush()
            os.unlink(here / "a")
            assert os.listdir(here) == []
            assert os.fstat(file.fileno()).st_nlink == 0
            file.seek(0)
            assert file.read() == b"still here"
            file.write(b", and more")
            file.flush()
            os.ftruncate(file.fileno(), 5)
            file.seek(0)
            assert file.read() == b"still"
            (here / "a").write_bytes(b"another")
            file.seek(0)
            assert file.read() == b"still"
        assert (here / "a").read_bytes() == b"another"
