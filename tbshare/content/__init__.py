"""What the data is: pure values and their encodings. Nothing here reads a clock, a disk or a socket.

A *block* is up to 4 MiB of a file; its id is a hash over the hashes of its 256 KiB *leaves* (`block.py`).
A *cut* says where a file's blocks begin (`cut.py`). A *manifest* lists one file's blocks (`manifest.py`); its
hash is the *object id*. A *tree* lists a directory (`tree.py`); its hash is the tree id. Every encoding is
canonical: equal values have one encoding, and decoding any other bytes raises `FormatInvalid`.
"""
