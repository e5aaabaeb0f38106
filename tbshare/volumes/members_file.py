"""Which cluster this node is in and whom it trusts, in a small file beside log.db.

It is for the day that log.db is damaged so far that it does not even say who the members are: everything else the
log had comes back from them. It is read on that day alone.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tbshare.errors import TbshareError
from tbshare.store.disk import write_durably

_log = logging.getLogger("tbshare.volumes.members_file")


@dataclass
class MembersFile:
    """What is in the file. Without a path nothing is kept."""

    path: Path | None = None
    cluster: bytes = b""
    certificates: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])  # node -> certificate

    @classmethod
    def beside(cls, log: Path) -> "MembersFile":
        """Return the file that belongs to a log.db; empty when it is not there, or cannot be read."""
        path = log.with_name("members.json")
        with suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            said = json.loads(path.read_text())
            certificates = {
                bytes.fromhex(node): bytes.fromhex(text) for node, text in said["certificates"].items()
            }
            return cls(path, bytes.fromhex(said["cluster"]), certificates)
        return cls(path)

    def write(self, cluster: bytes, certificates: Mapping[bytes, bytes]) -> None:
        """Keep these, durably, unless they are what is kept already."""
        if self.path is None or (cluster, certificates) == (self.cluster, self.certificates):
            return
        said = {
            "cluster": cluster.hex(),
            "certificates": {node.hex(): text.hex() for node, text in certificates.items()},
        }
        try:
            data = json.dumps(said, indent=1).encode()
            write_durably(self.path, data, temporary=self.path.with_suffix(".new"))
        except (OSError, TbshareError) as error:  # the log has it; it is written with the next change, or start
            _log.warning("members.json was not written: %s", error)
            return
        self.cluster, self.certificates = cluster, dict(certificates)
