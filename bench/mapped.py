"""The row `run`: `run_map.py` with the options of the benches."""

from bench import run_map
from bench.measuring import Demand
from bench.rows import Options, verdict


def run(options: Options) -> bool:
    """Run the row; return whether its bars are met."""
    said = run_map.compare(options.scratch, runs=options.runs, gigabytes=options.pick(2.0, 0.4))
    run_map.show(said)
    ratio = min(said["weights_ratio"], said["model_ratio"])
    demands = [
        Demand("usable, times faster than mx.load + eval", ratio, run_map.SPEED_BAR, at_most=False),
        Demand("anonymous memory, of the model", said["anonymous_share"], run_map.MEMORY_BAR),
        Demand("logits identical", float(said["logits_identical"]), 1, at_most=False),
    ]
    return verdict("run", demands, said, quick=options.quick)
