"""`tbshare run`: the time to a usable model, its memory and its numbers, against mlx-lm's own `mx.load`.

    python bench/run_map.py --scratch DIR [--runs 5] [--gigabytes 2] [--json]

A random llama in bfloat16 is generated once into the scratch directory. Every measurement is a process of its own,
the two ways take turns, the page cache is warm, and medians are compared. "Weights" is from the call to every
tensor being usable; "model" has mlx-lm's building of the network on top, which is the same work for both. Memory
and logits are taken after a forward pass, which has touched every weight. Exit status 1 when a bar is missed.
"""

import argparse
import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SPEED_BAR = 50.0  # times faster than mx.load + eval
MEMORY_BAR = 0.10  # of the model, anonymous
HIDDEN, FEED_FORWARD, HEADS, KEY_HEADS, WORDS = 2048, 5632, 32, 8, 32000
TOKENS = [1, 17, 4242, 31999, 8, 99]


def generate(scratch: Path, gigabytes: float) -> Path:
    """Return a directory with a random llama of about so many GB (10^9 bytes), made if it is not there yet."""
    layer_bytes = 2 * (2 * HIDDEN**2 + 2 * HIDDEN * HIDDEN * KEY_HEADS // HEADS + 3 * HIDDEN * FEED_FORWARD)
    layers = max(1, round((gigabytes * 1e9 - 4 * WORDS * HIDDEN) / layer_bytes))
    directory = scratch / f"llama-{layers}-layers"
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    keys = HIDDEN * KEY_HEADS // HEADS
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [WORDS, HIDDEN]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": [HIDDEN],
            prefix + "self_attn.q_proj.weight": [HIDDEN, HIDDEN],
            prefix + "self_attn.k_proj.weight": [keys, HIDDEN],
            prefix + "self_attn.v_proj.weight": [keys, HIDDEN],
            prefix + "self_attn.o_proj.weight": [HIDDEN, HIDDEN],
            prefix + "post_attention_layernorm.weight": [HIDDEN],
            prefix + "mlp.gate_proj.weight": [FEED_FORWARD, HIDDEN],
            prefix + "mlp.up_proj.weight": [FEED_FORWARD, HIDDEN],
            prefix + "mlp.down_proj.weight": [HIDDEN, FEED_FORWARD],
        }
    shapes |= {"model.norm.weight": [HIDDEN], "lm_head.weight": [WORDS, HIDDEN]}
    _write(directory / "model.safetensors", shapes)
    config = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "rms_norm_eps": 1e-5,
        "vocab_size": WORDS,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def _write(path: Path, shapes: dict[str, list[int]]) -> None:
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    random = np.random.default_rng(7)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            bits = random.integers(0, 1 << 16, int(np.prod(shape)), dtype=np.uint16)
            if len(shape) == 1:
                bits[:] = 0x3F80  # a norm: ones
            else:
                bits &= 0x807F  # any sign, any mantissa ...
                bits |= 0x3C00  # ... of 2^-7: the size a trained layer of this width has
            file.write(bits.tobytes())


def measure(directory: Path, way: str, *, logits: bool) -> dict[str, Any]:
    """Load the model in this process by one way, and return seconds, bytes and the hash of its logits."""
    mx: Any = importlib.import_module("mlx.core")
    utils: Any = importlib.import_module("mlx_lm.utils")
    from tbshare.inference import extension, generation, weights

    result: dict[str, Any] = {"way": way}
    found = extension.find(compile_allowed=False)
    path = directory / "model.safetensors"
    if way == "map":
        if found.module is None:
            raise SystemExit(found.sentence)
        started = time.perf_counter()
        loaded = weights.load(path, found.module)
        result["weights_seconds"] = time.perf_counter() - started
        result["mapped_bytes"] = loaded.mapped_bytes
        del loaded
        started = time.perf_counter()
        model: Any = generation.load_network(directory, found).model
    else:
        started = time.perf_counter()
        arrays: Any = mx.load(str(path))
        mx.eval(arrays)
        result["weights_seconds"] = time.perf_counter() - started
        del arrays
        mx.clear_cache()
        started = time.perf_counter()
        model = utils.load_model(directory)[0]
    result["model_seconds"] = time.perf_counter() - started
    if logits:
        numbers: Any = model(mx.array([TOKENS])).astype(mx.float32)
        mx.eval(numbers)
        result["logits"] = hashlib.sha256(memoryview(numbers)).hexdigest()
    result["anonymous_bytes"] = _anonymous_bytes()
    return result


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell a process's anonymous memory")


def _measured(directory: Path, way: str, *, logits: bool) -> dict[str, Any]:
    with (directory / "model.safetensors").open("rb") as file:
        while file.read(1 << 24):  # warm
            pass
    command = [sys.executable, os.path.abspath(__file__), "--measure", way, "--scratch", str(directory)]
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH", "")) if part)
    done = subprocess.run(
        [*command, "--logits"] if logits else command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths},
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(scratch: Path, *, runs: int, gigabytes: float) -> dict[str, Any]:
    """Run both ways in turn and return medians, ratios and whether every bar is met."""
    from tbshare.inference import extension

    found = extension.find()
    if found.module is None:
        raise SystemExit(found.sentence)
    directory = generate(scratch, gigabytes)
    model_bytes = (directory / "model.safetensors").stat().st_size
    ways: dict[str, list[dict[str, Any]]] = {"map": [], "read": []}
    for run in range(runs):
        for way, results in ways.items():
            results.append(_measured(directory, way, logits=run == 0))

    def median(way: str, key: str) -> float:
        return float(statistics.median(result[key] for result in ways[way]))

    mapped, read = ways["map"][0], ways["read"][0]
    said: dict[str, Any] = {"model_bytes": model_bytes, "runs": runs}
    for part in ("weights_seconds", "model_seconds"):
        said[f"map_{part}"] = round(median("map", part), 5)
        said[f"read_{part}"] = round(median("read", part), 5)
        said[f"{part.removesuffix('_seconds')}_ratio"] = round(median("read", part) / median("map", part), 1)
    said["map_anonymous_bytes"] = mapped["anonymous_bytes"]
    said["read_anonymous_bytes"] = read["anonymous_bytes"]
    said["anonymous_share"] = round(mapped["anonymous_bytes"] / model_bytes, 4)
    said["logits_identical"] = mapped["logits"] == read["logits"]
    said["mapped_bytes"] = mapped["mapped_bytes"]
    said["met"] = {
        "speed": min(said["weights_ratio"], said["model_ratio"]) >= SPEED_BAR,
        "memory": said["anonymous_share"] < MEMORY_BAR,
        "logits": said["logits_identical"],
    }
    return said


def show(said: dict[str, Any]) -> None:
    """Print the table."""

    def row(name: str, mapped: str, read: str, ratio: str) -> None:
        print(f"{name:<32}{mapped:>12}{read:>14}{ratio:>12}")

    row(f"{said['model_bytes'] / 1e9:.2f} GB, {said['runs']} runs", "mapped", "mx.load", "")
    for part in ("weights", "model"):
        mapped, read = said[f"map_{part}_seconds"], said[f"read_{part}_seconds"]
        row(f"{part} usable (median)", f"{mapped * 1e3:.1f} ms", f"{read * 1e3:.0f} ms", f"{read / mapped:.0f} x")
    mapped, read = said["map_anonymous_bytes"], said["read_anonymous_bytes"]
    row("anonymous memory after a pass", f"{mapped / 1e6:.0f} MB", f"{read / 1e6:.0f} MB", "")
    row("  of the model", f"{said['anonymous_share']:.1%}", f"{read / said['model_bytes']:.1%}", "")
    row("logits identical", "yes" if said["logits_identical"] else "NO", "", "")
    for name, met in said["met"].items():
        print(f"bar {name}: {'met' if met else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description="mapped weights against mx.load")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--measure", choices=["map", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--logits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.scratch, options.measure, logits=options.logits)))
        return 0
    said = compare(options.scratch, runs=options.runs, gigabytes=options.gigabytes)
    show(said)
    print(json.dumps(said))
    return 0 if all(said["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
