"""Finding the machine that shows a pairing code, by multicast DNS (RFC 6762, 6763).

A node is announced as `_tbshare._tcp` only while it shows a code, with its name and port and nothing else. What
answers is only an address to try: who it is, the code proves.
"""

import ipaddress
import logging
import time
from collections.abc import Sequence

from zeroconf import Error, ServiceInfo, ServiceListener, Zeroconf
from zeroconf import ServiceBrowser as Browser

_log = logging.getLogger("tbshare.peers.discovery")
SERVICE = "_tbshare._tcp.local."
ANSWER_MILLISECONDS = 1000


class Announcement:
    """An announcement that stands until it is closed."""

    def __init__(self, responder: Zeroconf, info: ServiceInfo) -> None:
        self._responder, self._info = responder, info

    def close(self) -> None:
        """Take it back."""
        try:
            self._responder.unregister_service(self._info)
        except (Error, OSError) as error:
            _log.debug("an announcement could not be taken back: %s", error)
        self._responder.close()


def announce(name: str, short_id: str, addresses: Sequence[str], port: int) -> Announcement | None:
    """Announce this node; None where multicast does not work, which only means that an address must be typed."""
    hosts = [host for address in addresses if (host := address.rpartition(":")[0].strip("[]"))]
    packed = [ipaddress.ip_address(host.partition("%")[0]).packed for host in hosts if _is_reachable(host)]
    if not packed:
        return None
    try:
        responder = Zeroconf()
    except OSError as error:
        _log.info("nothing is announced: %s", error)
        return None
    info = ServiceInfo(
        SERVICE, f"{name}-{short_id}.{SERVICE}", addresses=packed, port=port, properties={"name": name}
    )
    try:
        responder.register_service(info, cooperating_responders=True)
    except (Error, OSError) as error:
        _log.info("nothing is announced: %s", error)
        responder.close()
        return None
    return Announcement(responder, info)


def _is_reachable(host: str) -> bool:
    """Return whether another machine could dial this."""
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class _Found(ServiceListener):
    """Collects what a browser hears."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Take an announcement in."""
        info = zc.get_service_info(type_, name, ANSWER_MILLISECONDS)
        if info is None or info.port is None:
            return
        for host in info.parsed_addresses():
            shown = f"[{host}]" if ":" in host else host
            self.addresses.setdefault(name.removesuffix(f".{SERVICE}"), f"{shown}:{info.port}")

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Take a changed announcement in."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Forget an announcement that was taken back."""
        self.addresses.pop(name.removesuffix(f".{SERVICE}"), None)


def look_around(seconds: float) -> dict[str, str]:
    """Listen for so long; return name -> address of the nodes that show a code. Blocks; call it in a thread."""
    try:
        listener = Zeroconf()
    except OSError as error:
        _log.info("cannot look around: %s", error)
        return {}
    found = _Found()
    browser = Browser(listener, SERVICE, found)
    try:
        time.sleep(seconds)
        return dict(found.addresses)
    finally:
        browser.cancel()
        listener.close()
