"""Ops that wait to be committed: who waits at the same time shares a commit and, as far as they fit, an entry."""

from collections.abc import Sequence
from typing import Final

from tbshare.errors import InputRefused
from tbshare.volumes.entry import OPS_MAX, AnyOp, Entry, encode_op
from tbshare.wire import limits

OPS_BYTES_MAX: Final = limits.ENTRY_BYTES_MAX - 4096  # the rest of an entry is below 300 bytes


class Batch:
    """The ops of one caller, and what became of them.

    FormatInvalid or InputRefused when they could never be an entry, before anyone else is drawn in.
    """

    def __init__(self, ops: Sequence[AnyOp]) -> None:
        self.ops = tuple(ops)
        self.bytes = sum([len(encode_op(op)) for op in ops])
        self.entry: Entry | None = None
        self.error: BaseException | None = None
        if not ops or len(ops) > OPS_MAX or self.bytes > OPS_BYTES_MAX:
            raise InputRefused(f"{len(ops)} ops of {self.bytes} bytes do not make one entry")


def groups_of(batches: Sequence[Batch]) -> list[list[Batch]]:
    """Return the batches in order, in groups that each fit one entry."""
    groups: list[list[Batch]] = []
    ops = size = 0
    for batch in batches:
        if not groups or ops + len(batch.ops) > OPS_MAX or size + batch.bytes > OPS_BYTES_MAX:
            groups.append([])
            ops = size = 0
        groups[-1].append(batch)
        ops += len(batch.ops)
        size += batch.bytes
    return groups
