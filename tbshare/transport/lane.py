"""What both ends of a TCP lane need: how to dial one, how to set its socket, and how to be polite to control."""

import fcntl
import os
import select
import socket
import struct
import sys
import termios
import threading

from tbshare.errors import PeerUnreachable
from tbshare.wire import lane, limits

NICE = 10
ROUND_TRIP_SECONDS_MAX = 1.0
_MIN_RTT_AT = 148  # tcpi_min_rtt in struct tcp_info, microseconds
# How exactly the age of the last byte is known. A read for the rest of a block returns after this long with what
# there is, so that a slow cable is not taken for a dead one (limits.LANE_SUSPECT_SECONDS).
PROGRESS_SECONDS = 0.1
assert PROGRESS_SECONDS * 4 < limits.LANE_SUSPECT_SECONDS


def lower_priority() -> None:
    """Make the calling thread nice: measured, bulk at nice +10 is what keeps control under 5 ms when CPU is short.

    Linux alone has a priority for each thread; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def prepare(connection: socket.socket) -> None:
    """Set a connected stream socket up as an end of a lane: blocking, and no waiting for a fuller segment.

    Buffer sizes are left alone: setting them turns autotuning off, which was slower at every size tried.
    """
    connection.settimeout(None)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    microseconds = int(PROGRESS_SECONDS * 1e6)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, microseconds))


def hold_little(connection: socket.socket, byte_count: int) -> None:
    """Let at most so many bytes wait in a socket for their turn to be sent, where that can be said."""
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, option, byte_count)


def outgoing_bytes(connection: socket.socket) -> int:
    """Return how many bytes of what was written are not acknowledged yet: in the socket, in queues, on the way."""
    count = bytearray(4)
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, count)
    return int.from_bytes(count, sys.byteorder)


def round_trip_seconds(connection: socket.socket) -> float:
    """Return the least round trip the kernel has seen on a connection; 0.0 where it does not say."""
    if sys.platform == "linux" and connection.family in (socket.AF_INET, socket.AF_INET6):
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_AT + 4)
        if len(told) == _MIN_RTT_AT + 4:
            return min(int.from_bytes(told[_MIN_RTT_AT:], sys.byteorder) / 1e6, ROUND_TRIP_SECONDS_MAX)
    return 0.0


def connect_lane(
    address: tuple[str, int],
    number: int,
    token: bytes,
    *,
    timeout_seconds: float = limits.HANDSHAKE_SECONDS,
    source: str = "",
) -> socket.socket:
    """Dial a lane and greet; blocks for up to `timeout_seconds`. Returns the socket for a ReceiveLane.

    `source` is the local address to leave by (the cable), or empty. Raises PeerUnreachable. Whether the
    provider takes the token is seen only when it answers requests, or closes.
    """
    try:
        connection = socket.create_connection(
            address, timeout_seconds, source_address=(source, 0) if source else None
        )
    except OSError as error:
        raise PeerUnreachable(f"no lane to {address[0]}:{address[1]}: {error}") from error
    try:
        connection.sendall(lane.greeting(number, token))
        prepare(connection)
    except OSError as error:
        connection.close()
        raise PeerUnreachable(f"the lane to {address[0]}:{address[1]} broke at once: {error}") from error
    return connection


def wait_readable(*connections: socket.socket) -> set[int]:
    """Block until one of the sockets has bytes, an end or an error; return the descriptors of those that have."""
    poller = select.poll()
    for connection in connections:
        poller.register(connection, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll()}


def shut(connection: socket.socket) -> None:
    """End both directions, which wakes whoever blocks on the socket; a socket that is over already is fine."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # not connected any more, or closed: nobody can be blocked on it
