"""A log.db that was damaged becomes whole again from what the other nodes have."""

from functools import partial

import trio

from tbshare.daemon.service import Service
from tbshare.errors import LogDamaged
from tbshare.wire.report import Problem

REPAIR_SECONDS = 60.0
POLL_SECONDS = 0.1


async def log_problem(service: Service, *, repair: bool) -> list[Problem]:
    """Return what is wrong with log.db, after mending it from the connected nodes if that is asked for.

    Each node that connects sends what this one lacks, and when all it has is here the log is whole. Alone, what
    could be read of it is all there is.
    """
    try:
        await trio.to_thread.run_sync(service.log.check)
    except LogDamaged as error:  # the next start takes what can be read of it into a new file
        return [Problem("log.db", "", f"{error}; tbshare restart, then tbshare verify --repair")]
    said = service.log.damaged
    if not said:
        return []
    if not repair:
        return [Problem("log.db", "", said)]
    others = await trio.to_thread.run_sync(service.log.trusted)  # what is left of it may name no member
    with trio.move_on_after(REPAIR_SECONDS if others else 0):
        while service.log.damaged:  # noqa: ASYNC110  - the exchange with a peer mends it, in whichever thread
            await trio.sleep(POLL_SECONDS)
    if others and service.log.damaged:
        return [Problem("log.db", "", f"{said}; no other node is connected that has the rest")]
    if not service.log.damaged:
        return [Problem("log.db", "", said, repaired=True)]
    lost = f"{said}; no other node has the rest"
    await trio.to_thread.run_sync(partial(service.log.repaired, lost=lost))
    return [Problem("log.db", "", lost, repaired=True)]
