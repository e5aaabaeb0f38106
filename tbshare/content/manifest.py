"""The manifest: what one file's bytes are. Its hash is the object id.

Encoding: a msgpack array [level, size, cut, format, data_start, block ids joined, tensors], a tensor being
[name, dtype, shape, start, end]. Lengths of blocks follow from the cut and are not said. There is one encoding
of each manifest: decoding checks by encoding again.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import msgspec

from tbshare.content import cut as cuts
from tbshare.content.block import BLOCK_BYTES, HASH_BYTES, BlockId, ObjectId, named_hash
from tbshare.content.weights import HEADER_BYTES_MAX, Header, Tensor, checked
from tbshare.errors import FormatInvalid, HeaderInvalid

LEVEL = 1
OBJECT_CONTEXT = "tbshare 2026-11-23 object id from manifest"
SIZE_MAX = 1 << 50
HEADER_SLACK_BYTES = 1 << 20  # a GGUF header is padded to its alignment

_TensorRow = tuple[str, str, list[int], int, int]


class _Encoded(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    level: int
    size: int
    cut: str
    format: str
    data_start: int
    blocks: bytes
    tensors: list[_TensorRow]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Encoded)


class Manifest:
    """Size, cut, blocks in order and, for weights, the tensors of one file. Immutable, compared by id."""

    def __init__(self, size: int, cut: str, blocks: bytes, header: Header | None) -> None:
        """Take the block ids joined; `header` is given when the cut is by tensors."""
        self.size = size
        self.cut = cut
        self.blocks = blocks
        self.header = header
        if len(blocks) != HASH_BYTES * len(self.lengths):
            raise FormatInvalid("a manifest names more or fewer blocks than its size and cut give")

    @cached_property
    def lengths(self) -> list[int]:
        """Lengths of the blocks, in bytes."""
        if self.header is None:
            return cuts.lengths(self.cut, self.size)
        return cuts.lengths(self.cut, self.size, self.header.data_start, self.header.tensors)

    @cached_property
    def offsets(self) -> list[int]:
        """Where each block starts in the file, and at the end the file's size."""
        return list(accumulate(self.lengths, initial=0))

    @property
    def block_count(self) -> int:
        """How many blocks the file has."""
        return len(self.lengths)

    def block(self, index: int) -> BlockId:
        """Return the id of block `index`."""
        return BlockId(self.blocks[index * HASH_BYTES : (index + 1) * HASH_BYTES])

    @cached_property
    def encoded(self) -> bytes:
        """The canonical encoding."""
        header = self.header
        rows: list[_TensorRow] = [
            (tensor.name, tensor.dtype, list(tensor.shape), tensor.start, tensor.end)
            for tensor in (header.tensors if header else ())
        ]
        return _encoder.encode(
            _Encoded(
                LEVEL,
                self.size,
                self.cut,
                header.format if header else "",
                header.data_start if header else 0,
                self.blocks,
                rows,
            )
        )

    @cached_property
    def id(self) -> ObjectId:
        """The object id."""
        return ObjectId(named_hash(OBJECT_CONTEXT, [self.encoded]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)


def of_blocks(size: int, header: Header | None, blocks: Sequence[bytes]) -> Manifest:
    """Return the manifest of a file whose blocks, in the order of its cut, have these ids."""
    return Manifest(size, cuts.rule_for(header), b"".join(blocks), header)


def decode(data: bytes) -> Manifest:
    """Return the manifest; FormatInvalid when the bytes are not the one encoding of one."""
    try:
        fields = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FormatInvalid(f"not a manifest: {error}") from error
    if fields.level != LEVEL:
        raise FormatInvalid(f"a manifest of level {fields.level}; this version reads {LEVEL}")
    if not 0 <= fields.size <= SIZE_MAX:
        raise FormatInvalid("a manifest of impossible size")
    # Before the cut is worked out: a few bytes must not make us list a million blocks.
    if fields.size > len(fields.blocks) // HASH_BYTES * BLOCK_BYTES:
        raise FormatInvalid("a manifest with too few blocks for its size")
    manifest = Manifest(fields.size, fields.cut, fields.blocks, _header(fields))
    if manifest.encoded != data:
        raise FormatInvalid("a manifest in other than its one encoding")
    return manifest


def _header(fields: _Encoded) -> Header | None:
    if fields.cut == cuts.FIXED:
        if fields.format or fields.data_start or fields.tensors:
            raise FormatInvalid("a manifest cut in fixed blocks names tensors")
        return None
    if not 0 <= fields.data_start <= min(fields.size, HEADER_BYTES_MAX + HEADER_SLACK_BYTES):
        raise FormatInvalid("a manifest whose data starts outside the file")
    rows = [Tensor(name, dtype, tuple(shape), start, end) for name, dtype, shape, start, end in fields.tensors]
    try:
        return checked(fields.format, fields.data_start, rows, fields.size)
    except HeaderInvalid as error:
        raise FormatInvalid(f"a manifest whose tensors make no sense: {error}") from error
