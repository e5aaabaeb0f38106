"""Which front is chosen, and what is said about those that cannot be."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tbshare.errors import MountFailed, UsageError
from tbshare.fuse import front
from tbshare.fuse.operations import LACKS, Capabilities, missing


def _yes(_: str) -> bool:
    return True


def _no(_: str) -> bool:
    return False


def _nothing(_: str) -> None:
    return None


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux with FUSE, whatever this machine is."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os.path, "exists", _yes)


@pytest.mark.usefixtures("linux")
def test_our_own_loop_is_the_first_choice() -> None:
    choice = front.choose()
    assert (choice.front.name, choice.refused) == ("own loop", ())


@pytest.mark.usefixtures("linux")
def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _nothing)
    with pytest.raises(MountFailed, match=r"pyfuse3 is not installed \(pip install 'tbshare\[fuse\]'\)"):
        front.choose("pyfuse3")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MountFailed, match="own: fusermount3 is not installed") as caught:
        front.choose()
    assert caught.value.cure == "apt install fuse3"


def test_without_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os.path, "exists", _no)
    with pytest.raises(MountFailed, match="there is no /dev/fuse") as caught:
        front.choose()
    assert "--device /dev/fuse" in caught.value.cure


def test_a_mac_is_told_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(MountFailed) as caught:
        front.choose()
    assert all(words in caught.value.cure for words in ("tbshare path", "tbshare cp", "Samba"))


def test_a_front_nobody_knows() -> None:
    with pytest.raises(UsageError, match="there are own, pyfuse3"):
        front.choose("nfs")


def test_what_a_front_lacks_is_said_in_sentences() -> None:
    assert LACKS.keys() <= set(Capabilities.__struct_fields__)
    assert missing(Capabilities("all", **dict.fromkeys(LACKS, True))) == []
    assert missing(Capabilities("none")) == list(LACKS.values())


def test_pyfuse3_is_loaded_only_when_chosen() -> None:
    text = "import sys; from tbshare.fuse import front, own_front; print('pyfuse3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
