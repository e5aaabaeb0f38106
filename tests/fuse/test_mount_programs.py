"""Programs that people run, on a mount: what they do to it is there afterwards, as on any disk."""

import contextlib
import fcntl
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.disks import sharing_disk
from tests.fuse.mounts import another, said, tell
from tests.fuse.volume_mounts import VolumeMount, mounted, settled
from tests.nodes import MIB, Node, running, until
from tests.staged import left, versions
from tests.volume_nodes import create, read

pytestmark = pytest.mark.mount
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0")
STRESSORS = [
    "hdd",
    "dentry",
    "rename",
    "fallocate",
    "link",
    "xattr",
    "chmod",
    "utime",
    "symlink",
    "filename",
    "dir",
    "flock",
    "lockf",
    "seek",
    "copy-file",
    "mknod",
    "getdent",
    "fpunch",
    "chdir",
    "chown",
    "fcntl",
    "iomix",
    "revio",
    "sendfile",
    "touch",
    "fsize",
]


@pytest.fixture(scope="module", params=["plain", "sharing"])
def mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[VolumeMount]:
    """A mount of a volume whose node's disk can share blocks, or cannot."""
    folder = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:
        disk = folder if request.param == "plain" else stack.enter_context(sharing_disk(folder, 3000))
        node = Node(disk / "home", "studio")
        stack.enter_context(running(node))
        create(node, "film")
        yield stack.enter_context(mounted(node, folder / "mount", "film"))


@pytest.fixture
def here(mount: VolumeMount, request: pytest.FixtureRequest) -> Path:
    """An empty directory in the mount."""
    path = mount.path / str(request.node.originalname)  # pyright: ignore[reportUnknownMemberType]
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return settled(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a plain disk with what directories have: times, modes, links, holes, extended attributes."""
    path, random = tmp_path_factory.mktemp("tree") / "tree", Random(4)
    for number in range(60):
        file = path / f"d{number % 6}" / f"f{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.randbytes(number * 97))
        os.utime(file, ns=(10**18 + number, 10**18 + number))
    (path / "big").write_bytes(random.randbytes(5 * MIB))
    (path / "link").symlink_to("d1/f1")
    (path / "hard").hardlink_to(path / "d1" / "f1")
    (path / "d2" / "f2").chmod(0o4750)
    with (path / "sparse").open("wb") as sparse:
        sparse.truncate(30 * MIB)
        sparse.seek(10 * MIB)
        sparse.write(b"island")
    os.setxattr(path / "d3" / "f3", "user.colour", b"red")
    for number in range(6):  # rsync sees no difference within one second
        os.utime(path / f"d{number}", ns=(10**18 + number, 10**18 + number))
    return path


def needs(program: str) -> None:
    """Skip a test where a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def run(*command: str | Path, timeout: float = 100, cwd: Path | None = None) -> str:
    """Run a program; return what it printed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        errors="replace",
        cwd=cwd,
    )
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}{done.stdout[-3000:]}"
    return str(done.stdout)


def all_saved(mount: VolumeMount) -> None:
    """Wait until all that was closed is in the volume."""
    until("everything is saved", lambda: left(mount.node) == [])


def facts(top: Path) -> dict[str, tuple[object, ...]]:
    """Return what is to be the same after a copy that keeps everything."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: object = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        time_ns = None if path.is_symlink() else status.st_mtime_ns
        xattrs = [] if path.is_symlink() else [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
        links = status.st_nlink if path.is_file() else 0
        found[str(path.relative_to(top))] = (status.st_mode, content, time_ns, xattrs, links)
    return found


# copying ---------------------------------------------------------------------------------------------------------


def test_rsync_into_it_and_out_of_it(here: Path, tree: Path, tmp_path: Path) -> None:
    needs("rsync")
    words = ("rsync", "-aHX", "--delete", "--itemize-changes")
    run(*words, f"{tree}/", f"{here}/copy/")
    assert facts(here / "copy") == facts(tree)
    assert run(*words, "--dry-run", f"{tree}/", f"{here}/copy/") == ""  # nothing is left to do
    (here / "copy" / "d1" / "f7").write_bytes(b"changed")
    (here / "copy" / "new").write_bytes(b"not there")
    assert len(run(*words, "--inplace", f"{tree}/", f"{here}/copy/").splitlines()) >= 2
    run(*words, f"{here}/copy/", f"{tmp_path}/back/")
    assert facts(tmp_path / "back") == facts(tree)


def test_tar(here: Path, tree: Path) -> None:
    run("tar", "--xattrs", "-C", tree.parent, "-cf", here / "a.tar", tree.name)
    (here / "out").mkdir()
    run("tar", "--xattrs", "-C", here / "out", "-xpf", here / "a.tar")
    assert facts(here / "out" / tree.name) == facts(tree)
    run("tar", "-C", here / "out", "-df", here / "a.tar")


def test_cp_and_mv(mount: VolumeMount, here: Path, tree: Path, tmp_path: Path) -> None:
    run("cp", "-a", "--reflink=auto", tree, here / "a")
    assert facts(here / "a") == facts(tree)
    run("cp", "-a", "--reflink=auto", here / "a", here / "b")
    assert facts(here / "b") == facts(tree)
    run("mv", here / "b" / "d1", here / "b" / "d2")  # into the other
    run("mv", here / "b" / "big", here / "b" / "d2" / "d1")
    assert (here / "b" / "d2" / "d1" / "big").read_bytes() == (tree / "big").read_bytes()
    run("mv", here / "a", tmp_path / "out")  # to another disk, and back
    assert not (here / "a").exists()
    run("mv", tmp_path / "out", here / "a")
    assert facts(here / "a") == facts(tree)
    with (here / "a" / "sparse").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) <= 10 * MIB
    all_saved(mount)
    assert read(mount.node, f"film:/{here.name}/a/d5/f59") == (tree / "d5" / "f59").read_bytes()
    run("rm", "-r", here / "a", here / "b")
    assert os.listdir(here) == []


# editors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["no", "yes"])
def test_vim_saves(here: Path, way: str) -> None:
    """backupcopy=no renames the old file away and writes a new one; yes copies it and writes in place."""
    needs("vim")
    path = here / "text"
    path.write_text("one\n")
    path.chmod(0o640)
    os.setxattr(path, "user.k", b"v")
    settings = f"set backup backupskip= backupcopy={way} swapfile undofile directory={here} undodir={here}"
    for word in ("two", "three"):
        run("vim", "-es", "-N", "-u", "NONE", "-c", settings, "-c", f"normal Go{word}", "-c", "wq", path)
    assert path.read_text() == "one\ntwo\nthree\n"
    assert (here / "text~").read_text() == "one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_safe_save_keeps_the_history(mount: VolumeMount, here: Path) -> None:
    """A temporary file that takes the place of the old one is a version of it, not another file."""
    path = here / "text"
    path.write_text("0")
    for count in range(1, 6):
        temporary = here / f".text.{count}"
        with temporary.open("w") as file:
            file.write(str(count))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    run("sed", "-i", "s/5/five/", path)
    assert path.read_text() == "five"
    all_saved(mount)
    assert versions(mount.node, f"film:/{here.name}/text") == 7
    assert os.listdir(here) == ["text"]


def test_a_log_is_followed(here: Path) -> None:
    path = here / "log"
    path.write_text("first\n")
    with subprocess.Popen(["tail", "-n", "+1", "-f", path], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        try:
            assert follower.stdout.readline() == "first\n"
            for number in range(3):
                with path.open("a") as file:
                    file.write(f"line {number}\n")
                assert follower.stdout.readline() == f"line {number}\n"
        finally:
            follower.kill()


# several processes -----------------------------------------------------------------------------------------------

FLOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
file.seek(0)
file.write("from the other")
file.flush()
fcntl.flock(file, fcntl.LOCK_UN)
sys.stdin.readline()
"""


def test_flock_between_two_processes(here: Path) -> None:
    path = here / "a"
    path.write_text("x")
    with another(FLOCK, path) as process, path.open("r+") as file:
        assert said(process) == "locked"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tell(process)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert file.read() == "from the other"
        tell(process)


MAP = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    data = mmap.mmap(file.fileno(), 0)
    print(data[:5].decode(), flush=True)
    sys.stdin.readline()
    print(data[:5].decode(), flush=True)
    data[-3:] = b"end"
    data.flush()
    print("written", flush=True)
"""


def test_two_processes_share_a_map(here: Path) -> None:
    path = here / "a"
    path.write_bytes(bytes(3 * MIB))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"first"
        with another(MAP, path) as process:
            assert said(process) == "first"
            mapped[:5] = b"again"
            tell(process)
            assert said(process) == "again"
            assert said(process) == "written"
            assert mapped[-3:] == b"end"
    data = path.read_bytes()
    assert (data[:5], data[-3:], len(data)) == (b"again", b"end", 3 * MIB)


ADDER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for number in range(int(sys.argv[2])):
    database.execute("BEGIN IMMEDIATE")
    (count,) = database.execute("SELECT count(*) FROM t").fetchone()
    database.execute("INSERT INTO t VALUES (?, zeroblob(1000))", (count,))
    database.execute("COMMIT")
print("done", flush=True)
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "wal"])
def test_two_processes_write_one_database(mount: VolumeMount, here: Path, journal: str) -> None:
    path = here / f"{journal}.db"
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
        assert database.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, y BLOB)")  # one number twice: an error
        with another(ADDER, path, 25) as one, another(ADDER, path, 25) as two:
            assert (said(one), said(two)) == ("done", "done")
        assert database.execute("SELECT count(*), max(n) FROM t").fetchone() == (50, 49)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    all_saved(mount)
    assert sorted(os.listdir(here)) == [path.name]


SIGNALLED = """
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
os.chdir(sys.argv[1])
for number in range(100):
    os.mkdir(f"d{number}")
    descriptor = os.open(f"d{number}/t", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x")
    os.fsync(descriptor)
    os.close(descriptor)
    os.link(f"d{number}/t", f"d{number}/u")
    os.rename(f"d{number}/t", "all")
    os.unlink(f"d{number}/u")
    os.rmdir(f"d{number}")
print("done", flush=True)
"""


def test_a_signal_that_is_caught_makes_nothing_fail(here: Path) -> None:
    """git and many others have a timer; no disk answers EINTR to mkdir."""
    with another(SIGNALLED, here) as process:
        assert said(process) == "done"
    assert os.listdir(here) == ["all"]


def test_git_from_clone_to_collection(here: Path, tmp_path: Path) -> None:
    source, clone = tmp_path / "source", here / "clone"
    run("git", "init", "-q", "-b", "main", source)
    for commit in range(3):
        for number in range(20):
            (source / f"f{number}").write_bytes(Random(commit * 100 + number).randbytes(number * 200))
        run("git", "-C", source, "add", ".")
        run("git", "-C", source, *IDENTITY, "commit", "-qm", str(commit))
    run("git", "clone", "-q", "--no-hardlinks", source, clone)
    run("git", "clone", "-q", clone, here / "second")  # hard links within the mount
    assert run("git", "-C", clone, "status", "--short") == ""
    run("git", "-C", clone, "checkout", "-qb", "branch", "HEAD~2")
    (clone / "f3").write_bytes(b"changed")
    run("git", "-C", clone, *IDENTITY, "stash")
    run("git", "-C", clone, *IDENTITY, "stash", "pop")
    run("git", "-C", clone, *IDENTITY, "commit", "-qam", "three")
    run("git", "-C", clone, *IDENTITY, "merge", "-q", "-s", "ours", "main")
    run("git", "-C", clone, "worktree", "add", "-q", here / "tree", "main")
    for directory in (clone, here / "second"):
        run("git", "-C", directory, *IDENTITY, "gc", "-q", "--prune=now")
        run("git", "-C", directory, "fsck", "--strict", "--full")
    assert (here / "tree" / "f19").read_bytes() == (source / "f19").read_bytes()
    assert run("git", "-C", here / "tree", "status", "--short") == ""


# film ------------------------------------------------------------------------------------------------------------


def test_ffmpeg(mount: VolumeMount, here: Path) -> None:
    needs("ffmpeg")
    quiet = ("ffmpeg", "-loglevel", "error", "-nostdin")
    picture = ("-f", "lavfi", "-i", "testsrc=duration=3:size=320x180:rate=25")
    sound = ("-f", "lavfi", "-i", "sine=duration=3")
    # faststart: what was written is read again, moved within the file and its head written over
    run(*quiet, *picture, *sound, "-c:v", "mpeg4", "-c:a", "aac", "-movflags", "+faststart", here / "a.mp4")
    run(*quiet, "-i", here / "a.mp4", "-c", "copy", here / "b.mkv")
    run(*quiet, "-i", here / "b.mkv", "-c", "copy", "-f", "hls", here / "list.m3u8")
    frames = [run(*quiet, "-i", here / name, "-f", "framemd5", "-an", "-") for name in ("a.mp4", "b.mkv")]
    assert [line.split(",")[-1] for line in frames[0].splitlines()[-75:]] == [
        line.split(",")[-1] for line in frames[1].splitlines()[-75:]
    ]
    run(*quiet, "-ss", "2", "-i", here / "a.mp4", "-f", "null", "-")
    all_saved(mount)
    assert read(mount.node, f"film:/{here.name}/a.mp4") == (here / "a.mp4").read_bytes()


# stress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", range(4))
def test_stress(mount: VolumeMount, here: Path, part: int) -> None:
    needs("stress-ng")
    words = [word for name in STRESSORS[part::4] for word in (f"--{name}", "1")]
    limits = ("--timeout", "1", "--hdd-bytes", "8m", "--link-ops", "20", "--symlink-ops", "20", "--dir-ops", "50")
    run("stress-ng", "--temp-path", here, *words, *limits, "--verify", "--oomable")
    all_saved(mount)
    assert os.listdir(here) == []


def test_dbench(mount: VolumeMount, here: Path) -> None:
    needs("dbench")
    assert "Throughput" in run("dbench", "-t", "2", "-D", here, "2")
    all_saved(mount)


def test_a_virtual_environment_runs_from_it(here: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", "--symlinks", here / "venv")
    python = ("env", "-u", "PYTHONDONTWRITEBYTECODE", here / "venv" / "bin" / "python")
    (here / "module.py").write_text("print('from the mount')\n")
    for _ in range(2):  # the second time with its compiled form
        assert run(*python, "-c", "import module", cwd=here) == "from the mount\n"
    assert (here / "__pycache__").is_dir()
