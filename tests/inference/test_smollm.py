"""The changed copies of a model that the demo and the benchmarks push again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbshare.inference.check import check

pytest.importorskip("mlx_lm")
ROOT = Path(__file__).resolve().parent.parent.parent


def variant(source: Path, name: str) -> tuple[Path, dict[str, Any]]:
    out = source.parent / name
    command = [sys.executable, str(ROOT / "bench" / "smollm.py"), str(out), "--source", str(source)]
    done = subprocess.run(
        [*command, "--variant", name, "--shards", "5"], check=True, capture_output=True, text=True, timeout=60
    )
    return out, json.loads(done.stdout)


def tensors(directory: Path) -> dict[str, tuple[list[int], bytes]]:
    found: dict[str, tuple[list[int], bytes]] = {}
    for path in directory.glob("*.safetensors"):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, info in json.loads(content[8:start]).items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                found[name] = (info["shape"], content[start + begin : start + end])
    return found


def test_fine_tuned_copy_changes_a_share_of_the_tensors_a_little(tiny_model: Path) -> None:
    out, said = variant(tiny_model, "tensors")
    before, after = tensors(tiny_model), tensors(out)
    changed = {name for name in before if before[name] != after[name]}
    assert len(changed) == said["tensors_changed"]
    assert sum(len(before[name][1]) for name in changed) == said["bytes_changed"]
    assert said["share"] <= 0.09
    for name in before:
        left, right = (np.frombuffer(part[name][1], np.float32) for part in (before, after))
        np.testing.assert_allclose(left, right, rtol=1e-6)
    assert check(out).tensors == len(before)


def test_longer_header_keeps_the_tensors(tiny_model: Path) -> None:
    once, _ = variant(tiny_model, "reshard")
    out, _ = variant(once, "header")
    assert tensors(out) == tensors(tiny_model)
    for path in once.glob("*.safetensors"):
        assert (out / path.name).stat().st_size == path.stat().st_size + 777
    assert check(out).tensors == len(tensors(tiny_model))


def test_other_shards_hold_the_same_tensors(tiny_model: Path) -> None:
    out, _ = variant(tiny_model, "reshard")
    assert len(list(out.glob("model-*-of-00005.safetensors"))) == 5
    assert tensors(out) == tensors(tiny_model)
    assert check(out).tensors == len(tensors(tiny_model))


def test_longer_vocabulary_appends_rows(tiny_model: Path) -> None:
    out, said = variant(tiny_model, "vocabulary")
    before, after = tensors(tiny_model), tensors(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}
    for name in changed:
        assert after[name][0][0] == before[name][0][0] + 37
        assert after[name][1].startswith(before[name][1])
    assert said["bytes_added"] == sum(len(after[name][1]) - len(before[name][1]) for name in changed)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 264 + 37
