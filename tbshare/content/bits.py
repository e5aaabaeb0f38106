"""Sets of small numbers as Python integers: bit i is set when i is in the set.

A 1.2 TB model is 300,000 blocks, 37 KB as one integer; and, or and not on it take microseconds, which is what
lets `plan` stay a pure function over whole sets. On the wire and on disk a set is a list of runs.
"""

from collections.abc import Iterable, Iterator

from tbshare.errors import FormatInvalid

Bits = int

_PART_BITS = 2048  # of a set unpacked at a time: arithmetic on so short an integer is quick
_PART = (1 << _PART_BITS) - 1


def full(count: int) -> Bits:
    """Return the set {0 .. count-1}."""
    return (1 << count) - 1


def of(numbers: Iterable[int]) -> Bits:
    """Return the set of the given numbers."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    return bits


def contains(bits: Bits, number: int) -> bool:
    """Return whether the number is in the set."""
    return bool(bits >> number & 1)


def lowest(bits: Bits) -> int:
    """Return the smallest member; the set must not be empty."""
    assert bits
    return (bits & -bits).bit_length() - 1


def runs(bits: Bits) -> Iterator[tuple[int, int]]:
    """Yield the maximal runs [start, end) in order.

    Works on the binary text: linear in the size of the set, not in the square of it.
    """
    text = bin(bits)[:1:-1] if bits else ""
    start = text.find("1")
    while start >= 0:
        end = text.find("0", start)
        end = len(text) if end < 0 else end
        yield start, end
        start = text.find("1", end)


def members(bits: Bits) -> Iterator[int]:
    """Yield the members in order."""
    for start, end in runs(bits):
        yield from range(start, end)


def to_runs(bits: Bits) -> list[tuple[int, int]]:
    """Return the encoding for wire and disk: the maximal runs as (start, length)."""
    return [(start, end - start) for start, end in runs(bits)]


def from_runs(encoded: Iterable[tuple[int, int]], count: int) -> Bits:
    """Return the set for an encoding from outside; members must be below `count`.

    Raises FormatInvalid unless the runs are ordered, apart, not empty and within bounds.
    """
    bits, previous = 0, -1
    for start, length in encoded:
        if start <= previous or length < 1 or start + length > count:
            raise FormatInvalid(f"runs of numbers are out of order or beyond {count}")
        bits |= full(length) << start
        previous = start + length
    return bits


def ascending(bits: Bits) -> Iterator[int]:
    """Yield the members in order, for a reader that stops early: the first costs a few operations on the set."""
    base = 0
    while bits:
        gap = lowest(bits)
        bits >>= gap
        base += gap
        part = bits & _PART
        while part:
            bit = part & -part
            yield base + bit.bit_length() - 1
            part ^= bit
        bits >>= _PART_BITS
        base += _PART_BITS


def descending(bits: Bits) -> Iterator[int]:
    """Yield the members from the largest down, for a reader that stops early."""
    while bits:
        base = max(0, bits.bit_length() - _PART_BITS)
        part = bits >> base
        bits ^= part << base
        while part:
            top = part.bit_length() - 1
            yield base + top
            part ^= 1 << top


def periodic(pattern: Bits, period: int, count: int) -> Bits:
    """Return the numbers below `count` that are, modulo `period`, in `pattern` (itself below `period`)."""
    assert period > 0
    assert pattern >> period == 0
    bits = pattern
    while period < count:
        bits |= bits << period
        period *= 2
    return bits & full(count)


def planes(sets: Iterable[Bits]) -> list[Bits]:
    """Return, for every number at once, in how many of the sets it is, as binary digits.

    Number i is in sum(2**k for k if i in planes[k]) of the sets. Two operations per set and digit, however
    many numbers there are.
    """
    digits: list[Bits] = []
    for added in sets:
        carry = added
        for place, digit in enumerate(digits):
            if not carry:
                break
            digits[place] = digit ^ carry
            carry &= digit
        if carry:
            digits.append(carry)
    return digits


def by_count(bits: Bits, digits: list[Bits]) -> Iterator[Bits]:
    """Split a set by the counts in `planes`, the rarest part first; parts are apart and not empty."""
    if not bits:
        return
    if not digits:
        yield bits
        return
    often = bits & digits[-1]
    yield from by_count(bits ^ often, digits[:-1])
    yield from by_count(often, digits[:-1])
