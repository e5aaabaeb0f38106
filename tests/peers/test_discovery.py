"""Announcing a pairing code: only to where another machine could dial, and found by who looks around."""

import pytest

from tbshare.peers import discovery


@pytest.mark.parametrize("address", ["127.0.0.1:7347", "[::1]:7347", "not-an-address:1", ""])
def test_what_nobody_else_could_dial_is_not_announced(address: str) -> None:
    assert discovery.announce("ada", "01020304", [address], 7347) is None


def test_a_taken_back_announcement_may_be_taken_back_where_multicast_is_gone() -> None:
    announced = discovery.announce("ada", "01020304", ["192.0.2.7:7347"], 7347)
    if announced is not None:  # None where this machine has no multicast
        announced.close()
