import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tbshare.inference import extension
from tbshare.inference.extension import MapModule

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the native map is for Linux")


def environment(cache: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **changes}


def ahead(cache: Path, **changes: str) -> tuple[int, str]:
    """Run `python -m tbshare.inference.extension`; its exit status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "tbshare.inference.extension"],
        env=environment(cache, **changes),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout


@pytest.fixture
def compiled(cache_home: Path, module: MapModule) -> Path:
    """The module that was compiled on demand; skips where the installation brought one."""
    del module
    if shutil.which("c++") is None:
        pytest.skip("there is no compiler")
    paths = list(cache_home.glob("tbshare/map/*/_map*.so"))
    if not paths:
        pytest.skip("the native map came with the installation")
    return paths[0]


def test_compiled_ahead_is_found(cache_home: Path, module: MapModule) -> None:
    status, said = ahead(cache_home)
    assert status == 0
    assert said.startswith("the native map for mlx ")
    assert extension.find(compile_allowed=False).module is module


def test_compiled_for_is_read_without_loading(compiled: Path) -> None:
    mlx_version, tag = extension.built_for(compiled)
    assert mlx_version.count(".") == 2
    assert tag == extension.nanobind_tag(extension.mlx_library())


@pytest.mark.usefixtures("compiled")
def test_two_processes_at_once_compile_one_module(tmp_path: Path) -> None:
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    compiler.write_text(f'#!/bin/sh\necho compiling >> {log}\nexec c++ "$@"\n')
    compiler.chmod(0o700)
    command = [sys.executable, "-m", "tbshare.inference.extension"]
    surroundings = environment(tmp_path, CXX=str(compiler))
    both = [subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said: list[str] = []
    for process in both:
        with process:
            said.append(process.communicate(timeout=100)[0])
        assert process.returncode == 0
    assert said[0] == said[1]
    assert log.read_text() == "compiling\n"
    directory = next(tmp_path.glob("tbshare/map/*"))
    assert sorted(path.suffix for path in directory.iterdir()) == ["", ".so"]  # the lock and the module


@pytest.mark.usefixtures("compiled")
def test_no_compiler_is_a_sentence(tmp_path: Path) -> None:
    status, said = ahead(tmp_path, PATH="/nonexistent", CXX="")
    assert (status, said) == (1, "there is no C++ compiler to build the native map with (apt install g++)\n")


@pytest.mark.usefixtures("compiled")
def test_compiler_that_fails_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    status, said = ahead(tmp_path, CXX="false")
    assert (status, said) == (1, "false could not compile the native map: no reason given\n")
    assert [path.name for path in tmp_path.glob("tbshare/map/*/*")] == ["lock"]


@pytest.mark.usefixtures("compiled")
def test_not_compiled_when_not_allowed(tmp_path: Path) -> None:
    program = "from tbshare.inference.extension import find; print(find(compile_allowed=False))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith("Extension(module=None, sentence='the native map is not compiled for mlx ")


def test_older_mlx_is_a_sentence(tmp_path: Path) -> None:
    """Metadata that comes first on the path is the metadata that counts."""
    information = tmp_path / "old" / "mlx-0.31.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 0.31.2\n")
    path = os.pathsep.join([str(information.parent), str(ROOT)])
    status, said = ahead(tmp_path, PYTHONPATH=path)
    assert (status, said) == (1, "mlx 0.31.2 is installed, and files are mapped from 0.32.4 on\n")


@pytest.mark.usefixtures("compiled")
def test_nanobind_of_another_abi_is_a_sentence(tmp_path: Path) -> None:
    source = tmp_path / "other" / "nanobind" / "src"
    source.mkdir(parents=True)
    (source.parent / "__init__.py").write_text("")
    (source / "nb_internals.h").write_text("#  define NB_INTERNALS_VERSION 7\n")
    path = os.pathsep.join([str(tmp_path / "other"), str(ROOT)])
    status, said = ahead(tmp_path, PYTHONPATH=path)
    assert status == 1
    assert said.endswith("and the nanobind here has 7\n")


@pytest.mark.usefixtures("compiled")
def test_cache_that_others_can_write_is_not_loaded_from(tmp_path: Path) -> None:
    directory = tmp_path / "tbshare" / "map"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    status, said = ahead(tmp_path)
    assert (status, said) == (1, f"{directory} can be written by others, so no code is loaded from it\n")


def test_module_that_is_not_for_this_mlx_is_not_loaded(cache_home: Path, tmp_path: Path, compiled: Path) -> None:
    place = tmp_path / compiled.relative_to(cache_home)
    place.parent.mkdir(parents=True)
    place.parent.parent.chmod(0o700)
    content = compiled.read_bytes()
    version = extension.built_for(compiled)[0].encode()
    place.write_bytes(content.replace(b"MLX_BUILT=" + version, b"MLX_BUILT=" + b"9" + version[1:]))
    status, said = ahead(tmp_path)
    assert status == 1
    assert "is not for mlx" in said
    place.write_bytes(content[:20_000])  # damaged: neither mark is in it any more, or it does not load
    status, said = ahead(tmp_path)
    assert status == 1
