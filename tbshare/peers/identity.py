"""A node's identity: an Ed25519 key, and the certificate by which TLS knows it.

The node id is the 32-byte public key. The certificate is a function of the key alone (fixed serial number and
validity, the id as its subject), so it says nothing but the public key and never runs out: clocks jump, and
membership, not a date, ends a node's time. Both stand in one PEM file, device.key, in the form TLS wants.
"""

import datetime
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from tbshare.errors import FormatInvalid, StoreUnusable
from tbshare.volumes.entry import node_of_certificate

FILE_BYTES_MAX: Final = 16384  # ours has 700
_VALID_FROM: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_VALID_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_CURE: Final = "restore device.key from a backup, or use a new home directory and tbshare pair"


@dataclass(frozen=True)
class Identity:
    """The key of this node; `path` is the PEM file with the private key and the certificate."""

    path: Path
    node: bytes  # 32-byte Ed25519 public key: the node's id
    certificate: bytes  # DER, always the same for the same key
    _key: Ed25519PrivateKey

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """Read device.key, or make it; StoreUnusable when others could read or write it, or it is damaged."""
        try:
            return cls._load(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreUnusable(f"{path.name} cannot be read: {error.strerror}", cure=_CURE) from error
        try:
            _create(path)
            return cls._load(path)
        except OSError as error:
            raise StoreUnusable(
                f"{path.name} cannot be made: {error.strerror}", cure="check the home directory"
            ) from error

    @classmethod
    def _load(cls, path: Path) -> "Identity":
        data = _read_private(path)
        try:
            key = load_pem_private_key(data, password=None)
            certificate = x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
            if not isinstance(key, Ed25519PrivateKey):
                raise StoreUnusable(f"{path.name} holds a key of another kind", cure=_CURE)
            node = key.public_key().public_bytes_raw()
            if node_of_certificate(certificate) != node:
                raise StoreUnusable(f"{path.name} holds a key and the certificate of another", cure=_CURE)
        except (ValueError, TypeError, UnsupportedAlgorithm, FormatInvalid) as error:
            raise StoreUnusable(f"{path.name} is damaged: it holds no key", cure=_CURE) from error
        return cls(path=path, node=node, certificate=certificate, _key=key)

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data`."""
        return self._key.sign(data)

    def short(self) -> str:
        """Return the first 8 hex digits of the node id."""
        return short(self.node)


def short(node: bytes) -> str:
    """Return the first 8 hex digits of a node id."""
    return node[:4].hex()


def verify(node: bytes, data: bytes, signature: bytes) -> bool:
    """Say whether `signature` is the node's over `data`."""
    try:
        Ed25519PublicKey.from_public_bytes(node).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def certificate_of(key: Ed25519PrivateKey) -> bytes:
    """Return the certificate (DER) of a key."""
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, public.public_bytes_raw().hex())])
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_UNTIL)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )
    return builder.sign(key, algorithm=None).public_bytes(Encoding.DER)


def _read_private(path: Path) -> bytes:
    """Return the bytes of a file that nobody but us may read or write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnusable(f"{path.name} is not a file", cure=_CURE)
        if status.st_uid != os.geteuid():
            raise StoreUnusable(
                f"{path.name} belongs to another user (uid {status.st_uid})",
                cure=f"run tbshare as that user, or: chown {os.geteuid()} {path}",
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise StoreUnusable(
                f"{path.name} may be read or written by others (mode {stat.S_IMODE(status.st_mode):o})",
                cure=f"chmod 600 {path}; if others use this machine, pair again with a new key",
            )
        return file.read(FILE_BYTES_MAX)


def _create(path: Path) -> None:
    """Make a new key file, whole or not at all, and leave alone one that another process made meanwhile."""
    key = Ed25519PrivateKey.generate()
    certificate = x509.load_der_x509_certificate(certificate_of(key))
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    data += certificate.public_bytes(Encoding.PEM)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(temporary, path)  # unlike a rename it never replaces a key
        except FileExistsError:
            return
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
