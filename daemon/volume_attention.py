"""What of the volumes needs the user: the lines that `status` opens with."""

from tbshare.daemon.service import Service
from tbshare.errors import TbshareError
from tbshare.volumes.volume import Handle
from tbshare.wire.report import Attention

CONFLICTS_COUNTED = 1000


def volume_attention(service: Service) -> list[Attention]:
    """Return conflicts, full quotas and damage; touches the disk."""
    lines: list[Attention] = []
    if service.log.damaged:
        lines.append(Attention("log", service.log.damaged, "tbshare verify --repair"))
    if service.log.lost:
        text = f"{service.log.lost}: no garbage is collected, as it may be bytes that only the log named"
        lines.append(Attention("log", text, "tbshare gc --now"))
    if service.spread.draining:
        lines.append(Attention("drain", "this node was drained and takes no copies", "tbshare undrain"))
    for node in service.log.unheeding():
        name = service.log.state().members[node].name
        text = f"{name} goes on writing where its role, or the ownership, was taken from it"
        lines.append(Attention("role", text, f"tbshare node rm {name}"))
    for handle in service.volumes.handles():
        try:
            lines += _of_volume(service, handle)
        except TbshareError as error:
            lines.append(Attention("volume", f"{handle.name}: {error}", error.cure or "tbshare verify --repair"))
    return lines


def _of_volume(service: Service, handle: Handle) -> list[Attention]:
    lines: list[Attention] = []
    count = len(handle.conflicts(CONFLICTS_COUNTED))
    if count:
        number = f"{count} or more" if count == CONFLICTS_COUNTED else str(count)
        what = "path is" if count == 1 else "paths are"
        text = f"{handle.name}: {number} {what} shown in several versions"
        lines.append(Attention("conflict", text, f"tbshare conflicts {handle.name}"))
    totals = handle.totals()
    if totals.quota_bytes and totals.size_bytes > totals.quota_bytes:
        used, most = totals.size_bytes / 1e9, totals.quota_bytes / 1e9
        text = f"{handle.name} takes {used:.2f} GB, its quota is {most:.2f} GB"
        lines.append(Attention("quota", text, f"tbshare volume set {handle.name} --quota SIZE"))
    why = handle.why_read_only
    if why and service.log.state().may_write(handle.id, service.identity.node):
        lines.append(Attention("volume", f"{handle.name} is read-only: {why}", "tbshare verify --repair"))
    return lines
