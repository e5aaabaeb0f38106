"""Unmounts when the process that made a mount is gone: `python -m tbshare.fuse.guard ID KIND DIRECTORY`.

It is started by the mount's own process with a pipe as its input, and reads that to the end. When the end comes
and the mount is still there, then its process was killed, and everything below it would answer "Transport endpoint
is not connected". A mount that was made anew in the meantime has another id and is left alone.
"""

import signal
import sys

from tbshare.fuse import mounting


def main(identifier: int, kind: str, directory: str) -> None:
    """Wait, then unmount if it is still there."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to all of a unit, also to us; we end with the mount's process
    sys.stdin.buffer.read()
    point = mounting.mounted_at(directory, kind)
    if point is not None and point.identifier == identifier:
        mounting.unmount(directory, lazily=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
