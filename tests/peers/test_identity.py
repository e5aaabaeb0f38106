import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tbshare.errors import StoreUnusable
from tbshare.peers.identity import (
    Identity,
    _create,  # pyright: ignore[reportPrivateUsage]
    certificate_of,
    short,
    verify,
)
from tbshare.volumes.entry import node_of_certificate


def test_made_once_then_read(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    first = Identity.load_or_create(path)
    again = Identity.load_or_create(path)
    assert (again.node, again.certificate) == (first.node, first.certificate)
    assert len(first.node) == 32
    assert first.short() == short(first.node) == first.node.hex()[:8]
    assert node_of_certificate(first.certificate) == first.node
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["device.key"]
    assert repr(first).count("PRIVATE") == 0


def test_signatures(tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "a")
    other = Identity.load_or_create(tmp_path / "b")
    signature = identity.sign(b"data")
    assert verify(identity.node, b"data", signature)
    assert not verify(identity.node, b"datA", signature)
    assert not verify(other.node, b"data", signature)
    assert not verify(identity.node, b"data", signature[:-1])
    assert not verify(b"short", b"data", signature)


def test_the_same_key_gives_the_same_certificate_which_says_nothing_else() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
    assert certificate_of(key) == certificate_of(key)
    certificate = x509.load_der_x509_certificate(certificate_of(key))
    assert certificate.subject == certificate.issuer
    node = key.public_key().public_bytes_raw()
    assert certificate.subject.rfc4514_string() == f"CN={node.hex()}"
    assert certificate.not_valid_before_utc.year == 1970
    assert certificate.not_valid_after_utc.year == 9999
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_wider_permissions_are_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device.key"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(StoreUnusable, match="others") as caught:
        Identity.load_or_create(path)
    assert "chmod 600" in caught.value.cure


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_foreign_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    Identity.load_or_create(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(StoreUnusable, match="another user"):
        Identity.load_or_create(path)


def test_what_is_no_key_is_refused_and_left_alone(tmp_path: Path) -> None:
    good = tmp_path / "good"
    other = tmp_path / "other"
    Identity.load_or_create(good)
    Identity.load_or_create(other)
    key, _, certificate = good.read_bytes().partition(b"-----BEGIN CERTIFICATE")
    swapped = key + b"-----BEGIN CERTIFICATE" + other.read_bytes().partition(b"-----BEGIN CERTIFICATE")[2]
    for number, data in enumerate((b"", b"junk", key, certificate, good.read_bytes()[:100], swapped)):
        path = tmp_path / str(number)
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(StoreUnusable):
            Identity.load_or_create(path)
        assert path.read_bytes() == data


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    link = tmp_path / "link"
    Identity.load_or_create(tmp_path / "device.key")
    link.symlink_to("device.key")
    for path in (directory, pipe, link, tmp_path / "missing" / "device.key"):
        with pytest.raises(StoreUnusable):
            Identity.load_or_create(path)


def test_a_key_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    Identity.load_or_create(path)
    before = path.read_bytes()
    _create(path)  # as a process that found no key just before another made one
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["device.key"]


def test_processes_that_start_together_get_one_key(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from tbshare.peers.identity import Identity;"
        "print(Identity.load_or_create(pathlib.Path(sys.argv[1])).node.hex())"
    )
    path = tmp_path / "device.key"
    command = [sys.executable, "-c", script, str(path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    nodes = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert nodes == {Identity.load_or_create(path).node.hex().encode() + b"\n"}
    assert os.listdir(tmp_path) == ["device.key"]
