from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tbshare.errors import PairingFailed
from tbshare.peers import pairing
from tbshare.peers.identity import Identity
from tbshare.peers.pairing import (
    MAGIC,
    OPEN_SECONDS,
    TRIES,
    Invitation,
    Newcomer,
    Window,
    join,
    new_code,
    normal_code,
    offer,
)
from tbshare.peers.words import WORDS

CLUSTER = b"c" * 32
CODE = "7-copper-lantern"


@dataclass
class Lab:
    anna: Identity
    bert: Identity
    eve: Identity
    admitted: list[Newcomer] = field(default_factory=list[Newcomer])

    async def admit(self, newcomer: Newcomer) -> None:
        self.admitted.append(newcomer)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    anna, bert, eve = (Identity.load_or_create(tmp_path / name) for name in ("anna", "bert", "eve"))
    return Lab(anna, bert, eve)


Outcome = Invitation | Newcomer | PairingFailed
Tamper = Callable[[int, bytes], bytes]


async def attempt(
    lab: Lab,
    window: Window,
    code: str,
    *,
    tampers: Callable[[trio.abc.Stream, trio.abc.Stream], Awaitable[None]] | None = None,
    newcomer: Identity | None = None,
) -> tuple[Outcome, Outcome]:
    """Let bert type `code` to anna; return what each side got."""
    near, far = trio.testing.memory_stream_pair()
    middle: tuple[trio.abc.Stream, trio.abc.Stream] | None = None
    if tampers is not None:
        left, right = trio.testing.memory_stream_pair()
        middle, far = (far, left), right
    got: dict[str, Outcome] = {}

    async def joining() -> None:
        try:
            got["join"] = await join(near, code, newcomer or lab.bert, name="bert")
        except PairingFailed as error:
            got["join"] = error
        await near.aclose()

    async def offering() -> None:
        try:
            got["offer"] = await offer(far, window, lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)
        except PairingFailed as error:
            got["offer"] = error
        await far.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(joining)
        nursery.start_soon(offering)
        if tampers is not None and middle is not None:
            nursery.start_soon(tampers, *middle)
    return got["join"], got["offer"]


# ---- the exchange -----------------------------------------------------------------------------------------


async def test_the_right_code(lab: Lab) -> None:
    joined, offered = await attempt(lab, Window(CODE, trio.current_time()), " 7 Copper LANTERN ")
    assert joined == Invitation(lab.anna.node, lab.anna.certificate, "anna", CLUSTER)
    assert offered == Newcomer(lab.bert.node, lab.bert.certificate, "bert")
    assert lab.admitted == [offered]


async def test_over_tcp(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:

        async def answer() -> None:
            async with await listener.accept() as stream:
                await offer(stream, window, lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)

        nursery.start_soon(answer)
        async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
            assert (await join(stream, CODE, lab.bert, name="bert")).cluster == CLUSTER


async def test_three_wrong_codes_and_even_the_right_one_is_refused(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    for left in ("2 tries left", "1 try left", "0 tries left"):
        joined, offered = await attempt(lab, window, "7-copper-ladder")
        assert isinstance(joined, PairingFailed)
        assert str(joined) == f"wrong code, {left}"
        assert joined.cure
        assert isinstance(offered, PairingFailed)
    joined, offered = await attempt(lab, window, CODE)
    assert isinstance(joined, PairingFailed)
    assert "offers no code" in str(joined)
    assert isinstance(offered, PairingFailed)
    assert "three times" in str(offered)
    assert not lab.admitted


async def test_a_code_lets_one_machine_in(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    await attempt(lab, window, CODE)
    joined, offered = await attempt(lab, window, CODE, newcomer=lab.eve)
    assert isinstance(joined, PairingFailed)
    assert isinstance(offered, PairingFailed)
    assert [newcomer.name for newcomer in lab.admitted] == ["bert"]


async def test_two_minutes(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    window = Window(CODE, trio.current_time())
    await trio.sleep(OPEN_SECONDS)
    _, offered = await attempt(lab, window, CODE)
    assert isinstance(offered, PairingFailed)
    assert "two minutes" in str(offered)
    assert not lab.admitted


async def test_attempts_at_the_same_time_are_three_at_most(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    outcomes: list[Outcome] = []

    async def one() -> None:
        outcomes.extend(await attempt(lab, window, "1-acorn-acorn"))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
    assert sum("wrong code" in str(outcome) for outcome in outcomes) == 2 * TRIES


async def test_two_machines_with_the_right_code_at_once(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    async with trio.open_nursery() as nursery:
        for who in (lab.bert, lab.eve):

            async def one(who: Identity = who) -> None:
                await attempt(lab, window, CODE, newcomer=who)

            nursery.start_soon(one)
    assert len(lab.admitted) == 1


async def test_who_cannot_be_admitted_is_not_told_it_was(lab: Lab) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def refuse(newcomer: Newcomer) -> None:
        raise PairingFailed("removed for good")

    async def offering() -> None:
        with pytest.raises(PairingFailed, match="for good"):
            await offer(
                far, Window(CODE, trio.current_time()), lab.anna, name="anna", cluster=CLUSTER, admit=refuse
            )
        await far.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(offering)
        with pytest.raises(PairingFailed, match="broke off"):
            await join(near, CODE, lab.bert, name="bert")


async def test_a_machine_does_not_pair_with_itself(lab: Lab) -> None:
    window = Window(CODE, trio.current_time())
    _, offered = await attempt(lab, window, CODE, newcomer=lab.anna)
    assert isinstance(offered, PairingFailed)
    assert "itself" in str(offered)
    assert window.tries_left == TRIES


# ---- in the middle ----------------------------------------------------------------------------------------


async def frame(stream: trio.abc.Stream, *, magic: bool = False) -> bytes:
    """Return the next frame as it stands on the stream, length and all; empty at the end."""
    got = b""
    need = (len(MAGIC) if magic else 0) + 2
    while len(got) < need:
        more = await stream.receive_some(need - len(got))
        if not more:
            return b""
        got += more
        if len(got) == (len(MAGIC) if magic else 0) + 2:
            need = len(got) + int.from_bytes(got[-2:], "big")
    return got


def relay(tamper: Tamper) -> Callable[[trio.abc.Stream, trio.abc.Stream], Awaitable[None]]:
    """Return a machine in the middle that hands on what `tamper` makes of each frame, numbered from 0."""

    async def run(joining: trio.abc.Stream, offering: trio.abc.Stream) -> None:
        try:
            for number in range(6):
                source, target = (joining, offering) if number % 2 == 0 else (offering, joining)
                data = await frame(source, magic=number == 0)
                if not data:
                    break
                await target.send_all(tamper(number, data))
        except trio.BrokenResourceError:
            pass
        await joining.aclose()
        await offering.aclose()

    return run


async def test_a_relay_that_changes_nothing_is_no_harm(lab: Lab) -> None:
    seen: list[bytes] = []

    def watch(_: int, data: bytes) -> bytes:
        seen.append(data)
        return data

    joined, _ = await attempt(lab, Window(CODE, trio.current_time()), CODE, tampers=relay(watch))
    assert isinstance(joined, Invitation)
    said = b"".join(seen)
    assert len(seen) == 6
    for secret in (CLUSTER, b"bert", b"anna", b"copper"):
        assert secret not in said


@pytest.mark.parametrize("number", [0, 1])
async def test_a_certificate_swapped_in_the_middle(lab: Lab, number: int) -> None:
    def swap(at: int, data: bytes) -> bytes:
        old, new = (lab.bert, lab.eve) if number == 0 else (lab.anna, lab.eve)
        assert at != number or old.certificate in data
        return data.replace(old.certificate, new.certificate) if at == number else data

    joined, offered = await attempt(lab, Window(CODE, trio.current_time()), CODE, tampers=relay(swap))
    assert isinstance(joined, PairingFailed)
    assert isinstance(offered, PairingFailed)
    assert not lab.admitted


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("place", [-1, -20, 2])
async def test_a_byte_changed_in_the_middle(lab: Lab, number: int, place: int) -> None:
    def change(at: int, data: bytes) -> bytes:
        if at != number:
            return data
        changed = bytearray(data)
        changed[place] ^= 1
        return bytes(changed)

    window = Window(CODE, trio.current_time())
    joined, _ = await attempt(lab, window, CODE, tampers=relay(change))
    assert isinstance(joined, PairingFailed)
    assert bool(lab.admitted) == (number == 5), "only the last word comes after the newcomer is a member"


async def test_the_same_said_in_other_bytes(lab: Lab) -> None:
    """Everything said is bound, not only what it means."""

    def spell(number: int, data: bytes) -> bytes:
        if number != 1:
            return data
        body = data[2:].replace(b"\xc4\x21", b"\xc5\x00\x21")
        return len(body).to_bytes(2, "big") + body

    joined, _ = await attempt(lab, Window(CODE, trio.current_time()), CODE, tampers=relay(spell))
    assert isinstance(joined, PairingFailed)
    assert not lab.admitted


async def test_what_was_said_once_is_worth_nothing_again(lab: Lab) -> None:
    said: list[bytes] = []

    def record(number: int, data: bytes) -> bytes:
        if number % 2 == 0:
            said.append(data)
        return data

    await attempt(lab, Window(CODE, trio.current_time()), CODE, tampers=relay(record))
    lab.admitted.clear()
    window = Window(CODE, trio.current_time())
    near, far = trio.testing.memory_stream_pair()

    async def replay() -> None:
        for data in said:
            await near.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay)
        with pytest.raises(PairingFailed, match="wrong code"):
            await offer(far, window, lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)
    assert not lab.admitted


async def test_a_message_reflected_is_no_proof(lab: Lab) -> None:
    async def mirror(joining: trio.abc.Stream, offering: trio.abc.Stream) -> None:
        first = await frame(joining, magic=True)
        body = first[len(MAGIC) :].replace(lab.bert.certificate, lab.eve.certificate)
        await joining.send_all(body)
        await joining.aclose()
        await offering.aclose()

    joined, _ = await attempt(lab, Window(CODE, trio.current_time()), CODE, tampers=mirror)
    assert isinstance(joined, PairingFailed)


async def test_a_machine_that_only_claims_to_know_the_code(lab: Lab) -> None:
    """It answers with another code, and takes every proof for right."""
    window = Window("1-acorn-acorn", trio.current_time())

    def lie(number: int, data: bytes) -> bytes:
        if number == 3:
            body = b"\x92\x00\xc4\x20" + bytes(32)
            return len(body).to_bytes(2, "big") + body
        return data

    joined, _ = await attempt(lab, window, CODE, tampers=relay(lie))
    assert isinstance(joined, PairingFailed)
    assert "does not know the code" in str(joined)


# ---- junk -------------------------------------------------------------------------------------------------


JUNK = [
    b"",
    b"junk" * 4,
    MAGIC,
    MAGIC + b"\xff\xff",
    MAGIC + b"\x00\x00",
    MAGIC + b"\x00\x04junk",
    MAGIC + bytes(400),
]
OPENINGS = [b"\x92\xc4\x00\xc4\x00", b"\x92\xc4\x04junk\xc4\x00"]


@pytest.mark.parametrize("junk", JUNK + [MAGIC + len(o).to_bytes(2, "big") + o for o in OPENINGS])
async def test_junk_uses_no_try(lab: Lab, junk: bytes) -> None:
    window = Window(CODE, trio.current_time())
    near, far = trio.testing.memory_stream_pair()

    async def send() -> None:
        await near.send_all(junk)
        await near.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with pytest.raises(PairingFailed):
            await offer(far, window, lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)
    assert window.tries_left == TRIES


@pytest.mark.parametrize("point", [b"", b"A", b"A" + bytes(32), b"A" + b"\x01" + bytes(31), b"B" + bytes(32), b"A" + b"\xff" * 32, b"A" + bytes(10)])  # fmt: skip  # noqa: E501
async def test_what_is_no_point_on_the_curve(lab: Lab, point: bytes) -> None:
    window = Window(CODE, trio.current_time())
    near, far = trio.testing.memory_stream_pair()
    opening = msgspec.msgpack.encode([lab.eve.certificate, point])

    async def send() -> None:
        await near.send_all(MAGIC + len(opening).to_bytes(2, "big") + opening)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with pytest.raises(PairingFailed):
            await offer(far, window, lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)


async def test_who_is_slow_is_cut_off(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()

    async def drip() -> None:
        for byte in MAGIC + bytes(100):
            await near.send_all(bytes([byte]))
            await trio.sleep(0.9)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        start = trio.current_time()
        with pytest.raises(PairingFailed, match="slow"):
            await offer(far, Window(CODE, 0), lab.anna, name="anna", cluster=CLUSTER, admit=lab.admit)
        assert trio.current_time() - start == pytest.approx(pairing.EXCHANGE_SECONDS)
        nursery.cancel_scope.cancel()


# ---- codes and windows ------------------------------------------------------------------------------------


def test_words_and_codes() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 512
    assert all(word.isalpha() and word.islower() and 3 <= len(word) <= 8 for word in WORDS)
    codes = {new_code() for _ in range(200)}
    assert len(codes) > 190
    assert all(normal_code(code) == code for code in codes)


@pytest.mark.parametrize("text", ["", "7", "copper-lantern", "7-copper", "x-copper-lantern", "7-copper-lantern-oak", "²-copper-lantern", "-7-"])  # fmt: skip  # noqa: E501
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(PairingFailed) as caught:
        normal_code(text)
    assert caught.value.cure


def test_a_misspelt_word_is_named_with_the_nearest() -> None:
    with pytest.raises(PairingFailed, match="did you mean copper"):
        normal_code("7-coper-lantern")


@given(st.text(max_size=300))
def test_any_text_is_a_code_or_an_error(text: str) -> None:
    said = ""
    try:
        assert normal_code(normal_code(text)) == normal_code(text)
    except PairingFailed as error:
        said = str(error)
    assert not said or said.isprintable()


@given(st.lists(st.tuples(st.floats(0, 60), st.sampled_from(["begin", "succeed", "close"])), max_size=12))
def test_a_window_never_gives_more_than_it_should(steps: list[tuple[float, str]]) -> None:
    window, now, begun, used, closed = Window(CODE, 0.0), 0.0, 0, 0, False
    for pause, step in steps:
        now += pause
        allowed = begun < TRIES and not used and not closed and now < OPEN_SECONDS
        assert window.is_open(now) == allowed
        assert (window.seconds_left(now) > 0) == allowed
        if step == "close":
            window.close()
            closed = True
        elif step == "begin":
            try:
                window.begin(now)
            except PairingFailed:
                assert not allowed
            else:
                assert allowed
                begun += 1
        elif begun:
            try:
                window.succeed(now)
            except PairingFailed:
                assert used or closed or now >= OPEN_SECONDS
            else:
                used += 1
    assert begun <= TRIES
    assert used <= 1
