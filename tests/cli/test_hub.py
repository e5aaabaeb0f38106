"""`push hf://…`: the hub's own library finds the model in its cache; no network is asked here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tbshare.cli import hub
from tbshare.errors import UsageError

REVISION = "0123456789abcdef0123456789abcdef01234567"


def fetched(cache: Path, address: str) -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own: the library reads its environment when it is imported."""
    program = (
        "import sys; from tbshare.cli import hub; from tbshare.errors import TbshareError\n"
        "try: print(hub.fetched(sys.argv[1]))\n"
        "except TbshareError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    command = [sys.executable, "-P", "-c", program, address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    model = tmp_path / "models--org--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    (model / "snapshots" / REVISION).mkdir(parents=True)
    (model / "snapshots" / REVISION / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("address", ["hf://org/name", "hf://org/name@main", f"hf://org/name@{REVISION}"])
def test_what_is_in_the_cache_is_found(cache: Path, address: str) -> None:
    pytest.importorskip("huggingface_hub")
    done = fetched(cache, address)
    assert Path(done.stdout.strip()).samefile(cache / "models--org--name" / "snapshots" / REVISION), done.stderr


def test_what_the_hub_does_not_give_is_one_sentence(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    done = fetched(cache, "hf://org/another")
    assert done.returncode == 1
    assert done.stderr.startswith("InputRefused: org/another could not be fetched from the hub")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["hf://", "hf://name", "hf://a/b/c", "hf:///name"])
def test_an_address_that_names_no_model_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="names no model"):
        hub.fetched(address)
