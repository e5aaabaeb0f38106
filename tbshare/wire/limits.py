"""Every number both sides must agree on, and how far one side trusts the other."""

from tbshare.content.block import BLOCK_BYTES

LEVEL = 3  # of the wire; N talks to N-1
LEVEL_VOLUMES = 2  # the least that knows of versions of files
LEVEL_LEAVES = 3  # the least that gives leaves of a block
LEVEL_OLDEST = 1

ENVELOPE_BYTES_MAX = 2 * 1024 * 1024  # one control message; larger things are sent in parts
RECORD_PART_BYTES = 1024 * 1024  # a manifest or tree travels in parts of this size
RECORD_BYTES_MAX = 64 * 1024 * 1024  # a manifest of a 7 TB file; a tree of half a million names
RECORDS_PER_REQUEST = 256
BLOCKS_PER_FETCH = 64
VERSIONS_MAX = 4096  # of files, named in one message
ANCESTORS_MAX = 4096  # directories above the one thing a lease is on
LEASE_IDS_PER_MESSAGE = 100_000  # of leases, with the directories above them: 900 kB
ENTRY_BYTES_MAX = 1024 * 1024  # one signed batch of ops

HEARTBEAT_SECONDS = 0.5
NODE_GONE_SECONDS = 3.0  # architecture.md: a node is gone after 3 s without heartbeat
LANE_SUSPECT_SECONDS = 0.5  # a lane with requests outstanding and no bytes for this long
HANDSHAKE_SECONDS = 5.0
STRANGERS_MAX = 16  # unauthenticated connections at once

DEFAULT_PORT = 7347

assert RECORD_PART_BYTES * 2 <= ENVELOPE_BYTES_MAX
assert HEARTBEAT_SECONDS * 4 < NODE_GONE_SECONDS
assert BLOCK_BYTES > RECORD_PART_BYTES
