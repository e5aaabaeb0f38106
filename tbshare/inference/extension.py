"""Finds the native module that maps files into MLX on Linux, or says in a sentence why there is none.

The module (`native/map.cpp`) has to be compiled for exactly the installed mlx, with a nanobind of the ABI that
mlx was compiled with. So there are two places to look: the one that came with the installation, and a cache
directory of the user into which it is compiled on demand, once for each mlx, Python, nanobind and source.
Whoever finds no module goes on with `mx.load`. `python -m tbshare.inference.extension` compiles it ahead.
"""

import fcntl
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, Protocol, cast

from tbshare.inference.arrays import Array, Dtype

MODULE = "tbshare.inference._map"
SOURCE = Path(__file__).parent / "native" / "map.cpp"
MLX_OLDEST = (0, 32, 4)  # before it, MLX may write into memory that it does not own
COMPILE_TIMEOUT_SECONDS = 300  # 4 s on a desktop; the slowest board that runs MLX is not 70 times slower
COMPILE_FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-DNB_DOMAIN=mlx")
COMPILERS = ("c++", "g++", "clang++")

_MLX_BUILT = re.compile(rb"MLX_BUILT=(\d+\.\d+\.\d+);")
_NANOBIND_TAG = re.compile(rb"nanobind_[0-9a-z_]+_v(\d+)[0-9a-z_]*")
_INTERNALS_VERSION = re.compile(r"define +NB_INTERNALS_VERSION +(\d+)")


class Region(Protocol):
    """One regular file, mapped read-only as long as it, or an array of it, lives."""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    def array(self, offset: int, shape: Sequence[int], dtype: Dtype) -> Array:
        """Return the elements at a byte offset, not copied; IndexError past the end, ValueError misaligned."""
        ...

    def copy(self, offset: int, shape: Sequence[int], dtype: Dtype) -> Array:
        """Return the elements at a byte offset, copied, whatever their alignment; IndexError past the end."""
        ...

    def will_need(self, offset: int, length: int) -> None:
        """Start reading a range of bytes ahead; OSError."""
        ...

    def populate(self, offset: int, length: int) -> None:
        """Read a range of bytes and map its pages before returning; OSError."""
        ...

    def holds(self, array: Array) -> bool:
        """Return whether an evaluated array's data lies in this mapping."""
        ...


class MapModule(Protocol):
    """What the native module offers."""

    def Region(self, descriptor: int) -> Region:  # noqa: N802 - a class of the module
        """Map an open file; the descriptor may be closed afterwards. OSError, ValueError (empty, no file)."""
        ...

    def live(self) -> tuple[int, int]:
        """Return how many mappings, and arrays made without a copy, exist now."""
        ...

    def on_fatal_signal(self, signal_number: int, descriptor: int, line: str) -> None:
        """Make a fatal signal write this line to the descriptor and end the process with status 1."""
        ...


@dataclass(frozen=True, slots=True)
class Extension:
    """The module, or None and the reason. `sentence` says it to the user either way."""

    module: MapModule | None
    sentence: str


class _Unavailable(Exception):  # noqa: N818 - a reason, handled in this file
    """Why there is no module: a sentence."""


def find(*, compile_allowed: bool = True) -> Extension:
    """Return the native module for the installed mlx, compiled now if need be and allowed."""
    if MODULE in sys.modules:
        loaded = sys.modules[MODULE]
        return Extension(cast(MapModule, loaded), f"the native map is {loaded.__file__}")
    try:
        if not sys.platform.startswith("linux"):
            raise _Unavailable("the native map is for Linux; elsewhere MLX maps files itself")
        mlx_version = _mlx_version()
        tag = nanobind_tag(mlx_library())
        installed = importlib.util.find_spec(MODULE)
        if installed is not None and installed.origin is not None:
            path = Path(installed.origin)
            if built_for(path) == (mlx_version, tag):
                return Extension(_load(path), f"the native map for mlx {mlx_version} came with the installation")
        path = _cache_directory() / _key(mlx_version, tag) / f"_map{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not path.exists() and not compile_allowed:
            raise _Unavailable(f"the native map is not compiled for mlx {mlx_version}")
        _compiled(path, tag)
        if built_for(path) != (mlx_version, tag):
            raise _Unavailable(f"the native map in {path} is not for mlx {mlx_version}")
        return Extension(_load(path), f"the native map for mlx {mlx_version} is {path}")
    except _Unavailable as reason:
        return Extension(None, str(reason))


def _mlx_version() -> str:
    try:
        version = importlib.metadata.version("mlx")
    except importlib.metadata.PackageNotFoundError:
        raise _Unavailable("mlx is not installed") from None
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None or tuple(int(number) for number in numbers.groups()) < MLX_OLDEST:
        oldest = ".".join(map(str, MLX_OLDEST))
        raise _Unavailable(f"mlx {version} is installed, and files are mapped from {oldest} on")
    return numbers[0]


def _package_directory(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _Unavailable(f"{name} is not installed (pip install 'tbshare[run]')")
    return Path(next(iter(spec.submodule_search_locations)))


def mlx_library() -> Path:
    """Return the file of the installed mlx's Python module."""
    directory = _package_directory("mlx")
    path = directory / f"core{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not path.exists():
        raise _Unavailable(f"mlx in {directory} has no module for this Python")
    return path


def nanobind_tag(path: Path) -> str:
    """Return the name under which the nanobind in this module meets others of the same ABI."""
    tag = _NANOBIND_TAG.search(path.read_bytes())
    if tag is None:
        raise _Unavailable(f"{path.name} does not say which nanobind it was compiled with")
    return tag[0].decode()


def built_for(path: Path) -> tuple[str, str]:
    """Return the mlx version and the nanobind tag a compiled module was made for, without loading it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _Unavailable(f"the native map cannot be read: {error}") from error
    built, tag = _MLX_BUILT.search(content), _NANOBIND_TAG.search(content)
    return (built[1].decode() if built else "", tag[0].decode() if tag else "")


def _load(path: Path) -> MapModule:
    """Load a compiled module and try it on a file; a module that does not fit is a reason, not a crash later.

    A process loads one: its types are known to all of MLX's modules, by name.
    """
    try:
        # First, since the module links to the libmlx that this brings.
        mx: Any = importlib.import_module("mlx.core")
        spec = importlib.util.spec_from_file_location(MODULE, path, loader=ExtensionFileLoader(MODULE, str(path)))
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        module = cast(MapModule, loaded)
        with SOURCE.open("rb") as file:
            fits = isinstance(module.Region(file.fileno()).array(0, [1], mx.uint8), mx.array)
    except (ImportError, TypeError, AttributeError, OSError) as error:
        raise _Unavailable(f"the native map in {path} does not load: {_first_line(str(error))}") from error
    if not fits:
        raise _Unavailable(f"the native map in {path} does not give arrays of mlx")
    sys.modules[MODULE] = loaded
    return module


def _cache_directory() -> Path:
    """Return the user's own directory for compiled modules; code is loaded from it, so nobody else may write."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    directory = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "tbshare" / "map"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except (OSError, RuntimeError) as error:
        raise _Unavailable(f"the native map has no place to be compiled to: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unavailable(f"{directory} can be written by others, so no code is loaded from it")
    return directory


def _key(mlx_version: str, tag: str) -> str:
    """Return the directory name for one mlx, one Python, one nanobind ABI and one source."""
    made_of = hashlib.sha256(SOURCE.read_bytes() + " ".join([*COMPILE_FLAGS, tag]).encode()).hexdigest()[:16]
    return f"mlx-{mlx_version}-{sysconfig.get_config_var('SOABI')}-{made_of}"


@contextmanager
def _only_one(directory: Path) -> Generator[None]:
    """Hold the directory's lock: of two processes that need the module at once, one compiles."""
    with (directory / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiled(path: Path, tag: str) -> None:
    """Make sure the compiled module is at `path`."""
    if path.exists():
        return
    command = _command(tag)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with _only_one(path.parent):
            if not path.exists():
                for unfinished in path.parent.glob(".map-*"):  # of a compilation that was killed
                    unfinished.unlink(missing_ok=True)
                _compile(command, path)
    except OSError as error:
        raise _Unavailable(f"the native map cannot be compiled: {error}") from error


def _command(tag: str) -> list[str]:
    """Return the compiler's command line, up to the output file."""
    nanobind, mlx = _package_directory("nanobind"), _package_directory("mlx")
    internals = _INTERNALS_VERSION.search((nanobind / "src" / "nb_internals.h").read_text(encoding="utf-8"))
    wanted = _NANOBIND_TAG.match(tag.encode())
    have, want = internals[1] if internals else "?", wanted[1].decode() if wanted else "?"
    if have != want:
        raise _Unavailable(f"mlx was compiled with nanobind's ABI {want}, and the nanobind here has {have}")
    named = shlex.split(os.environ.get("CXX", ""))
    compilers = [named] if named else [[name] for name in COMPILERS]
    compiler = next((words for words in compilers if shutil.which(words[0])), None)
    if compiler is None:
        raise _Unavailable("there is no C++ compiler to build the native map with (apt install g++)")
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        raise _Unavailable("Python's header files are not installed (apt install python3-dev)")
    includes = (nanobind / "include", nanobind / "ext" / "robin_map" / "include", mlx / "include", Path(python))
    return [
        *compiler,
        *COMPILE_FLAGS,
        *(word for directory in includes for word in ("-isystem", str(directory))),
        str(SOURCE),
        str(nanobind / "src" / "nb_combined.cpp"),
        f"-L{mlx / 'lib'}",
        "-lmlx",
    ]


def _compile(command: list[str], path: Path) -> None:
    """Compile to a temporary file beside `path` and rename it: who looks sees a whole module or none."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".map-", suffix=".so")
    os.close(descriptor)
    try:
        result = subprocess.run(
            [*command, "-o", temporary],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILE_TIMEOUT_SECONDS,
            check=False,
        )
        if result.returncode != 0:
            wrong = [line for line in result.stderr.splitlines() if "error" in line] or [result.stderr]
            raise _Unavailable(f"{command[0]} could not compile the native map: {_first_line(wrong[0])}")
        os.replace(temporary, path)
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"{command[0]} took over {COMPILE_TIMEOUT_SECONDS} s for the native map") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0]


def main() -> int:
    """Compile the module if need be and say the result; the exit status is 1 when there is none."""
    extension = find()
    sys.stdout.write(extension.sentence + "\n")
    return 0 if extension.module is not None else 1


if __name__ == "__main__":
    sys.exit(main())
