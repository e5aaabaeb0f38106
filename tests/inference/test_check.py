import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbshare.errors import ModelRefused
from tbshare.inference.check import INDEX, check
from tests.inference.conftest import WriteSafetensors


@pytest.fixture
def model(tmp_path: Path, write_safetensors: WriteSafetensors) -> Path:
    """A whole model in three files: tensors a, b, c of 16 bytes each."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    for number, name in enumerate("abc", start=1):
        write_safetensors(directory / shard(number), {name: ("F32", [4], bytes(16))})
    write_index(directory, {"a": shard(1), "b": shard(2), "c": shard(3)})
    return directory


def shard(number: int, count: int = 3) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(directory: Path, weight_map: object) -> None:
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(directory: Path) -> str:
    with pytest.raises(ModelRefused) as refused:
        check(directory)
    return str(refused.value)


def test_whole_model_gives_its_facts(model: Path) -> None:
    facts = check(model)
    assert facts.model_type == "llama"
    assert [path.name for path in facts.files] == [shard(1), shard(2), shard(3)]
    assert facts.total_bytes == sum(path.stat().st_size for path in facts.files)
    assert (facts.tensor_bytes, facts.tensors) == (48, 3)


def test_model_without_an_index_is_whole_too(model: Path) -> None:
    (model / INDEX).unlink()
    assert check(model).tensors == 3


def test_no_directory(tmp_path: Path) -> None:
    assert "not a directory" in refusal(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "not a directory" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "there is no config.json"),
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("{}", "no model_type"),
        ('{"model_type": 7}', "no model_type"),
        ('{"model_type": ""}', "no model_type"),
        ('{"model_type": "x", "model_file": "evil.py"}', "run code that came with the model ('evil.py')"),
    ],
)
def test_config(model: Path, config: str | None, reason: str) -> None:
    (model / "config.json").unlink()
    if config is not None:
        (model / "config.json").write_text(config)
    assert reason in refusal(model)


def test_config_that_links_nowhere(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("nowhere")
    assert refusal(model) == "config.json cannot be read: No such file or directory"


def test_auto_map_alone_is_no_reason(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}')
    (model / "evil.py").write_text("raise SystemExit('this ran')")
    assert check(model).tensors == 3


def test_shard_missing_by_the_index(model: Path) -> None:
    (model / shard(2)).unlink()
    assert refusal(model) == f"{shard(2)} is named in {INDEX} and not here"


def test_shard_missing_by_its_number(model: Path) -> None:
    (model / INDEX).unlink()
    (model / shard(2)).unlink()
    assert refusal(model) == f"{shard(2)} of the 3 files of the weights are missing"
    (model / shard(3)).unlink()
    assert refusal(model) == f"{shard(2)} and 1 more of the 3 files of the weights are missing"


def test_shard_number_that_would_take_for_ever(model: Path) -> None:
    (model / INDEX).unlink()
    (model / shard(1)).rename(model / "model-00001-of-999999999.safetensors")
    assert "and 999999997 more of the 999999999" in refusal(model)


def test_index_names_a_tensor_that_is_not_there(model: Path) -> None:
    write_index(model, {"a": shard(1), "b": shard(2), "c": shard(3), "d": shard(3), "e": shard(1)})
    assert refusal(model) == f"{INDEX} says that {shard(3)} holds d, e, and it does not"


@pytest.mark.parametrize("weight_map", [7, {"a": 7}, None, {"a": "../a"}, {"a": ".."}, {"a": "x\0"}, {"a": ""}])
def test_index_that_makes_no_sense(model: Path, weight_map: object) -> None:
    write_index(model, weight_map)
    assert INDEX in refusal(model)


def test_index_of_files_that_are_not_loaded(model: Path) -> None:
    (model / shard(1)).rename(model / "a.safetensors")
    write_index(model, {"a": "a.safetensors"})
    assert "mlx-lm loads files called model*.safetensors only" in refusal(model)


def test_no_weights_at_all(model: Path) -> None:
    (model / INDEX).unlink()
    for number in (1, 2, 3):
        (model / shard(number)).unlink()
    assert "no weights" in refusal(model)
    (model / "consolidated.safetensors").write_bytes(b"")
    assert "consolidated.safetensors: mlx-lm loads" in refusal(model)


def test_pickles_are_not_opened(model: Path) -> None:
    (model / INDEX).unlink()
    for number in (1, 2, 3):
        (model / shard(number)).unlink()
    os.mkfifo(model / "pytorch_model.bin")  # whoever opens it, hangs
    with pytest.raises(ModelRefused, match=r"pickles \(pytorch_model\.bin\)") as refused:
        check(model)
    assert refused.value.cure


@pytest.mark.parametrize("kept", [0, 7, 8, 30, -1])
def test_truncated_file(model: Path, kept: int) -> None:
    content = (model / shard(2)).read_bytes()
    (model / shard(2)).write_bytes(content[:kept])
    assert f"{shard(2)} is damaged or not whole: " in refusal(model)


def test_lying_header(model: Path, write_safetensors: WriteSafetensors) -> None:
    write_safetensors(model / shard(2), {"b": ("F32", [5], bytes(16))})
    assert "shape and dtype do not give its 16 bytes" in refusal(model)


def test_one_tensor_in_two_files(model: Path, write_safetensors: WriteSafetensors) -> None:
    write_safetensors(model / "model-new.safetensors", {"b": ("F32", [4], bytes(16))})
    assert refusal(model) == f"tensor 'b' is in {shard(2)} and in model-new.safetensors"


@pytest.mark.parametrize(("dtype", "shape", "size"), [("F4", [4], 2), ("F64", [2], 16), ("NEW", [3], 5)])
def test_dtype_that_mlx_does_not_know(
    model: Path, write_safetensors: WriteSafetensors, dtype: str, shape: list[int], size: int
) -> None:
    write_safetensors(model / shard(2), {"b": (dtype, shape, bytes(size))})
    assert f"tensor 'b' is {dtype}; MLX has no such array" in refusal(model)


def test_dimension_that_mlx_cannot_count(model: Path, write_safetensors: WriteSafetensors) -> None:
    write_safetensors(model / shard(2), {"b": ("F32", [0, 1 << 31], b"")})
    assert "dimension above" in refusal(model)


def test_files_without_tensors(model: Path, write_safetensors: WriteSafetensors) -> None:
    (model / INDEX).unlink()
    for number in (1, 2, 3):
        write_safetensors(model / shard(number), {})
    assert refusal(model) == "the weight files hold no tensors"


def test_weights_that_are_no_file_do_not_hang(model: Path) -> None:
    (model / shard(2)).unlink()
    os.mkfifo(model / shard(2))
    assert refusal(model) == f"{shard(2)} is not a regular file"
    (model / shard(2)).unlink()
    (model / shard(2)).mkdir()
    assert shard(2) in refusal(model)
    (model / shard(2)).rmdir()
    before = Path.cwd()
    os.chdir(model)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(shard(2))
            assert shard(2) in refusal(model)
    finally:
        os.chdir(before)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(model: Path, data: Any) -> None:
    """Whatever bytes of the headers, index and config are damaged: a ModelRefused or facts, nothing else."""
    name = data.draw(st.sampled_from(["config.json", INDEX, shard(1)]))
    content = bytearray((model / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = bytes(content[:at]) + data.draw(st.binary(max_size=12)) + bytes(content[at + 1 :])
    (model / name).write_bytes(damaged)
    try:
        said = check(model).model_type
    except ModelRefused as refused:
        said = str(refused)
    finally:
        (model / name).write_bytes(content)
    assert said
    assert "\n" not in said
