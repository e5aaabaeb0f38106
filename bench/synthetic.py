"""Random weights in the shapes of a llama, as bf16 or quantised to 4 bits as MLX does it, for the benches.

A tensor is its dtype's name in safetensors, its shape and its bytes. Values are random, so that no two blocks are
alike; they would make no model that answers.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

HIDDEN, FEED_FORWARD, HEADS, KEY_HEADS, WORDS = 2048, 5632, 32, 8, 32000
GROUP = 64  # elements that share a scale and a bias
ITEM_BYTES = {"F32": 4, "U32": 4, "BF16": 2, "U8": 1}
_LONG_NAMES = {"F32": "float32", "U32": "uint32", "BF16": "bfloat16", "U8": "uint8"}


@dataclass
class Tensor:
    """One tensor."""

    dtype: str
    shape: list[int]
    data: Bytes


def _matrices(layers: int) -> dict[str, list[int]]:
    keys = HIDDEN * KEY_HEADS // HEADS
    shapes: dict[str, list[int]] = {"model.embed_tokens": [WORDS, HIDDEN]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj": [HIDDEN, HIDDEN],
            prefix + "self_attn.k_proj": [keys, HIDDEN],
            prefix + "self_attn.v_proj": [keys, HIDDEN],
            prefix + "self_attn.o_proj": [HIDDEN, HIDDEN],
            prefix + "mlp.gate_proj": [FEED_FORWARD, HIDDEN],
            prefix + "mlp.up_proj": [FEED_FORWARD, HIDDEN],
            prefix + "mlp.down_proj": [HIDDEN, FEED_FORWARD],
        }
    return shapes | {"lm_head": [WORDS, HIDDEN]}


def _random(random: np.random.Generator, dtype: str, shape: list[int]) -> Tensor:
    return Tensor(
        dtype, shape, np.frombuffer(random.bytes(ITEM_BYTES[dtype] * int(np.prod(shape))), np.uint8).copy()
    )


def llama(gigabytes: float, *, quantised: bool) -> dict[str, Tensor]:
    """Return the tensors of a llama of about so many GB, in the order in which it uses them."""
    random = np.random.default_rng(7)
    per_element = 4 / 8 + 2 * 2 / GROUP if quantised else 2
    per_layer = sum(int(np.prod(shape)) for name, shape in _matrices(1).items() if ".0." in name) * per_element
    layers = max(1, round((gigabytes * 1e9 - 2 * WORDS * HIDDEN * per_element) / per_layer))
    tensors: dict[str, Tensor] = {}
    for name, (rows, columns) in _matrices(layers).items():
        if quantised:
            tensors[f"{name}.weight"] = _random(random, "U32", [rows, columns // 8])
            tensors[f"{name}.scales"] = _random(random, "BF16", [rows, columns // GROUP])
            tensors[f"{name}.biases"] = _random(random, "BF16", [rows, columns // GROUP])
        else:
            tensors[f"{name}.weight"] = _random(random, "BF16", [rows, columns])
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = _random(random, "BF16", [HIDDEN])
    tensors["model.norm.weight"] = _random(random, "BF16", [HIDDEN])
    return tensors


def divided(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return the tensors in `count` groups of about equal size, in order."""
    total = sum(tensor.data.size for tensor in tensors.values())
    groups: list[dict[str, Tensor]] = [{} for _ in range(count)]
    position = 0
    for name, tensor in tensors.items():
        groups[min(count - 1, position * count // total)][name] = tensor
        position += tensor.data.size
    return groups


def write_with_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with the writer of the safetensors library."""
    safetensors: Any = importlib.import_module("safetensors")
    parts = {
        name: safetensors.TensorSpec(
            dtype=_LONG_NAMES[tensor.dtype],
            shape=tensor.shape,
            data_ptr=tensor.data.ctypes.data,
            data_len=tensor.data.nbytes,
        )
        for name, tensor in tensors.items()
    }
    safetensors.serialize_file(parts, str(path), dict(metadata))


def write_with_mlx(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with MLX's writer."""
    mx: Any = importlib.import_module("mlx.core")
    plain = {"F32": mx.float32, "U32": mx.uint32, "BF16": mx.bfloat16, "U8": mx.uint8}
    arrays = {
        name: mx.array(tensor.data).view(plain[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
    mx.save_safetensors(str(path), arrays, dict(metadata))


def write_model(directory: Path, groups: Sequence[Mapping[str, Tensor]]) -> None:
    """Write a model directory with one file a group, by the writer of the safetensors library."""
    directory.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups):
        name = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        write_with_safetensors(directory / name, group, {"format": "mlx"})
        weight_map |= dict.fromkeys(group, name)
    size = sum(tensor.data.size for group in groups for tensor in group.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": WORDS}))
