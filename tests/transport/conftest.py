"""Lanes for tests: every kind, and files to send over them."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.transport.lane_ends import (
    KINDS,
    Case,
    Kind,
)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    def threads() -> set[threading.Thread]:
        return set(threading.enumerate())

    before, files = threads(), len(os.listdir("/dev/fd"))
    yield KINDS[request.param]()
    assert threads() <= before, "a lane left a thread behind"
    assert len(os.listdir("/dev/fd")) == files, "a lane left a descriptor open"


@pytest.fixture
def case_of(tmp_path: Path) -> Iterator[Callable[[Sequence[int]], Case]]:
    cases: list[Case] = []

    def make(sizes: Sequence[int]) -> Case:
        cases.append(Case(tmp_path, sizes))
        return cases[-1]

    yield make
    for case in cases:
        os.close(case.source)
        os.close(case.destination)
