"""Shell completion from the daemon: refs, nodes, ids. Quietly nothing when it is down."""

from collections.abc import Callable

from tbshare.client import Client
from tbshare.errors import TbshareError

ANSWER_SECONDS = 0.5  # somebody waits with a finger on the tab key


def complete_ref(incomplete: str) -> list[str]:
    """Return the refs that begin so: names, and revs once an @ is typed."""
    with_revs = "@" in incomplete
    refs = _asked(lambda client: [line.ref for line in client.ref_list(all_revs=with_revs).refs])
    names = refs if with_revs else [ref.rpartition("@")[0] or ref for ref in refs]
    return _beginning(names, incomplete)


def complete_node(incomplete: str) -> list[str]:
    """Return the nodes that begin so; after a comma, one more."""
    before, comma, last = incomplete.rpartition(",")
    names = _beginning(_asked(lambda client: [node.name for node in client.node_list().nodes]), last)
    return [before + comma + name for name in names]


def complete_id(incomplete: str) -> list[str]:
    """Return the ids of what goes on."""
    return _beginning(_asked(lambda client: [line.id for line in client.processes().processes]), incomplete)


def _asked(question: Callable[[Client], list[str]]) -> list[str]:
    try:
        with Client.connect(answer_seconds=ANSWER_SECONDS, call_seconds=ANSWER_SECONDS) as client:
            return question(client)
    except (TbshareError, OSError):
        return []


def _beginning(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
