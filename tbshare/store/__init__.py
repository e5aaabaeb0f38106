"""The disk of one node: where objects, manifests and trees rest. Level 1 of the format.

    FORMAT        "tbshare store", level, store id; locked (flock) by the daemon that has the store open
    index.db      cache: which records, objects, blocks and present blocks there are; may be deleted at any time
    objects/      whole objects, immutable, mode 0444: ab/<id> (exact) or ab/<id>.shifted (`content.layout`)
    objects/pack-NNNNNN   append-only: manifests, trees, objects up to 64 KiB, headers of shifted objects
    partial/      <id>: objects that are arriving, each block at its final offset; presence in the index
    staging/      being written by a mount
    quarantine/   files with corrupt blocks, kept, never read again
    views/        directories of links to objects, for engines that want a path
    tmp/          swept at start, and nothing else is

One file of bytes goes temp -> fsync -> rename -> fsync of the directory (`disk.py`). A pack record is
`TBP1 | kind u8 | 3 zero bytes | length u64 | id 32 | check 16 | payload`, little-endian, the check being BLAKE3
over all the rest; a torn tail is cut off at the next start, and was acknowledged to nobody.

The index can be made again from the packs and the names and bytes of the files: `recover.py` does so for
whatever the index does not know, which after its deletion is everything.
"""
