"""The rules by which a file is cut into blocks. A rule is named and versioned in the manifest and never changed.

`fixed-1`: 4 MiB from byte 0, the last block shorter.

`tensors-1`: a new block starts where the data of a weights file starts, and at the start and at the end of
every tensor of TENSOR_BYTES_MIN or more; what lies between two such places is cut in 4 MiB from its start. A
tensor so has the same blocks wherever it stands and whatever stands before it. Smaller tensors, and gaps, share
blocks with their neighbours: `bench/dedup.py` shows what that costs and saves at several thresholds.
"""

from collections.abc import Sequence

from tbshare.content.block import BLOCK_BYTES
from tbshare.content.weights import Header, Tensor
from tbshare.errors import FormatInvalid

FIXED = "fixed-1"
TENSORS = "tensors-1"
TENSOR_BYTES_MIN = 64 * 1024


def lengths(cut: str, size: int, data_start: int = 0, tensors: Sequence[Tensor] = ()) -> list[int]:
    """Return the lengths of the blocks, in order; their sum is `size`. An empty file has no block.

    FormatInvalid for a rule this version does not know.
    """
    if cut == FIXED:
        return _pieces(size)
    if cut == TENSORS:
        return tensor_lengths(size, data_start, tensors, TENSOR_BYTES_MIN)
    raise FormatInvalid(f"cut by a rule this version does not know: {cut!r}")


def tensor_lengths(size: int, data_start: int, tensors: Sequence[Tensor], tensor_bytes_min: int) -> list[int]:
    """Return the lengths of the blocks under `tensors-1` with a given threshold.

    `tensors` are ordered by start and do not overlap, as `weights.checked` leaves them.
    """
    result = _pieces(data_start)
    position = data_start
    for tensor in tensors:
        if tensor.end - tensor.start < tensor_bytes_min:
            continue
        result += _pieces(tensor.start - position)
        result += _pieces(tensor.end - tensor.start)
        position = tensor.end
    return result + _pieces(size - position)


def rule_for(header: Header | None) -> str:
    """Return the rule for a new object: by tensors where a header could be read."""
    return FIXED if header is None else TENSORS


def _pieces(size: int) -> list[int]:
    whole, rest = divmod(size, BLOCK_BYTES)
    return [BLOCK_BYTES] * whole + ([rest] if rest else [])
