"""Holes in files, as fallocate(2) makes them."""

import ctypes
import os
from pathlib import Path

PUNCH_HOLE, KEEP_SIZE = 2, 1


def punch(path: Path, offset: int, length: int) -> None:
    """Make a range of a file a hole."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDWR)
    try:
        place = (ctypes.c_int64(offset), ctypes.c_int64(length))
        if library.fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, *place) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(descriptor)
