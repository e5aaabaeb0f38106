"""How much moves when a model comes again, changed: bytes moved, of all of the tree, by the push's own report.

    python -m bench repush

A llama of 0.8 GB in bf16, written in two files by the writer of the safetensors library, is pushed from one node
to another. Then come copies of it under the same name: each header 777 bytes longer, the same tensors in five
files, 9 % of the tensor bytes changed, 37 rows more in the vocabulary. A last push is of the same content again.
"""

import shutil

from bench.measuring import Demand
from bench.nodes import BenchError, Node, pair_all, running
from bench.rows import Options, say, table, verdict
from bench.smollm import make_variant
from bench.synthetic import divided, llama, write_model
from tbshare.wire.local import PushParams
from tbshare.wire.report import PushReport

SHARE_CHANGED = 0.09
CASES = {
    "header": ("header 777 bytes longer", 0.5),
    "reshard": ("re-sharded, 2 files to 5", 0.5),
    "tensors": ("9 % of tensor bytes changed", 10.0),
    "vocabulary": ("37 vocabulary rows added", 1.0),
}


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    base = options.scratch / "base"
    write_model(base, divided(llama(options.pick(0.8, 0.4), quantised=False), 2))
    nodes = [Node(options.scratch / name, name) for name in ("a", "b")]
    lines: list[list[str]] = []
    demands: list[Demand] = []
    figures: dict[str, float] = {}

    def push(path: str, what: str) -> PushReport:
        with nodes[0].client() as client:
            report = client.push(PushParams(path, name="model"))
        if report.failed or report.pending:
            raise BenchError(f"{what}: the push ended with {report.nodes}")
        line = report.nodes[0]
        share = 100 * line.bytes_moved / report.bytes
        figures[what] = share
        lines.append(
            [
                what,
                f"{report.bytes / 1e6:.1f}",
                f"{line.bytes_moved / 1e6:.2f}",
                f"{share:.3f}",
                f"{line.bytes_reused / 1e6:.1f}",
                f"{report.seconds_ingest:.1f}",
                f"{report.seconds_moving:.1f}",
            ]
        )
        say(f"{what}: {share:.3f} % moved")
        return report

    with running(nodes):
        pair_all(nodes)
        push(str(base), "first push")
        for variant, (what, limit) in CASES.items():
            out = options.scratch / variant
            make_variant(base, out, variant, shards=5, share=SHARE_CHANGED)
            push(str(out), what)
            demands.append(Demand(f"{what}, % moved", figures[what], limit))
            shutil.rmtree(out)
        again = push(str(base), "the first one again")
        demands.append(Demand("the first one again, % moved", figures["the first one again"], 0.0))
        if again.failed:
            raise BenchError("the last push failed")
        for node in nodes:
            node.command("verify")
    table(["", "MB", "MB moved", "% moved", "MB reused", "s to take in", "s to durable"], lines)
    return verdict("repush", demands, figures, quick=options.quick)
