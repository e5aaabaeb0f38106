"""The tensors of a safetensors file as arrays of MLX, without a second copy of their bytes where that can be had.

Three ways, tried in this order: the file mapped by the native module (Linux); the file mapped whole and handed
to Metal, tensors by slice and view (macOS); `mx.load`, which reads. Whoever uses an array keeps the mapping
alive; the file must not shrink meanwhile, which is what the daemon's lease on it is for.

This file imports MLX; the daemon never imports it.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core

from tbshare.content import safetensors
from tbshare.content.weights import Header, Tensor
from tbshare.errors import HeaderInvalid, ModelRefused
from tbshare.inference.arrays import Array, Dtype
from tbshare.inference.extension import MapModule
from tbshare.inference.pages import PAGE_BYTES, page_slice, whole_pages

mx: Any = mlx.core

# The dtypes of safetensors that MLX has arrays for; 8-bit floats are bytes to it, and its models decode them.
DTYPES: dict[str, Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "F8_E4M3": mx.uint8,
    "F8_E5M2": mx.uint8,
    "F8_E8M0": mx.uint8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "C64": mx.complex64,
}

Load = Callable[[str], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file's tensors by name, and how many of their bytes came which way.

    `mapped_bytes` are the file's own pages; `copied_bytes` belong to the tensors named in `copied`, which lie
    where no array can start; `loaded_bytes` were read by `mx.load`. `note` says why, when not all are mapped.
    """

    tensors: dict[str, Array]
    mapped_bytes: int = 0
    copied_bytes: int = 0
    copied: frozenset[str] = frozenset()
    loaded_bytes: int = 0
    note: str = ""


def load(path: Path, module: MapModule | None, reason: str = "", *, read: Load | None = None) -> Loaded:
    """Return the tensors of one safetensors file.

    `module` is the native map or None for `reason`, a sentence; `read` stands for `mx.load`. Raises ModelRefused
    for a file that does not hold together or has dtypes that MLX does not know.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = read_header(file, size)
            for tensor in header.tensors:
                if tensor.dtype not in DTYPES:
                    raise ModelRefused(
                        f"{path.name}: tensor {tensor.name!r} is {tensor.dtype}, and MLX has no such array"
                    )
            if module is not None:
                return _mapped(module, file, header)
            if mx.metal.is_available():
                return _sliced(file, size, header)
    except HeaderInvalid as error:
        raise ModelRefused(f"{path.name}: {error}") from error
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    return _read(path, header, reason, read or _mlx_load)


def read_header(file: BinaryIO, size: int) -> Header:
    """Return the header of an open safetensors file of `size` bytes; HeaderInvalid, OSError."""
    first = file.read(safetensors.LENGTH_BYTES)
    rest = safetensors.header_length(first, size) - len(first)
    return safetensors.parse(first + file.read(rest), size)


def _mlx_load(path: str) -> dict[str, Array]:
    loaded: dict[str, Array] = mx.load(path, format="safetensors")
    return loaded


def _read(path: Path, header: Header, reason: str, read: Load) -> Loaded:
    """Read with MLX: the tensors are lazy until they are evaluated."""
    tensors = read(str(path))
    note = "the weights are read, not mapped" + (f": {reason}" if reason else "")
    return Loaded(tensors, loaded_bytes=sum(t.end - t.start for t in header.tensors), note=note)


class _Tally:
    """What became of the tensors of one file so far."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.mapped_bytes = 0
        self.copied_bytes = 0
        self.copied_names: set[str] = set()

    def mapped(self, tensor: Tensor, array: Array) -> None:
        self.tensors[tensor.name] = array
        self.mapped_bytes += tensor.end - tensor.start

    def copied(self, tensor: Tensor, array: Array) -> None:
        self.tensors[tensor.name] = array
        self.copied_bytes += tensor.end - tensor.start
        self.copied_names.add(tensor.name)

    def loaded(self) -> Loaded:
        note = ""
        if self.copied_names:
            note = (
                f"{len(self.copied_names)} of {len(self.tensors)} tensors do not lie on a multiple of their "
                "element's size and were copied"
            )
        return Loaded(self.tensors, self.mapped_bytes, self.copied_bytes, frozenset(self.copied_names), note=note)


def _mapped(module: MapModule, file: BinaryIO, header: Header) -> Loaded:
    """Wrap each tensor's bytes in the mapping; copy, alone, what is misaligned."""
    region = module.Region(file.fileno())
    tally = _Tally()
    for tensor in header.tensors:
        dtype = DTYPES[tensor.dtype]
        if tensor.start == tensor.end:
            tally.mapped(tensor, mx.zeros(tensor.shape, dtype))
        elif tensor.start % dtype.size:
            tally.copied(tensor, region.copy(tensor.start, tensor.shape, dtype))
        else:
            tally.mapped(tensor, region.array(tensor.start, tensor.shape, dtype))
    return tally.loaded()


def _sliced(file: BinaryIO, size: int, header: Header) -> Loaded:
    """Hand the whole mapping to Metal and slice it. Not run on macOS yet: written against MLX's source."""
    view = map_pages(file.fileno(), size)
    rows: Array = mx.asarray(view.cast("B", (whole_pages(size), PAGE_BYTES)), copy=False)
    return sliced(rows, view, header)


def sliced(rows: Array, view: memoryview, header: Header) -> Loaded:
    """Return the tensors as slices and views of `rows`, uint8 `[pages, 16384]` over the file from its first byte.

    `view` is the same memory as plain bytes, from which misaligned tensors are copied.
    """
    tally = _Tally()
    for tensor in header.tensors:
        dtype = DTYPES[tensor.dtype]
        if tensor.start == tensor.end:
            tally.mapped(tensor, mx.zeros(tensor.shape, dtype))
            continue
        place = page_slice(tensor.start, tensor.shape, dtype.size)
        if place is None:
            tally.copied(tensor, _copy(view, tensor, dtype))
            continue
        unit: Dtype = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[place.unit_bytes]
        units = rows[place.first_row : place.end_row].view(unit).reshape((-1,))
        array = units[place.first_unit : place.end_unit].reshape(place.unit_shape).view(dtype)
        tally.mapped(tensor, array if tensor.shape else array.reshape(()))
    return tally.loaded()


def _copy(view: memoryview, tensor: Tensor, dtype: Dtype) -> Array:
    """Return a copy of a tensor's bytes as its own array; the bytes may start anywhere."""
    lengths = tensor.shape or (1,)
    shape = (*lengths[:-1], lengths[-1] * dtype.size)
    # MLX copies a buffer that it is not told to adopt; viewed as the dtype only when it is MLX's, and aligned.
    array: Array = mx.array(view[tensor.start : tensor.end].cast("B", shape)).view(dtype)
    return array if tensor.shape else array.reshape(())


def map_pages(descriptor: int, size: int) -> memoryview:
    """Map a whole file read-only, to the end of its last 16 KiB, and return its bytes; OSError.

    Python's own mmap refuses to go past the end of the file, and Metal wants whole pages. The bytes after the end
    must not be touched where the system's pages are smaller. The mapping ends when nobody holds the view.
    """
    length = whole_pages(size) * PAGE_BYTES
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = library.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    pages = (ctypes.c_ubyte * length).from_address(address)
    weakref.finalize(pages, library.munmap, address, length)
    return memoryview(pages).cast("B").toreadonly()
