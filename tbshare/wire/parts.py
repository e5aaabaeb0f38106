"""What requests and answers on the control socket are made of: the bases of their structs. Pure.

Fields added later need defaults.
"""

from typing import Annotated

import msgspec

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Params(msgspec.Struct, frozen=True):
    """Base of what goes into a method."""


class Result(msgspec.Struct, frozen=True):
    """Base of what comes out of a method."""


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """Base of what a method says on its way."""


class Line(msgspec.Struct, frozen=True):
    """Base of the parts that results and events are made of."""
