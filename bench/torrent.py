"""One BitTorrent peer, for the row `mesh`: python -m bench.torrent seed|fetch DIR TORRENT --listen A,B --peers C,D

Says `ready`, waits for a line, and a fetcher then says `done` when it has everything; both go on until their input
ends. No DHT, no local discovery, no uTP: TCP between the addresses given. Needs libtorrent (PyPI).
"""

import argparse
import importlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

PORT = 6881
PIECE_BYTES = 4 * 1024 * 1024
POLL_SECONDS = 0.005


def make_torrent(directory: Path, torrent: Path) -> None:
    """Write the torrent of a directory."""
    lt: Any = importlib.import_module("libtorrent")
    made = lt.create_torrent(lt.list_files(str(directory)), PIECE_BYTES, lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, str(directory.parent))
    torrent.write_bytes(lt.bencode(made.generate()))


def run(role: str, directory: Path, torrent: Path, listen: list[str], peers: list[str]) -> None:
    """Take part until standard input ends."""
    lt: Any = importlib.import_module("libtorrent")
    settings = dict.fromkeys(
        ["enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp", "enable_incoming_utp", "enable_outgoing_utp"],
        False,
    )
    more = {
        "listen_interfaces": ",".join(f"{address}:{PORT}" for address in listen),
        "min_reconnect_time": 1,
        "allow_multiple_connections_per_ip": True,
        "alert_mask": 0,
    }
    session = lt.session(settings | more)

    def add() -> Any:
        parameters = lt.add_torrent_params()
        parameters.ti = lt.torrent_info(str(torrent))
        parameters.save_path = str(directory)
        parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        if role == "seed":
            parameters.flags |= lt.torrent_flags.seed_mode
        return session.add_torrent(parameters)

    handle = add() if role == "seed" else None
    time.sleep(1)  # its listeners are up
    print("ready", flush=True)
    sys.stdin.readline()
    if handle is None:
        handle = add()
        for peer in peers:
            handle.connect_peer((peer, PORT))
        while not handle.status().is_seeding:
            time.sleep(POLL_SECONDS)
        print("done", flush=True)
    ended = threading.Thread(target=sys.stdin.read, daemon=True)
    ended.start()
    ended.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["make", "seed", "fetch"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("torrent", type=Path)
    parser.add_argument("--listen", default="")
    parser.add_argument("--peers", default="")
    options = parser.parse_args()
    if options.role == "make":
        make_torrent(options.directory, options.torrent)
        return
    peers = [peer for peer in options.peers.split(",") if peer]
    run(options.role, options.directory, options.torrent, options.listen.split(","), peers)


if __name__ == "__main__":
    main()
