"""Volumes and their files on the command line: what is asked of the daemon, what is said, what is refused."""

import io
import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbshare.cli import show
from tbshare.cli.versions import resolving
from tbshare.cli.volumes import roles_of
from tbshare.errors import UsageError
from tbshare.volumes.policy import NO_HISTORY, options_of, policy_of
from tbshare.wire import files, local, volume
from tbshare.wire.where import Where
from tests.cli.conftest import Cli, Serving
from tests.cli.test_commands import refused
from tests.cli.volume_answers import ITEMS, ODD, VERSION

ODD_TEXT = os.fsdecode(ODD)


def last_asked(serving: Serving) -> object:
    return serving.answers.asked[-1]


def test_create_hands_everything_over(serving: Serving, cli: Cli, tmp_path: Path) -> None:
    words = ["volume", "create", "dailies:", "--mode", "owner", "--owner", "cart", "--replicate", "2"]
    words += ["--history", "30d", "--history-max", "10%", "--quota", "500G", "--case-sensitive"]
    words += ["--locked", "read-only", "--no-history", "*.a,b", "--no-history", "c"]
    words += ["--role", "cart=write", "--role", "x=none,y=read", "--from", str(tmp_path), "--move"]
    ended = cli(*words)
    assert ended.status == 0
    assert serving.answers.asked[-1] == volume.VolumeCreateParams(
        name="dailies",
        mode="owner",
        owner="cart",
        options={
            "replicate": "2",
            "history": "30d,10%",
            "quota": "500G",
            "locked": "read-only",
            "no-history": ",".join([*NO_HISTORY, "*.a", "b", "c"]),
            "case": "sensitive",
        },
        roles={"cart": "write", "x": "none", "y": "read"},
        source=os.fsencode(tmp_path),
        move=True,
    )
    assert "copied 2 of 3 files, 4 GB together" in ended.out
    assert "1 file had this content already" in ended.out
    assert cli("volume", "create", "plain").status == 0
    assert serving.answers.asked[-1] == volume.VolumeCreateParams(name="plain")


def test_set_changes_only_what_is_named(serving: Serving, cli: Cli) -> None:
    assert cli("volume", "set", "film", "--history-max", "2T", "--role", "cart=read").status == 0
    assert serving.answers.asked[-1] == volume.VolumeSetParams(
        name="film", options={"history": "2T"}, roles={"cart": "read"}
    )
    refused(cli("volume", "set", "film"), 2, "nothing to set", "tbshare volume set --help")
    refused(cli("volume", "set", "film", "--case-sensitive"), 2)
    refused(cli("volume", "set", "film", "--role", "cart"), 2, "NODE=ROLE")
    refused(cli("volume", "set", "film", "--role", "cart=king"), 2, "king")
    refused(cli("volume", "set", "film", "--locked", "maybe"), 2)
    refused(cli("volume", "create", "x", "--mode", "free"), 2)
    refused(cli("volume", "create", "x", "--move"), 2, "--from")
    refused(cli("volume", "create", "x", "--from", "/not/there"), 1, "no such file or directory")


@given(st.lists(st.text(max_size=20), max_size=3))
def test_any_role_is_taken_or_refused(values: list[str]) -> None:
    try:
        assert all(roles_of(values).values())
    except UsageError:
        assert any(value.strip(" ,") for value in values)


@pytest.mark.parametrize(
    ("globs", "kept"),
    [
        (["*.bak"], (*NO_HISTORY, "*.bak")),
        (["none", "*.bak,c"], ("*.bak", "c")),
        (["none"], ()),
        (["default"], NO_HISTORY),
        (["*.tmp"], NO_HISTORY),
    ],
)
def test_no_history_adds_to_what_has_none_anyway(
    serving: Serving, cli: Cli, globs: list[str], kept: tuple[str, ...]
) -> None:
    cli("volume", "set", "film", *[word for glob in globs for word in ("--no-history", glob)])
    asked = serving.answers.asked[-1]
    assert isinstance(asked, volume.VolumeSetParams)
    assert policy_of(options_of(asked.options)).no_history == kept


def test_volume_rm_asks(serving: Serving, cli: Cli) -> None:
    ended = cli.process("volume", "rm", "film")
    refused(ended, 2, "volume film (7 files, 5 GB) everywhere", "tbshare volume rm film --yes")
    assert serving.answers.asked[-1] == volume.VolumeRemoveParams(name="film", yes=False)


def test_ls_of_files(serving: Serving, cli: Cli) -> None:
    plain = cli("ls", "film:/").out.splitlines()
    assert plain == [
        "cut.prproj",
        "cut (from studio-2, 2026-11-23 14.05).prproj",
        "day\\xff1/",
        "Film.fcpbundle/",
        "latest",
        "evil\\x1b[2Jname\\n",
    ]
    assert serving.answers.asked[-1] == files.FileListParams(where=Where("film"))
    assert ".hidden" in cli("ls", "-a", "film:/").out.splitlines()
    long = cli("ls", "-l", "film:/").out.splitlines()
    assert serving.answers.asked[-1] == files.FileListParams(where=Where("film"), details=True)
    rows = {line.split("  ")[0]: line for line in long}
    assert "1.2 MB" in rows["-rw-r--r--"]
    assert rows["-rw-r--r--"].endswith(
        "everywhere          cut.prproj  [2 versions side by side]  [locked by studio-2]"
    )
    assert rows["-rw-------"].endswith("2 copies, not here  cut (from studio-2, 2026-11-23 14.05).prproj  [fork]")
    directories = [line.split("  ")[-1].strip() for line in long if line.startswith("drwxr-xr-x")]
    assert directories == ["day\\xff1/", "Film.fcpbundle/"]
    assert rows["lrwxrwxrwx"].endswith("latest -> cut.prproj")
    assert str(1 << 31) in rows["-rwxr-xr-x"]  # an owner this machine has no name for
    assert cli("ls", "film:/cut.prproj").out == "cut.prproj\n"
    refused(cli("ls", "film:/not there"), 1, "tbshare ls film:/")
    refused(cli("ls", "flim:/"), 1, "the nearest is film")
    assert cli("ls", "film@monday:/").status == 0
    assert serving.answers.asked[-1] == files.FileListParams(where=Where("film", b"", "monday"))


def test_json_keeps_names_that_are_no_text(serving: Serving, cli: Cli) -> None:
    """Python makes the bytes of a name out of it again; an attribute's value is base64."""
    listed = json.loads(cli("ls", "--json", "film:/").out)
    assert [os.fsencode(item["name"]) for item in listed["items"]] == [item.name for item in ITEMS]
    assert listed["items"][1]["xattrs"] == [{"name": "com.apple.FinderInfo", "value": "AP8="}]
    assert set(listed["items"][0]) == set(files.Item.__struct_fields__)
    line = json.loads(cli("watch", "film", "--json").out.splitlines()[0])
    assert os.fsencode(line["where"]) == b"film:/a/" + ODD
    assert json.loads(cli("conflicts", "--json").out)["conflicts"][0]["where"] == "film:/cut.prproj"


def test_paths_that_are_no_text_pass(serving: Serving, cli: Cli, tmp_path: Path) -> None:
    ended = subprocess.run(
        [*map(os.fsencode, cli.command()), b"ls", b"film:/" + ODD], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, b"")
    assert last_asked(serving) == files.FileListParams(where=Where("film", ODD))
    source = os.fsencode(tmp_path) + b"/" + ODD
    Path(os.fsdecode(source)).write_bytes(b"x")
    assert cli("cp", os.fsdecode(source), f"film:/{ODD_TEXT}/").status == 0
    assert last_asked(serving) == files.FileCopyParams(
        sources=[Where(path=source)], target=Where("film", ODD), into=True
    )
    assert cli("resolve", f"film:/{ODD_TEXT}", "--keep", ODD_TEXT).status == 0
    assert last_asked(serving) == volume.ResolveParams(where=Where("film", ODD), keep=ODD)
    refused(cli("volume", "show", ODD_TEXT), 2, "UTF-8")


@pytest.mark.parametrize(
    "words",
    [
        ["mkdir"],
        ["rm"],
        ["mv", "film:/x"],
        ["cat"],
        ["history"],
        ["restore"],
        ["watch"],
        ["show"],
        ["pin"],
        ["evict"],
    ],
    ids=" ".join,
)
def test_every_command_takes_paths_that_are_no_text(serving: Serving, cli: Cli, words: list[str]) -> None:
    """The daemon knows of no such path, or it does; no command refuses it as an argument."""
    assert cli(*words, f"film:/nowhere{ODD_TEXT}").status in (0, 1)


def test_cp_which_side_is_where(
    serving: Serving, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mov").write_bytes(b"x")
    (tmp_path / "odd:").mkdir()
    (tmp_path / "odd:" / "f").write_bytes(b"x")
    here = os.fsencode(tmp_path)

    def asked(*words: str) -> files.FileCopyParams:
        ended = cli("cp", *words)
        assert ended.status == 0, ended.err
        params = serving.answers.asked[-1]
        assert isinstance(params, files.FileCopyParams)
        return params

    clip = Where(path=here + b"/clip.mov")
    assert asked("clip.mov", "film:/a") == files.FileCopyParams(sources=[clip], target=Where("film", b"a"))
    assert asked("./clip.mov", "film:/a/").into
    assert asked("clip.mov", "film:").into
    assert asked("film:/cut.prproj", ".") == files.FileCopyParams(
        sources=[Where("film", b"cut.prproj")], target=Where(path=here), into=True
    )
    assert asked("-r", "film:/a", "film:/b", "film:/c").recursive
    assert asked("odd:/f", "film:/b").sources == [Where(path=here + b"/odd:/f")]  # it is there: a path
    refused(cli("cp", "odd:/f", "./film:/b"), 2, "VOLUME:/path")
    assert asked("--move", "clip.mov", "film:/a").move


def test_cp_that_cannot_be_meant(
    serving: Serving, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mov").write_bytes(b"x")
    refused(cli("cp", "clip.mov"), 2, "a source and a target")
    refused(cli("cp", "clip.mov", "other.mov"), 2, "VOLUME:/path")
    refused(cli("cp", "film:cut.prproj", "film:/b"), 1, "did you mean film:/cut.prproj?")
    refused(cli("cp", "not there", "film:/b"), 1, "no such file or directory: not there")
    refused(cli("cp", "film:/../a", "."), 1, "'..'")
    refused(cli("cp", "clip.mov", "film@monday:/"), 2, "is a snapshot")
    refused(cli("cp", "--move", "film:/a", "film:/b"), 2, "--move")
    refused(cli("cp", "clip.mov", "flim:/"), 1, "the nearest is film")
    refused(cli("cp", "clip.mov", "film:/locked"), 1, "open on studio-2", "tbshare locks film")
    refused(cli("mv", "clip.mov", "film:/b"), 2, "no VOLUME:/path")
    refused(cli("mv", "film:/b"), 2, "a source and a target")
    refused(cli("rm", "llama-70b", "film:/b"), 2, "one ref, or files of volumes")
    refused(cli("cat", "llama-70b"), 2, "no VOLUME:/path")
    refused(cli("cat", "film:/a", "film:/b", "--version", VERSION), 2, "one file")
    refused(cli("history", "film"), 2, "no VOLUME:/path")
    assert not [params for params in serving.answers.asked if isinstance(params, files.FileMoveParams)]


def test_cp_says_what_it_did(serving: Serving, cli: Cli) -> None:
    def said(copied: files.CopyReport) -> str:
        serving.answers.copied = copied
        return cli("cp", "-r", "film:/a", "film:/b").out

    same = files.CopyReport(files=2, files_same=2, size_bytes=7)
    assert said(same) == "already there: 2 files with this content, nothing was copied\n"
    shared = files.CopyReport(files=1, files_shared=1, size_bytes=7, seconds=5.0)
    assert said(shared) == "copied 1 file, 7 B\ninside the store: no bytes were copied\n"
    assert said(files.CopyReport()) == "copied 0 files, 0 B\n"
    moved = files.CopyReport(files=1, files_moved=1, files_away=1)
    assert "adopted 1 file; links stand in their place" in said(moved)
    ended = cli("cp", "film:/a", "film:/b")
    assert ended.status == 3
    assert ended.err.splitlines()[-1] == "1 file cannot be read before a node that has it is back"


def test_cp_shows_progress(serving: Serving, cli: Cli) -> None:
    ended = cli("cp", "film:/a", "film:/b")
    assert "copying 4 B of 4 B, 1 of 2 files" in ended.err
    lines = [json.loads(line) for line in cli("cp", "film:/a", "film:/b", "--json").out.splitlines()]
    assert {line["event"] for line in lines} == {"copying", "result"}
    assert os.fsencode(lines[0]["path"]) == ODD


def test_cat_is_byte_for_byte(serving: Serving, cli: Cli) -> None:
    ended = subprocess.run(cli.command("cat", "film:/cut.prproj"), capture_output=True, check=True)
    assert ended.stdout == serving.answers.written
    twice = subprocess.run(cli.command("cat", "film:/cut.prproj", "film:/latest"), capture_output=True, check=True)
    assert twice.stdout == serving.answers.written * 2
    subprocess.run(cli.command("cat", "film:/cut.prproj", "--version", VERSION), capture_output=True, check=True)
    assert serving.answers.asked[-1] == files.FileReadParams(where=Where("film", b"cut.prproj"), version=VERSION)


def test_cat_that_nobody_reads_ends_quietly(serving: Serving, cli: Cli) -> None:
    command = shlex.join(cli.command("cat", "film:/cut.prproj")) + " | head -c 5"
    ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=30, check=True)
    assert ended.stdout == serving.answers.written[:5]
    assert ended.stderr == b""


def test_restore_says_which(serving: Serving, cli: Cli) -> None:
    def asked(*words: str) -> files.RestoreParams:
        ended = cli("restore", "film:/cut.prproj", *words)
        assert ended.status == 0, ended.err
        params = serving.answers.asked[-1]
        assert isinstance(params, files.RestoreParams)
        return params

    where = Where("film", b"cut.prproj")
    assert asked() == files.RestoreParams(where=where)
    assert asked("--version", VERSION) == files.RestoreParams(where=where, version=VERSION)
    assert asked("--before", "2026-11-23 14:05").before_ns > 0
    target = Where("film", b"old")
    assert asked("--to", "film:/old") == files.RestoreParams(where=where, target=target)
    assert cli("restore", "film:/cut.prproj", "--snapshot", "monday").out == (
        "film:/cut.prproj is so already, nothing was changed\n"
    )
    refused(cli("restore", "film:/cut.prproj", "--version", VERSION, "--before", "2h"), 2, "only one of")
    refused(cli("restore", "film:/cut.prproj", "--before", "soon"), 2, "is no time")
    refused(cli("restore", "film:/cut.prproj", "--to", "./old"), 2, "no VOLUME:/path")
    refused(cli("restore", "film:/gone for ever"), 1)


def test_history_and_show(serving: Serving, cli: Cli) -> None:
    lines = cli("history", "film:/cut.prproj").out.splitlines()
    assert lines[1].startswith("* 8a3f00124c000007  ")
    assert lines[1].endswith("everywhere")
    assert lines[2].endswith("its bytes are given back")
    assert lines[3].endswith("shown as day\\xff1, not here")
    shown = cli("show", "film:/cut.prproj").out
    assert "here: whole; copies: everywhere" in shown
    assert "studio-2: whole" in shown
    assert "and 6 more versions; tbshare history film:/cut.prproj" in shown


def test_conflicts_name_the_cure(serving: Serving, cli: Cli) -> None:
    ended = cli("conflicts", "film:")
    assert serving.answers.asked[-1] == volume.ConflictsParams(volume="film")
    assert "film:/a/day\\udcff1: 2 files with one name" in ended.out
    assert "and 1 more" in ended.out
    assert ended.err.splitlines()[-1].endswith(f"tbshare resolve film:/cut.prproj --keep {VERSION}")
    refused(cli("resolve", "film:/cut.prproj"), 2, "--keep")
    refused(cli("resolve", "film:/cut.prproj", "--keep", "nobody"), 1, "tbshare conflicts film")
    assert "no locks" in cli("locks", "quiet").err


def test_two_files_with_one_name_are_told_apart_by_mv(serving: Serving, cli: Cli) -> None:
    clash = volume.ConflictLine(where=Where("film", b"a/x y.mov"), kind="names", shown=[])
    assert shlex.split(resolving(clash))[-1] == "film:/a/x y-2.mov"


def test_watch_ends_with_ctrl_c(serving: Serving, cli: Cli) -> None:
    serving.answers.hanging = True
    watching = subprocess.Popen(
        cli.command("watch", "film:/a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    said = [watching.stdout.readline() for _ in range(4)]
    watching.send_signal(signal.SIGINT)
    rest, complaint = watching.communicate(timeout=30)
    assert (watching.returncode, rest, complaint) == (0, "", "")
    assert "studio-2  saved  film:/a/day" in said[0]
    assert said[0].endswith("1.2 MB\n")
    assert said[1].endswith("described  film:/a/day\\udcff1/\n")
    assert said[2].endswith("studio-2  moved  film:/b -> film:/a/day\\udcff1\n")
    assert said[3] == "changes were lost, there were too many: look again at film:/\n"
    assert serving.answers.asked[-1] == volume.WatchParams(where=Where("film", b"a"))


def test_drain_that_is_not_over_is_3(serving: Serving, cli: Cli) -> None:
    assert "1 GB in 2 versions only here, 3 changes of names" in cli("drain").err
    serving.answers.safe = False
    ended = cli("drain", "--no-wait")
    assert ended.status == 3
    assert serving.answers.asked[-1] == volume.DrainParams(wait=False)
    assert ended.out == "not yet: 1 version, 1 GB, only on this node\nnobody is connected\n"
    assert ended.err.splitlines()[-1] == "  try: tbshare drain (it waits)"


def test_pin_of_a_place(serving: Serving, cli: Cli) -> None:
    assert cli("pin", "film:/cut.prproj").status == 0
    assert serving.answers.asked[-1] == local.RefParams(where=Where("film", b"cut.prproj"))
    assert cli("pin", "llama-70b").status == 0
    assert serving.answers.asked[-1] == local.RefParams(ref="llama-70b")


def test_help_of_a_command_in_a_group(cli: Cli) -> None:
    refused(cli("volume", "create"), 2, "tbshare volume create --help")
    refused(cli("snapshot", "rm"), 2, "tbshare snapshot rm --help")
    refused(cli("show", "rm", "x"), 2, "tbshare show --help")


def test_a_long_directory_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    """10,000 items decode, and print as JSON, in a part of a second."""
    import time

    import msgspec

    items = [
        files.Item(
            name=b"clip-%05d.mov" % number,
            kind="file",
            id=f"{number:016x}",
            version=VERSION,
            content="1" * 64,
        )
        for number in range(10_000)
    ]
    data = msgspec.msgpack.encode(files.FileList(item=items[0], items=items))
    assert len(data) < local.RESULT_BYTES_MAX
    started = time.process_time()
    show.json(msgspec.msgpack.decode(data, type=files.FileList))
    assert time.process_time() - started < 1.0
    assert capsys.readouterr().out.count("clip-") == 10_001


def test_raw_writes_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", stream)
    show.raw(b"\xff\n")
    show.flush()
    assert stream.buffer.getvalue() == b"\xff\n"
