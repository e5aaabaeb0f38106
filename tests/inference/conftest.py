"""What the tests of this room share: files written byte by byte, a tiny model, and the compiled extension."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbshare.inference.extension import MapModule, find

Tensors = Mapping[str, tuple[str, list[int], bytes]]
WriteSafetensors = Callable[..., Path]
HIDDEN, LAYERS, HEADS, FEED_FORWARD, WORDS = 64, 2, 4, 96, 264


def _write_safetensors(path: Path, tensors: Tensors, *, skew: int = 0) -> Path:
    """Write tensors (name -> dtype, shape, bytes), in this order; `skew` is the data's start modulo 8."""
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [position, position + len(content)],
        }
        position += len(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + skew)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(part[2] for part in tensors.values()))
    return path


@pytest.fixture(scope="session")
def write_safetensors() -> WriteSafetensors:
    return _write_safetensors


@pytest.fixture(scope="session")
def tiny_tensors() -> Tensors:
    """The weights of a random llama of two layers in float32, a word per byte."""
    random = np.random.default_rng(3)
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [WORDS, HIDDEN]}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + f"self_attn.{part}_proj.weight": [HIDDEN, HIDDEN] for part in "qkvo"}
        shapes |= {prefix + f"mlp.{part}_proj.weight": [FEED_FORWARD, HIDDEN] for part in ("gate", "up")}
        shapes[prefix + "mlp.down_proj.weight"] = [HIDDEN, FEED_FORWARD]
        shapes |= {prefix + f"{part}_layernorm.weight": [HIDDEN] for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [WORDS, HIDDEN]}
    return {
        name: ("F32", shape, random.standard_normal(shape).astype(np.float32).tobytes())
        for name, shape in shapes.items()
    }


@pytest.fixture
def tiny_model(tmp_path: Path, tiny_tensors: Tensors) -> Path:
    """A directory with a random llama and a tokenizer of bytes, which mlx-lm loads."""
    tokenizers = pytest.importorskip("tokenizers")
    directory = tmp_path / "tiny"
    directory.mkdir()
    _write_safetensors(directory / "model.safetensors", tiny_tensors)
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
        "max_position_embeddings": 256,
    }
    (directory / "config.json").write_text(json.dumps(config))
    special = ["<begin>", "<end>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*special, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ message.content }}]{% endfor %}"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[1],
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory of the tests' own, with the extension compiled into it if it can be."""
    directory = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(directory)
    yield directory
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def module(cache_home: Path) -> MapModule:
    extension = find()
    if extension.module is None:
        pytest.skip(extension.sentence)
    return extension.module
