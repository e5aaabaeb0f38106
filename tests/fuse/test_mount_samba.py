"""A Samba share over a mount, as `tbshare help nas` has it: smbd with vfs_fruit, and smbclient."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tbshare.cli.topics import TOPICS
from tests.fuse.volume_mounts import VolumeMount, mounted
from tests.nodes import MIB, Node, running, until
from tests.staged import left
from tests.volume_nodes import create, names, read

pytestmark = pytest.mark.mount
GLOBAL = """\
[global]
server role = standalone server
smb ports = {port}
interfaces = lo
bind interfaces only = yes
map to guest = bad user
disable netbios = yes
load printers = no
private dir = {folder}
lock directory = {folder}
state directory = {folder}
cache directory = {folder}
pid directory = {folder}
ncalrpc dir = {folder}/ncalrpc
log file = {folder}/log
"""
GUEST = "guest ok = yes\nguest only = yes\n"


def stanza(path: Path, user: str) -> str:
    """Return what `tbshare help nas` says is to be put into smb.conf, for this mount."""
    lines = TOPICS["nas"].splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip() == "[film]")
    taken: list[str] = []
    for line in lines[first:]:
        if not line.strip():
            break
        taken.append(line.strip())
    return "\n".join(taken).replace("/mnt/film", str(path)).replace("anna", user) + "\n"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture
def mount(tmp_path: Path) -> Generator[VolumeMount]:
    for program in ("smbd", "smbclient"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not any(Path("/usr/lib").glob("*/samba/vfs/fruit.so")):
        pytest.skip("vfs_fruit is not installed (samba-vfs-modules)")
    node = Node(tmp_path / "home", "studio")
    with running(node):
        create(node, "film")
        with mounted(node, tmp_path / "mount", "film", "--allow-other") as mount:
            yield mount


@pytest.fixture
def share(mount: VolumeMount, tmp_path: Path) -> Generator[Callable[..., str]]:
    """Return what runs commands of smbclient on the share."""
    folder, port = tmp_path / "samba", _free_port()
    (folder / "ncalrpc").mkdir(parents=True)
    config = folder / "smb.conf"
    config.write_text(GLOBAL.format(port=port, folder=folder) + stanza(mount.path, "root") + GUEST)
    words = ["smbd", "--foreground", f"--configfile={config}"]  # in a process group of its own: it ends all of it
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)

    def client(*commands: str) -> str:
        asked = ["smbclient", "//127.0.0.1/film", "-N", "-p", str(port), "-s", str(config)]
        done = subprocess.run(
            [*asked, "-c", "; ".join(commands)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "NT_STATUS" not in done.stdout, done.stdout
        return done.stdout

    def listens() -> bool:
        assert process.poll() is None, (folder / "output").read_text()
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    try:
        until("Samba listens", listens)
        yield client
    finally:
        process.terminate()
        process.wait(20)


def test_a_share(mount: VolumeMount, share: Callable[..., str], tmp_path: Path) -> None:
    data, local = os.urandom(3 * MIB), tmp_path / "local"
    local.write_bytes(data)
    share("mkdir takes", f"put {local} takes/a.mov", f"put {local} b.mov")
    assert (mount.path / "takes" / "a.mov").read_bytes() == data
    (mount.path / "from-here").write_bytes(b"seen there")
    assert "from-here" in share("ls")
    share(f"get takes/a.mov {tmp_path}/back", f"get from-here {tmp_path}/seen")
    assert (tmp_path / "back").read_bytes() == data
    assert (tmp_path / "seen").read_bytes() == b"seen there"
    share("rename b.mov takes/c.mov", "rename takes/a.mov takes/d.mov", "mkdir empty", "rmdir empty")
    share(f"put {local} takes/d.mov")  # over it
    share("del takes/c.mov", "rename takes shots")
    assert sorted(os.listdir(mount.path)) == ["from-here", "shots"]
    assert os.listdir(mount.path / "shots") == ["d.mov"]
    until("everything is saved", lambda: left(mount.node) == [])
    assert read(mount.node, "film:/shots/d.mov") == data
    assert names(mount.node, "film:/") == ["from-here", "shots"]


def test_what_macs_keep_beside_the_bytes(mount: VolumeMount, share: Callable[..., str], tmp_path: Path) -> None:
    """Finder's information and resource forks are streams there, and extended attributes in the volume."""
    (mount.path / "a").write_bytes(b"bytes")
    information, fork = b"\0" * 4 + b"TBSH" + bytes(24), os.urandom(20_000)
    header = b"AFP\0" + bytes.fromhex("00000100") + bytes(8)
    (tmp_path / "information").write_bytes((header + information).ljust(60, b"\0"))
    (tmp_path / "fork").write_bytes(fork)
    share(f"put {tmp_path}/information a:AFP_AfpInfo", f"put {tmp_path}/fork a:AFP_Resource")
    share(f"put {tmp_path}/fork a:com.apple.notes", "setea a colour red")
    told = share("allinfo a")
    assert "AFP_AfpInfo" in told
    assert "com.apple.notes" in told
    assert "AFP_Resource" in told
    assert "colour" in share("geteas a").lower()
    share(f"get a:com.apple.notes {tmp_path}/back", f"get a:AFP_Resource {tmp_path}/back-fork", "rename a b")
    assert (tmp_path / "back").read_bytes() == fork
    assert (tmp_path / "back-fork").read_bytes() == fork
    assert len(os.listxattr(mount.path / "b")) >= 3
    assert (mount.path / "b").read_bytes() == b"bytes"
    share("del b")
    assert [name for name in os.listdir(mount.path) if not name.startswith(".")] == []
