"""Where to cut: how much moves in a re-push, and how many blocks there are, for several thresholds of `tensors-1`.

    python -m bench dedup

A tensor of the threshold or more has blocks of its own; smaller ones share blocks with their neighbours in the
file. No daemon is needed: the blocks of the base are known, and what a changed copy has besides would move. Two
models of 0.8 GB: bf16, in the order in which safetensors' writer stores them; 4-bit with a scale and a bias tensor
for each matrix, in an order of no meaning, as MLX's writer stores them.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from bench.measuring import Demand
from bench.rows import Options, say, table, verdict
from bench.synthetic import ITEM_BYTES, Bytes, Tensor, divided, llama
from tbshare.content import safetensors
from tbshare.content.block import HASH_BYTES, BlockId, block_id
from tbshare.content.cut import TENSOR_BYTES_MIN, tensor_lengths

THRESHOLDS = {"0": 0, "16 KiB": 16 << 10, "64 KiB": 64 << 10, "256 KiB": 256 << 10, "1 MiB": 1 << 20}
File = Mapping[str, Tensor]
Files = Sequence[File]
Variant = Callable[[File], tuple[Files, int]]  # files, and by how many bytes each header is longer


def content_of(tensors: File, longer_bytes: int) -> Bytes:
    """Return the bytes of a safetensors file with these tensors in this order."""
    header: dict[str, object] = {"__metadata__": {"note": "x" * longer_bytes}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.data.size
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    first = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    return np.concatenate([first, *(tensor.data for tensor in tensors.values())])


def blocks_of(files: Files, longer_bytes: int) -> dict[str, dict[BlockId, int]]:
    """Return the blocks of the files, id to length, for each threshold."""
    result: dict[str, dict[BlockId, int]] = {name: {} for name in THRESHOLDS}
    for tensors in files:
        content = content_of(tensors, longer_bytes)
        view = memoryview(content.data)
        data_start = safetensors.header_length(content[:8].tobytes(), content.size)
        header = safetensors.parse(content[:data_start].tobytes(), content.size)
        for name, threshold in THRESHOLDS.items():
            position = 0
            for length in tensor_lengths(content.size, data_start, header.tensors, threshold):
                result[name][block_id(view[position : position + length])] = length
                position += length
    return result


def _changed(tensors: File, names: Iterable[str]) -> dict[str, Tensor]:
    copy = dict(tensors)
    for name in names:
        tensor = copy[name]
        data = tensor.data.copy()
        data[:: ITEM_BYTES[tensor.dtype]] ^= 1
        copy[name] = Tensor(tensor.dtype, tensor.shape, data)
    return copy


def _named(tensors: File, *parts: str) -> list[str]:
    return [name for name in tensors if any(part in name for part in parts)]


def _longer(tensors: File) -> dict[str, Tensor]:
    """Add 37 rows to what has one row per word."""
    copy = dict(tensors)
    for name in _named(tensors, "embed_tokens", "lm_head"):
        tensor = copy[name]
        rows = tensor.shape[0]
        more = tensor.data[: 37 * tensor.data.size // rows] ^ np.uint8(1)
        copy[name] = Tensor(tensor.dtype, [rows + 37, *tensor.shape[1:]], np.concatenate([tensor.data, more]))
    return copy


def _lora(tensors: File) -> dict[str, Tensor]:
    """Change q and v projections, and with them their scales and biases, making up about 9 % of the bytes."""
    names = sorted(_named(tensors, "q_proj", "v_proj"), reverse=True)
    limit, chosen = 0.09 * sum(tensor.data.size for tensor in tensors.values()), list[str]()
    for name in names:
        if (limit := limit - tensors[name].data.size) < 0:
            break
        chosen.append(name)
    return _changed(tensors, chosen)


def _mixed(tensors: File) -> dict[str, Tensor]:
    names = list(tensors)
    random.Random(11).shuffle(names)
    return {name: tensors[name] for name in names}


VARIANTS: dict[str, Variant] = {
    "header 777 bytes longer": lambda tensors: (divided(tensors, 2), 777),
    "re-sharded, 2 files to 5": lambda tensors: (divided(tensors, 5), 0),
    "stored in another order": lambda tensors: (divided(_mixed(tensors), 2), 0),
    "9 % changed (q, v)": lambda tensors: (divided(_lora(tensors), 2), 0),
    "norms changed": lambda tensors: (divided(_changed(tensors, _named(tensors, "norm")), 2), 0),
    "37 vocabulary rows added": lambda tensors: (divided(_longer(tensors), 2), 0),
}


def _stored(tensors: File, *, quantised: bool) -> dict[str, Tensor]:
    """Return the tensors in the order in which a writer stores them."""
    if quantised:
        names = list(tensors)
        random.Random(5).shuffle(names)
    else:
        names = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    return {name: tensors[name] for name in names}


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    demands: list[Demand] = []
    used = next(name for name, threshold in THRESHOLDS.items() if threshold == TENSOR_BYTES_MIN)
    for kind, quantised in (("bf16", False), ("4-bit", True)):
        tensors = _stored(llama(options.pick(0.8, 0.3), quantised=quantised), quantised=quantised)
        size = sum(tensor.data.size for tensor in tensors.values())
        base = blocks_of(divided(tensors, 2), 0)
        figures[kind] = {"blocks": {name: len(blocks) for name, blocks in base.items()}}
        lines = [["blocks", *(str(len(base[name])) for name in THRESHOLDS)]]
        per_tb = [len(base[name]) * HASH_BYTES / size * 1e12 / 1e6 for name in THRESHOLDS]
        lines.append(["MB of block ids per TB", *(f"{value:.0f}" for value in per_tb)])
        for what, variant in VARIANTS.items():
            found = blocks_of(*variant(tensors))
            moved = {
                name: sum(length for block, length in found[name].items() if block not in base[name])
                for name in THRESHOLDS
            }
            requests = {name: len(found[name].keys() - base[name].keys()) for name in THRESHOLDS}
            figures[kind][what] = {name: 100 * count / size for name, count in moved.items()}
            lines.append([f"{what}, % moved", *(f"{100 * moved[name] / size:.3f}" for name in THRESHOLDS)])
            lines.append(["  in so many blocks", *(str(requests[name]) for name in THRESHOLDS)])
            say(f"{kind}: {what}")
            limits = {"header": 0.5, "re-sharded": 0.5, "9 %": 10.0, "37": 1.0}
            for start, limit in limits.items():
                # The rows' blocks of 4 MiB are a larger part of a model a quarter of the size.
                if what.startswith(start) and not (quantised and start == "37"):
                    demands.append(Demand(f"{kind}, {what}, % moved at {used}", 100 * moved[used] / size, limit))
        table([f"{kind}, {size / 1e9:.2f} GB, {len(tensors)} tensors", *THRESHOLDS], lines)
        print()
    return verdict("dedup", demands, figures, quick=options.quick)
