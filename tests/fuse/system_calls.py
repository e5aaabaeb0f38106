"""System calls as tests of mounts make them: expected errors, calls Python has no name for, another user."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

_libc = ctypes.CDLL(None, use_errno=True)


def raises(*numbers: int) -> "pytest.RaisesExc[OSError]":
    """Expect an OSError of one of these."""
    return pytest.raises(OSError, check=lambda error: error.errno in numbers)


def as_nobody(script: str, path: Path) -> str:
    """Run a script without any rights; return what it complained of. Python is started before, where it lies."""
    become = "import os; os.fchdir({descriptor}); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    # By a descriptor of the directory: those above may be closed to others.
    descriptor = os.open(path.parent, os.O_RDONLY)
    words = [sys.executable, "-c", become.format(descriptor=descriptor) + script]
    done = subprocess.run([*words, path.name], capture_output=True, text=True, pass_fds=[descriptor], check=False)
    os.close(descriptor)
    return done.stderr


def renamed(old: Path, new: Path, flags: int) -> int:
    """Call renameat2(2); return 0 or the errno."""
    return _called("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), flags)


def fallocated(descriptor: int, mode: int, offset: int, length: int) -> int:
    return _called("fallocate", descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def _called(name: str, *arguments: object) -> int:
    return ctypes.get_errno() if getattr(_libc, name)(*arguments) else 0
