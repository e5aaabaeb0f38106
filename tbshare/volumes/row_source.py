"""Where the rows lie that the fold of a namespace asks for and has not in memory. Pure."""

from collections.abc import Iterable
from typing import Protocol

from tbshare.volumes.rows import DirectoryRow, FileRow, MoveRow, NameRow, VersionRow


class Source(Protocol):
    """Where rows lie that are not in memory. Each method returns None, or nothing, for what there is not."""

    def name(self, name: int) -> NameRow | None:
        """Return the row of a name."""
        ...

    def directory(self, directory: int) -> DirectoryRow | None:
        """Return the row of a directory."""
        ...

    def file(self, file: int) -> FileRow | None:
        """Return the row of a file."""
        ...

    def version(self, key: tuple[int, int]) -> VersionRow | None:
        """Return the row of a version."""
        ...

    def versions_of(self, file: int) -> Iterable[VersionRow]:
        """Return all versions of a file."""
        ...

    def move(self, stamp: bytes) -> MoveRow | None:
        """Return the Move of this stamp."""
        ...

    def moves_from(self, stamp: bytes) -> Iterable[MoveRow]:
        """Return the Moves of this stamp and later ones."""
        ...


class Nothing:
    """The source of a namespace that is all in memory."""

    def name(self, name: int) -> None:
        """Know no name."""

    def directory(self, directory: int) -> None:
        """Know no directory."""

    def file(self, file: int) -> None:
        """Know no file."""

    def version(self, key: tuple[int, int]) -> None:
        """Know no version."""

    def versions_of(self, file: int) -> tuple[()]:
        """Know no version."""
        return ()

    def move(self, stamp: bytes) -> None:
        """Know no Move."""

    def moves_from(self, stamp: bytes) -> tuple[()]:
        """Know no Move."""
        return ()
