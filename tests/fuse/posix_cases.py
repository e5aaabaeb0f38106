"""What programs expect of a file system, case by case: a class to inherit where there is a mount.

Each case gets `here`, an empty directory in the mount. What a front cannot do is in `lacks`, a set of names of
`Capabilities`: those cases then show how it is refused.
"""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

from tests.fuse.mounts import another, said, tell
from tests.fuse.posix_bytes import ByteCases
from tests.fuse.posix_names import NameCases
from tests.fuse.system_calls import as_nobody, raises

__all__ = ["OwnershipCases", "PosixCases", "raises"]


class PosixCases(NameCases, ByteCases):
    """Names, bytes, attributes, locks."""

    # --- locks ------------------------------------------------------------------------------------------------

    def test_flock_between_processes(self, here: Path) -> None:
        with (here / "a").open("w") as file, another(_FLOCK, here / "a") as other:
            assert said(other) == "locked"
            with raises(errno.EAGAIN):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with raises(errno.EAGAIN):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            tell(other)
            assert said(other) == "given back"
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tell(other)
            assert said(other) == "waits"
            fcntl.flock(file, fcntl.LOCK_UN)
            assert said(other) == "has it"

    def test_ranges_between_processes(self, here: Path) -> None:
        (here / "a").write_bytes(b"x" * 100)
        with (here / "a").open("r+b") as file, another(_RANGE, here / "a") as other:
            assert said(other) == "locked"
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 20)
            with raises(errno.EAGAIN, errno.EACCES):
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 19)
            tell(other)  # it dies: its locks end
            other.wait()
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 19)

    def test_a_lock_ends_with_its_process(self, here: Path) -> None:
        with (here / "a").open("w") as file, another(_FLOCK, here / "a") as other:
            assert said(other) == "locked"
            other.kill()
            other.wait()
            fcntl.flock(file, fcntl.LOCK_EX)

    # --- programs ---------------------------------------------------------------------------------------------

    def test_copied_and_archived_by_programs(self, here: Path) -> None:
        (here / "tree" / "d").mkdir(parents=True)
        (here / "tree" / "d" / "f").write_bytes(b"f" * 70_000)
        os.symlink("d/f", here / "tree" / "link")
        subprocess.run(["cp", "-a", "tree", "copy"], cwd=here, check=True)
        subprocess.run(["diff", "-r", "tree", "copy"], cwd=here, check=True)
        subprocess.run(["tar", "cf", "tree.tar", "tree"], cwd=here, check=True)
        (here / "out").mkdir()
        subprocess.run(["tar", "xf", "../tree.tar"], cwd=here / "out", check=True)
        subprocess.run(["diff", "-r", "tree", "out/tree"], cwd=here, check=True)
        subprocess.run(["rm", "-r", "tree", "copy", "out"], cwd=here, check=True)

    def test_sqlite(self, here: Path) -> None:
        done = subprocess.run([sys.executable, "-c", _SQLITE, here], capture_output=True, text=True, check=False)
        assert (done.stdout.split(), done.stderr) == (["ok", "400", "ok", "400"], "")


class OwnershipCases:
    """Owners and set-user-ID, where the mount keeps real owners; needs root and allow_other."""

    def test_owners(self, here: Path) -> None:
        (here / "a").write_bytes(b"")
        os.chown(here / "a", 1234, 2345)
        assert ((here / "a").stat().st_uid, (here / "a").stat().st_gid) == (1234, 2345)
        os.symlink("a", here / "link")
        os.lchown(here / "link", 7, 8)
        assert os.lstat(here / "link").st_uid == 7
        assert (here / "a").stat().st_uid == 1234

    def test_set_user_id_ends_with_a_new_owner(self, here: Path) -> None:
        (here / "a").write_bytes(b"")
        os.chmod(here / "a", 0o6755)
        assert stat.S_IMODE((here / "a").stat().st_mode) == 0o6755
        os.chown(here / "a", 1234, 2345)
        assert stat.S_IMODE((here / "a").stat().st_mode) == 0o755

    def test_set_user_id_ends_when_another_writes(self, here: Path) -> None:
        for name, change in (("a", "os.write(file, b'x')"), ("b", "os.ftruncate(file, 1)")):
            (here / name).write_bytes(b"xxx")
            os.chmod(here / name, 0o6777)
            os.chmod(here, 0o755)
            script = f"import os,sys; file = os.open(sys.argv[1], os.O_WRONLY); {change}"
            assert as_nobody(script, here / name) == ""
            assert stat.S_IMODE((here / name).stat().st_mode) == 0o777

    def test_the_modes_hold_for_others(self, here: Path) -> None:
        (here / "a").write_bytes(b"secret")
        os.chmod(here / "a", 0o600)
        os.chmod(here, 0o755)
        assert "PermissionError" in as_nobody("import sys; open(sys.argv[1]).read()", here / "a")

    def test_special_files(self, here: Path) -> None:
        os.mkfifo(here / "pipe")
        assert stat.S_ISFIFO((here / "pipe").stat().st_mode)


_FLOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
input()
fcntl.flock(file, fcntl.LOCK_UN)
print("given back", flush=True)
input()
try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("waits", flush=True)
fcntl.flock(file, fcntl.LOCK_EX)
print("has it", flush=True)
"""
_RANGE = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 10, 10)
print("locked", flush=True)
input()
"""
_SQLITE = """
import sqlite3, sys
for mode in ("delete", "wal"):
    database = sqlite3.connect(f"{sys.argv[1]}/{mode}.db", isolation_level=None)
    database.execute(f"pragma journal_mode={mode}").fetchone()
    database.execute("create table t (a integer primary key, b blob)")
    for number in range(400):
        database.execute("insert into t values (?, ?)", (number, b"x" * number))
    for question in ("pragma integrity_check", "select count(*) from t"):
        print(database.execute(question).fetchone()[0])
    database.close()
"""
