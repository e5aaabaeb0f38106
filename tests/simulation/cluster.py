"""A simulated cluster: the real log, volumes, index and planner over a faked clock, network and disk.

    python -m tests.simulation.cluster SEED [--shrink]      replays one seed, and finds a shorter script that fails

Everything random comes from the seed of the script, everything that happens is an event of `World`, and nothing
waits: one seed is one run, in milliseconds, of hours that pass in the cluster.
"""

import contextlib
import hashlib
import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from tbshare.errors import TbshareError
from tbshare.volumes.entry import Role, Save, VolumeCreate
from tests.simulation.actions import ACTIONS, User
from tests.simulation.check import Check
from tests.simulation.clock import YEAR_SECONDS, World
from tests.simulation.disk import PowerCut
from tests.simulation.machine import Machine, Process, identity_of
from tests.simulation.network import Network
from tests.simulation.record import Record
from tests.simulation.script import GAPS_SECONDS, WEIGHTS, Action, Script, script_of, shortest

TWINS_MAX = 2  # machines with one key
MACHINES_MAX = 9
SHARE_NO_ADMINS = 0.4
MEMORY = Path("/dev/shm")


class Cluster:
    """The machines of one run."""

    def __init__(self, script: Script, folder: Path) -> None:
        self.script, self.folder = script, folder
        self.random = Random(script.seed ^ 0x5EED)
        self.world = World()
        self.machines: list[Machine] = []
        self.network = Network(self.world, self.random, lambda index: self.machines[index].running)
        self.record = Record()
        self.user = User(self.random, self.record)
        self._trace = hashlib.blake2b(digest_size=16)

    # ---- the run --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do what the script says, mend everything, and check."""
        self._found()
        when = self.world.now
        for action in self.script.actions:
            when += GAPS_SECONDS[action.gap % len(GAPS_SECONDS)]
            self.world.run(when)
            self._perform(action)
        self.heal()
        check = Check(self.machines, self.record, self.random)
        check.all()
        self.note(check.summary)

    @property
    def trace(self) -> str:
        """A digest of all that happened: the same for the same script."""
        return self._trace.hexdigest()

    def note(self, *words: object) -> None:
        """Take something into the trace."""
        self._trace.update(repr((round(self.world.now, 9), *words)).encode())

    def _found(self) -> None:
        """Make the cluster: some machines, a volume, and cables that join all, but seldom each with each."""
        for number in range(self.script.nodes):
            self._new_machine(identity_of(number))
        for machine in self.machines:
            machine.start(self.network)
        first = self._process(self.machines[0])
        first.log.create_cluster(self.machines[0].name)
        first.log.append([VolumeCreate(name="media", mode="media")])
        first.changed()
        for machine in self.machines[1:]:
            self._admit(self.machines[0], machine, "write" if self.random.random() < SHARE_NO_ADMINS else "admin")
        for index in range(1, self.script.nodes):
            self.network.set_cable(self.random.randrange(index), index, True, True)
        for pair in self.network.pairs(self.script.nodes):
            if self.random.random() < 0.4:
                self.network.set_cable(*pair, True, True)
        self.world.run(self.world.now + 10)

    def _new_machine(self, identity: object) -> Machine:
        index = len(self.machines)
        machine = Machine(index, identity, self.folder, self.world, self.random)  # type: ignore[arg-type]
        self.machines.append(machine)
        self.network.add_machine(index)
        return machine

    @staticmethod
    def _process(machine: Machine) -> Process:
        assert machine.running is not None
        return machine.running

    def _admit(self, member: Machine, newcomer: Machine, role: Role) -> None:
        """Pair a machine with a member."""
        inside, outside = self._process(member), self._process(newcomer)
        identity = newcomer.identity
        inside.log.add_member(identity.certificate, newcomer.name, role)
        outside.log.join(inside.log.cluster, certificate=member.identity.certificate, name=member.name)
        inside.changed()
        outside.changed()

    def _perform(self, action: Action) -> None:
        machine = self.machines[action.who % len(self.machines)]
        outcome = "done"
        try:
            if action.kind in FAULTS:
                FAULTS[action.kind](self, machine, action)
            else:
                on = [
                    other.running for other in (*self.machines[machine.index :], *self.machines) if other.running
                ]
                if not on:
                    return
                process = on[0]
                try:
                    self.user.act(process, action)
                finally:
                    process.guarded(process.changed)
        except TbshareError as error:
            outcome = type(error).__name__
        except PowerCut:
            outcome = "PowerCut"
            for other in self.machines:
                if other.running is not None and not other.power.on:
                    other.stop(self.network, cut=True)
        self.record.count(f"{action.kind} {outcome}")
        self.note(action, outcome)

    # ---- faults ---------------------------------------------------------------------------------------

    def _pair(self, machine: Machine, number: int) -> tuple[int, int] | None:
        others = [index for index in range(len(self.machines)) if index != machine.index]
        return (machine.index, others[number % len(others)]) if others else None

    def cut(self, machine: Machine, action: Action) -> None:
        if action.two % 4 == 0:  # a partition: all cables between two halves
            near = {index for index in range(len(self.machines)) if action.one >> index & 1}
            for cable in list(self.network.cables):
                if (cable[0] in near) != (cable[1] in near):
                    self.network.set_cable(*cable, False, False)
        elif pair := self._pair(machine, action.one):
            self.network.set_cable(*pair, False, False)

    def cut_one_way(self, machine: Machine, action: Action) -> None:
        if pair := self._pair(machine, action.one):
            self.network.set_cable(*pair, action.two % 2 == 0, action.two % 2 == 1)

    def mend(self, machine: Machine, action: Action) -> None:
        if action.two % 3 == 0:
            for cable in list(self.network.cables):
                self.network.set_cable(*cable, True, True)
        elif pair := self._pair(machine, action.one):
            self.network.set_cable(*pair, True, True)

    def crash(self, machine: Machine, _: Action) -> None:
        machine.stop(self.network, cut=True)

    def crash_at_commit(self, machine: Machine, action: Action) -> None:
        machine.power.cut_at(action.one % 4, before=action.two % 2 == 0)

    def switch_off(self, machine: Machine, _: Action) -> None:
        machine.stop(self.network, cut=False)

    def switch_on(self, machine: Machine, action: Action) -> None:
        if machine.running is None:
            machine.start(self.network)
        elif action.two % 2:  # another one that is off
            off = [other for other in self.machines if other.running is None]
            if off:
                off[action.one % len(off)].start(self.network)

    def back_up(self, machine: Machine, _: Action) -> None:
        machine.back_up()

    def restore_backup(self, machine: Machine, action: Action) -> None:
        """Put an older disk back; what was on the present one and nowhere else is lost, and that is no fault."""
        if not machine.backups:
            return
        machine.stop(self.network, cut=True)
        before, objects = machine.entries(), machine.objects.records.keys()
        backup = machine.backups[action.one % len(machine.backups)]
        machine.restore(backup, log_only=action.two % 3 == 0)
        self.record.lost |= objects - machine.objects.records.keys()
        lost = before.keys() - machine.entries().keys()
        for other in self.machines:
            if lost and other is not machine:
                lost -= other.entries().keys()
        for known in lost:
            saves = [op for op in before[known].ops if isinstance(op, Save)]
            self.record.excused |= {(op.file, op.version) for op in saves}
        if action.two % 2:
            machine.start(self.network)

    def clone(self, machine: Machine, _: Action) -> None:
        """Copy the disk, key and all, into another machine; both go on."""
        twins = sum(other.identity.node == machine.identity.node for other in self.machines)
        if len(self.machines) >= MACHINES_MAX or not machine.has_disk() or twins >= TWINS_MAX:
            return  # more than there are others could never all be connected at once
        twin = self._new_machine(machine.identity)
        twin.name, twin.removed = machine.name, machine.removed
        twin.become(machine)
        for other in range(twin.index):
            if all(self.network.cables.get((min(other, machine.index), max(other, machine.index)), [False])):
                self.network.set_cable(other, twin.index, True, True)
        twin.start(self.network)

    def clock_jump(self, machine: Machine, action: Action) -> None:
        machine.clock.jump((action.one / 32768 - 1) * 10 * YEAR_SECONDS)

    def clock_rate(self, machine: Machine, action: Action) -> None:
        machine.clock.run_at((10.0, 1.0, 0.1)[action.one % 3])

    def join(self, machine: Machine, action: Action) -> None:
        if len(self.machines) >= MACHINES_MAX or machine.running is None or not _is_admin(machine.running):
            return
        newcomer = self._new_machine(identity_of(len(self.machines)))
        newcomer.start(self.network)
        self.network.set_cable(machine.index, newcomer.index, True, True)
        try:
            self._admit(machine, newcomer, "write" if action.two % 3 == 0 else "admin")
        except PowerCut:
            machine.stop(self.network, cut=True)

    def remove_node(self, machine: Machine, action: Action) -> None:
        members = [other for other in self.machines if other.identity.node != machine.identity.node]
        if machine.running is None or len({m.identity.node for m in self.machines if not m.removed}) < 3:
            return
        gone = members[action.one % len(members)]
        try:
            machine.running.log.remove_member(gone.identity.node)
        finally:
            if machine.power.on:
                machine.running.guarded(machine.running.changed)
        for other in self.machines:
            other.removed |= other.identity.node == gone.identity.node

    # ---- the end --------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Mend all cables and start all machines; of machines with one key, each in turn has the cables."""
        for machine in self.machines:
            machine.power.keep()
            if machine.running is None:
                machine.start(self.network)
        for turn in self._turns():
            for pair in list(self.network.cables):
                works = set(pair) <= turn
                self.network.set_cable(*pair, works, works)
            self.world.run()
            if self._pair_again():
                self.world.run()
            self.note("settled", self.network.messages)

    def _pair_again(self) -> bool:
        """Let those back in that joined by a member whose disk was put back since: nobody else knew of them."""
        strangers: dict[bytes, tuple[Process, Machine]] = {}
        for machine in self.machines:
            for other in self.machines:
                member, stranger = self._process(other), self._process(machine)
                known = member.log.state()
                is_known = {*known.members, *known.removed_members}
                if _is_admin(member) and stranger.key not in is_known and stranger.trusts(member.key):
                    strangers[stranger.key] = member, machine
        for member, machine in strangers.values():
            member.log.add_member(machine.identity.certificate, machine.name)
            member.changed()
        return bool(strangers)

    def _turns(self) -> list[set[int]]:
        """Return which machines have the cables, one set after the other: twins never together, all sets twice."""
        twins: dict[bytes, list[int]] = {}
        for machine in self.machines:
            twins.setdefault(machine.identity.node, []).append(machine.index)
        return 2 * [set(turn) for turn in itertools.product(*twins.values())]


def _is_admin(process: Process) -> bool:
    member = process.log.state().members.get(process.key)
    return member is not None and member.role == "admin"


FAULTS: dict[str, Callable[[Cluster, Machine, Action], None]] = {
    kind: getattr(Cluster, kind) for kind in WEIGHTS if kind not in ACTIONS
}


def run(script: Script) -> Cluster:
    """Run a script to its end, and return the cluster, its disks thrown away."""
    folder = Path(tempfile.mkdtemp(prefix="tbshare-simulation-", dir=MEMORY if MEMORY.is_dir() else None))
    cluster = Cluster(script, folder)
    try:
        cluster.run()
    except BaseException as error:
        error.add_note(f"replay: python -m tests.simulation.cluster {script.seed}")
        raise
    finally:
        for machine in cluster.machines:
            if machine.running is not None:
                with contextlib.suppress(Exception, PowerCut):
                    machine.running.close()
        shutil.rmtree(folder)
    return cluster


def main(arguments: list[str]) -> None:
    """Replay a seed."""
    script = script_of(int(arguments[0]))
    if "--shrink" in arguments:
        script = shortest(script, fails)
        sys.stdout.write(f"{script}\n")
    cluster = run(script)
    hours, counts = cluster.world.now / 3600, sorted(cluster.record.counts.items())
    sys.stdout.write(f"{script}\n{cluster.trace} {hours:.1f} h, {cluster.world.events} events\n{counts}\n")


def fails(script: Script) -> bool:
    """Say whether a script fails."""
    try:
        run(script)
    except Exception:  # noqa: BLE001  whatever it is
        return True
    return False


if __name__ == "__main__":
    main(sys.argv[1:])
