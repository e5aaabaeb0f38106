"""Which errno the asker gets when a request failed, and what goes to the log."""

import errno
import logging

from tbshare.errors import FileError
from tbshare.fuse.operations import FuseError
from tbshare.fuse.protocol import Malformed

_log = logging.getLogger(__name__)


def number_of(error: Exception, request: str) -> int:
    """Return the errno for a failed request; what is not meant to happen is EIO, and logged."""
    if isinstance(error, FuseError | FileError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, Malformed):
        _log.error("%s not understood: %s", request, error)
    else:
        _log.error("%s failed", request, exc_info=error)
    return errno.EIO
