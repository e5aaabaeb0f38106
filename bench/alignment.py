"""How many tensors can be mapped as they lie, in files of both writers: stored exactly, and shifted to a page.

    python -m bench alignment

Files of made-up tensors, some tiny and of odd sizes, with headers of all lengths. A tensor can be mapped when it
starts on a multiple of its element's size. `chosen` is the layout that the store takes for the file.
"""

import random
from pathlib import Path

import numpy as np

from bench.measuring import Demand
from bench.rows import Options, table, verdict
from bench.synthetic import ITEM_BYTES, Tensor, write_with_mlx, write_with_safetensors
from tbshare.content import safetensors
from tbshare.content.layout import aligned_count, choose, shift_to_page

MIXES = {
    "bf16": ["BF16"],
    "f32": ["F32"],
    "4-bit (u32, bf16)": ["U32", "BF16"],
    "bf16, f32": ["BF16", "F32"],
    "u8, bf16, f32, u32": ["U8", "BF16", "F32", "U32"],
}
WRITERS = {"safetensors": write_with_safetensors, "mlx": write_with_mlx}
TENSORS = 40


def make(path: Path, writer: str, dtypes: list[str], seed: int) -> None:
    """Write a file of TENSORS small tensors with names, shapes and metadata of all lengths."""
    chance = random.Random(seed)
    tensors: dict[str, Tensor] = {}
    for number in range(TENSORS):
        dtype = dtypes[number % len(dtypes)]
        shape = [chance.randrange(1, 40), chance.randrange(1, 40)]
        name = f"layers.{number}." + "x" * chance.randrange(1, 20)
        tensors[name] = Tensor(dtype, shape, np.zeros(ITEM_BYTES[dtype] * shape[0] * shape[1], np.uint8))
    WRITERS[writer](path, tensors, {"format": "mlx", "note": "x" * chance.randrange(64)})


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    count = int(options.pick(100, 10))
    lines: list[list[str]] = []
    figures: dict[str, dict[str, float]] = {}
    for writer in WRITERS:
        for mix, dtypes in MIXES.items():
            exact = shifted = chosen = shifts = total = 0
            for seed in range(count):
                path = options.scratch / "file.safetensors"
                make(path, writer, dtypes, seed)
                content = path.read_bytes()
                header = safetensors.parse(content, len(content))
                layout = choose(header)
                exact += aligned_count(header)
                shifted += aligned_count(header, shift_to_page(header))
                chosen += aligned_count(header, layout.shift)
                shifts += layout.shift > 0
                total += len(header.tensors)
            shares = {
                "exact": 100 * exact / total,
                "shifted": 100 * shifted / total,
                "chosen": 100 * chosen / total,
                "files shifted": 100 * shifts / count,
            }
            figures[f"{writer}, {mix}"] = shares
            lines.append([writer, mix, str(total), *(f"{share:.1f}" for share in shares.values())])
    head = ["writer", "dtypes", "tensors", "% exact", "% shifted", "% chosen", "% files shifted"]
    table(head, lines)
    worst = min(shares["chosen"] - max(shares["exact"], shares["shifted"]) for shares in figures.values())
    one = min(figures[f"{writer}, {mix}"]["chosen"] for writer in WRITERS for mix in ("bf16", "f32"))
    demands = [
        Demand("one dtype: % aligned in the layout chosen", one, 100, at_most=False),
        Demand("the layout chosen is no worse than either, in points", worst, 0, at_most=False),
    ]
    return verdict("alignment", demands, figures, quick=options.quick)
