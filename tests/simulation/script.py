"""What happens in one run, as values: drawn from a seed or by Hypothesis, printed, replayed, made shorter."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NODES_MAX = 6
CHOICES = 1 << 16

WEIGHTS = {  # of the kinds of actions; what they do stands in actions.py and faults.py
    "save": 14,
    "create": 10,
    "open": 5,
    "close": 7,
    "rename": 8,
    "move_directory": 10,
    "exchange": 2,
    "safe_save": 4,
    "link": 3,
    "symlink": 1,
    "remove": 7,
    "mkdir": 9,
    "rmdir": 2,
    "remove_tree": 2,
    "copy": 2,
    "describe": 3,
    "bundle": 8,
    "restore": 3,
    "resolve": 4,
    "snapshot": 1,
    "volume_create": 1,
    "volume_set": 1,
    "volume_remove": 1,
    "role_set": 6,
    "owner_set": 2,
    "cut": 9,
    "cut_one_way": 4,
    "mend": 9,
    "crash": 4,
    "crash_at_commit": 4,
    "switch_off": 2,
    "switch_on": 6,
    "back_up": 3,
    "restore_backup": 2,
    "clone": 1,
    "compact": 3,
    "give_up": 5,
    "clock_jump": 3,
    "clock_rate": 2,
    "join": 2,
    "remove_node": 2,
}
GAPS_SECONDS = (0.0, 0.001, 0.02, 0.2, 2.0, 30.0, 600.0, 7200.0)


@dataclass(frozen=True)
class Action:
    """One thing that happens: `kind` on the machine `who`; `one` and `two` choose what with, `gap` when."""

    kind: str
    who: int = 0
    one: int = 0
    two: int = 0
    gap: int = 0  # which of GAPS_SECONDS passes before it


@dataclass(frozen=True)
class Script:
    """A whole run; `seed` also decides delays, losses and what a power cut leaves."""

    seed: int
    nodes: int
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        lines = "".join(f"    {action},\n" for action in self.actions)
        return f"Script({self.seed}, {self.nodes}, (\n{lines}))"


def script_of(seed: int) -> Script:
    """Return the run of a seed."""
    random = Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    nodes = random.choices((2, 3, 4, 5, NODES_MAX), (3, 5, 3, 1, 1))[0]
    count = random.randint(40, 120 if random.random() < 0.3 else 80)
    actions = [
        Action(
            kind,
            random.randrange(NODES_MAX),
            random.randrange(CHOICES),
            random.randrange(CHOICES),
            random.choices(range(len(GAPS_SECONDS)), (8, 4, 6, 6, 4, 3, 2, 1))[0],
        )
        for kind in random.choices(kinds, weights, k=count)
    ]
    return Script(seed, nodes, tuple(actions))


def shortest(script: Script, fails: Callable[[Script], bool]) -> Script:
    """Return a shorter script that still fails: actions are left out as long as it does."""
    size = len(script.actions) // 2
    while size:
        start = 0
        while start < len(script.actions):
            fewer = Script(script.seed, script.nodes, script.actions[:start] + script.actions[start + size :])
            if fails(fewer):
                script = fewer
            else:
                start += size
        size //= 2
    for nodes in range(2, script.nodes):
        fewer = Script(script.seed, nodes, script.actions)
        if fails(fewer):
            return fewer
    return script
