"""Network namespaces joined by cables, each with each, that can be cut: for real daemons. Needs root."""

import contextlib
import os
import subprocess
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import combinations


def _root(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@dataclass(frozen=True)
class Cables:
    """Namespaces 0 .. n-1 and the cables between them."""

    tag: str
    count: int

    def namespace(self, number: int) -> str:
        """Return the name of a namespace."""
        return f"tbt{self.tag}-{number}"

    def prefix(self, number: int) -> list[str]:
        """Return what goes before a command that is to run there."""
        return ["ip", "netns", "exec", self.namespace(number)]

    @staticmethod
    def address(number: int, other: int) -> str:
        """Return the address of `number` on its cable to `other`."""
        low, high = sorted((number, other))
        return f"10.81.{16 * low + high}.{1 if number == low else 2}"

    def device(self, number: int, other: int) -> str:
        """Return the end of a cable."""
        return f"tt{self.tag}{number}{other}"

    def pairs(self) -> Sequence[tuple[int, int]]:
        """Return which namespaces have a cable: all pairs."""
        return tuple(combinations(range(self.count), 2))

    def set_cable(self, pair: tuple[int, int], *, works: bool) -> None:
        """Pull a cable out, or put it back: both ends lose their carrier."""
        low, high = pair
        word = "up" if works else "down"
        _root("ip", "-n", self.namespace(low), "link", "set", self.device(low, high), word)

    def limit(self, pair: tuple[int, int], megabits: int) -> None:
        """Let a cable take so much a second, each way; what comes faster waits for up to 50 ms."""
        shape = f"root tbf rate {megabits}mbit burst 256kb latency 50ms".split()
        for number, other in (pair, pair[::-1]):
            device = self.device(number, other)
            _root("tc", "-n", self.namespace(number), "qdisc", "replace", "dev", device, *shape)


@contextlib.contextmanager
def cabled(count: int) -> Generator[Cables]:
    """Make the namespaces and cables; remove them at the end, after what ran there has ended."""
    cables = Cables(f"{os.getpid() % 100_000}", count)
    made: list[int] = []
    try:
        for number in range(count):
            _root("ip", "netns", "add", cables.namespace(number))
            made.append(number)
            _root("ip", "-n", cables.namespace(number), "link", "set", "lo", "up")
        for pair in cables.pairs():
            names = [cables.device(*pair), cables.device(*pair[::-1])]
            _root("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1])
            for (number, other), name in zip((pair, pair[::-1]), names, strict=True):
                space = cables.namespace(number)
                _root("ip", "link", "set", name, "netns", space)
                _root("ip", "-n", space, "addr", "add", f"{cables.address(number, other)}/30", "dev", name)
                _root("ip", "-n", space, "link", "set", name, "up")
        yield cables
    finally:
        for number in made:
            subprocess.run(["ip", "netns", "del", cables.namespace(number)], check=False)
