"""The two ends of a lane, and what stands behind each: the contract every kind of lane keeps.

What both ends promise (tests/transport/test_lane_contract.py holds every implementation to it):

- Callbacks are called in threads of the lane, never in the caller's. `Sink.target` may run beside another
  callback; the others of one end are called one after another.
- `ended` is called exactly once, after everything else, whatever happened: with None when the lane was closed
  here or the other end said goodbye, else with the error. After it the end holds no thread, no socket, no
  buffer and no file.
- `close()` may be called from any thread at any time, more than once; it returns at once and wakes whatever the
  lane waits for. `join()` waits until `ended` has returned.
- A byte that is not what was asked for is never written, and ends the lane.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from tbshare.content.block import block_id_of_row, leaf_row
from tbshare.content.leaves import Run, proven


@dataclass(frozen=True, slots=True)
class Item:
    """One block, or a run of its leaves, to send: `length` bytes at `offset` of the open file `fd`.

    `row` goes before them: the block's row of leaf hashes, when it is a run. `release` is called exactly once, in
    any thread, when the lane no longer needs `fd`: sent, cancelled or ended. It must not block.
    """

    request: int
    fd: int
    offset: int
    length: int
    release: Callable[[], None]
    row: bytes = b""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one expected block goes, or a `run` of its leaves.

    `write` gets the whole block whose id is `block_id`, or the run that was proven to be of it, `length` bytes, in
    a thread of the lane; the view is only good until it returns. It raises OSError when the disk does.
    """

    block_id: bytes
    length: int
    write: Callable[[memoryview], None]
    run: Run | None = None

    @property
    def payload_bytes(self) -> int:
        """What travels: a run has its block's row before it."""
        return self.length + (self.run.row_bytes if self.run is not None else 0)

    def proven(self, payload: memoryview) -> tuple[bytes, memoryview] | None:
        """Return the block's row and what to write of what came; None when it is not what was asked for."""
        if self.run is not None:
            return proven(self.run, self.block_id, payload)
        row = leaf_row(payload)
        return (row, payload) if block_id_of_row(row) == self.block_id else None


class Late(Enum):
    """The type of SKIP."""

    SKIP = "skip"


SKIP: Final = Late.SKIP
"""What `Sink.target` says of a block nobody waits for any more: its bytes are drained and dropped."""


class Sink(Protocol):
    """What a fetcher puts behind a lane; called in the lane's threads, so it only looks up and hands on."""

    def target(self, request: int) -> Target | Late | None:
        """Say where the answer to a request goes; None when it was never asked for, which ends the lane.

        Called once for each header that arrives. Whether one request may be answered twice is decided here.
        """
        ...

    def delivered(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Blocks that were verified and written: (request, row of leaf hashes), in order of arrival."""
        ...

    def failed(self, request: int, error: OSError) -> None:
        """Learn that the block was right and could not be written; the lane goes on."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Learn that the lane is over: None after a goodbye or `close`.

        PeerUnreachable when it was cut, PeerError when the peer broke the protocol, BlockCorrupt when a block
        did not have the id it was asked by.
        """
        ...


class Origin(Protocol):
    """What a provider puts behind a lane; called in the lane's thread."""

    def refused(self, request: int, error: OSError) -> None:
        """Learn that the block could not be read and nothing of it was sent; the lane goes on."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Learn that the lane is over: None after a goodbye or `close`, or when an idle lane was left."""
        ...


class SendEnd(Protocol):
    """The provider's end of a lane."""

    @property
    def bytes_sent(self) -> int:
        """Payload bytes handed to the link so far."""
        ...

    def submit(self, items: Sequence[Item]) -> None:
        """Queue blocks; returns at once. The lane owes `release` for each from here on, also once it is over.

        Raises PeerError, and owes nothing, when the peer has asked for more than the queue takes.
        """
        ...

    def cancel(self, requests: Sequence[int]) -> None:
        """Drop what is queued for these requests; what is being sent goes on, what is unknown is ignored."""
        ...

    def finish(self) -> None:
        """Send what is queued, then goodbye, then end; returns at once."""
        ...

    def close(self) -> None:
        """End now."""
        ...

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until `ended` has returned; False when the time was too short."""
        ...


class ReceiveEnd(Protocol):
    """The fetcher's end of a lane."""

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the link so far, also of blocks that are not whole yet."""
        ...

    @property
    def progress_at_seconds(self) -> float:
        """When bytes last arrived, on the monotonic clock; when the lane was made if none did.

        While a block is under way this is exact to PROGRESS_SECONDS of the implementation.
        """
        ...

    @property
    def block_since_seconds(self) -> float | None:
        """When the block that is under way began; None between blocks. A peer that trickles holds a buffer."""
        ...

    def close(self) -> None:
        """End now; blocks that are not written yet are dropped."""
        ...

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait until `ended` has returned; False when the time was too short."""
        ...
