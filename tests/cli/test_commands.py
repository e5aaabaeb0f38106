"""Each command against a control socket that answers from a table."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tbshare.wire import local, report
from tests.cli.conftest import Cli, Outcome, Serving


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.bin").write_bytes(b"a")
    return str(tmp_path / "model")


HAPPY: list[tuple[list[str], str]] = [
    (["ls"], "llama-70b@1"),
    (["ls", "mlx-community/"], "mlx-community/SmolLM2-135M@3"),
    (["show", "llama-70b"], "model-00001.safetensors"),
    (["path", "llama-70b"], "/home/x/path/llama-70b@1"),
    (["pin", "llama-70b"], "pinned here"),
    (["unpin", "llama-70b"], "no longer pinned"),
    (["evict", "llama-70b"], "freed 141 GB"),
    (["rm", "llama-70b", "--yes"], "removed llama-70b@1 from studio-1, studio-2"),
    (["volume", "ls"], "1 conflict"),
    (["volume", "create", "film"], "volume film is made (media)"),
    (["volume", "show", "film"], "as in the cluster"),
    (["volume", "set", "film", "--quota", "none"], "30d,10%"),
    (["volume", "rm", "film", "--yes"], "volume restore film"),
    (["volume", "restore", "film"], "film is back: 7 files, 5 GB"),
    (["ls", "film:/"], "cut (from studio-2, 2026-11-23 14.05).prproj"),
    (["ls", "-l", "film:"], "[locked by studio-2]"),
    (["show", "film:/cut.prproj"], "tbshare conflicts film"),
    (["cp", "-r", "film:/cut.prproj", "/nowhere/"], "copied 2 of 3 files, 4 GB together in 4 s"),
    (["mv", "film:/cut.prproj", "film:/b"], "moved film:/cut.prproj to film:/b"),
    (["rm", "-r", "film:/cut.prproj"], "removed 2 files and 2 directories, 1.2 MB"),
    (["history", "film:/cut.prproj"], "* 8a3f00124c000007"),
    (["restore", "film:/cut.prproj"], "restored film:/cut.prproj as of 2026-"),
    (["conflicts"], "2 versions of one file"),
    (
        ["resolve", "film:/cut.prproj", "--keep", "studio-2"],
        "is the version of studio-2; 1 other in its history",
    ),
    (["locks"], "studio-2 (here)"),
    (["snapshot", "create", "film"], "tbshare ls film@monday:/"),
    (["snapshot", "ls", "film"], "monday"),
    (["snapshot", "rm", "film", "monday"], "is forgotten"),
    (["watch", "film"], "studio-2  saved  film:/a/"),
    (["drain"], "may be unplugged: all it has is also on studio-2"),
    (["undrain"], "takes part again"),
    (["pin", "film:/cut.prproj"], "film:/cut.prproj is pinned here"),
    (["help", "volumes"], "Nothing is merged"),
    (["ps"], "25 %"),
    (["stop", "p1"], "stopped the push"),
    (["wait", "p1"], "m@1: 4 GB to 1 node"),
    (["run", "llama-70b", "capital?"], "The capital of France is Paris."),
    (["node", "ls"], "0.21 ms"),
    (["node", "rename", "studio-2", "attic"], "studio-2 is called attic now"),
    (["pair"], "7-apple-tree@10.0.0.1:7347"),
    (["pair", "7-apple-tree@10.0.0.1"], "paired with studio-1 (abababab)"),
    (["status"], "nothing needs attention"),
    (["du"], "shared on disk"),
    (["gc", "--now"], "held back by studio-2"),
    (["verify"], "all as it should be"),
    (["pull", "llama-70b"], "m@1: 4 GB to 1 node"),
    (["version"], "tbshare "),
    (["help"], "push"),
    (["help", "refs"], "newest rev"),
    (["help", "push"], "--from-hf-cache"),
    (["completion", "bash"], "complete"),
    (["completion", "zsh"], "compdef"),
    (["completion", "fish"], "complete"),
    (["config", "ls"], "store.keep_free"),
    (["config", "get", "store.keep_free"], "10%"),
    ([], "tbshare push PATH"),
    (["--help"], "verify"),
    (["--version"], "tbshare "),
]


@pytest.mark.parametrize(("words", "said"), HAPPY, ids=[" ".join(words) for words, _ in HAPPY])
def test_says_what_it_did(serving: Serving, cli: Cli, words: list[str], said: str) -> None:
    ended = cli(*words)
    assert said in ended.out
    assert ended.status == 0


JSON = [words for words, _ in HAPPY if words and words[0] not in ("help", "--help", "completion", "pair")]


@pytest.mark.parametrize("words", [*JSON, ["pair"], ["pair", "1-a"]], ids=" ".join)
def test_json_is_json(serving: Serving, cli: Cli, words: list[str]) -> None:
    ended = cli(*words, "--json")
    assert ended.status == 0
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert lines
    assert all(isinstance(line, dict) for line in lines)
    if words[0] == "watch":
        assert all(line["event"] == "changed" for line in lines)
    elif words[0] in ("run", "pair", "verify", "pull", "wait", "cp", "drain") or words[:2] == [
        "volume",
        "create",
    ]:
        assert lines[-1]["event"] == "result"
        assert all("event" in line for line in lines)
    else:
        assert len(lines) == 1


EVERY_COMMAND = [
    "push", "pull", "ls", "show", "path", "rm", "pin", "unpin", "evict", "volume ls", "run", "ps", "stop", "wait",
    "up", "down", "restart", "pair", "node ls", "node rename", "status", "du", "gc", "verify", "config ls",
    "config get", "config set", "config edit", "version", "help", "completion", "volume create", "volume show",
    "volume set", "volume rm", "volume restore", "cp", "mv", "cat", "mkdir", "history", "restore", "conflicts",
    "resolve", "locks", "snapshot create", "snapshot ls", "snapshot rm", "watch", "drain", "undrain",
]  # fmt: skip


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_help_has_examples(cli: Cli, command: str) -> None:
    ended = cli(*command.split(), "--help")
    assert ended.status == 0
    assert f"  tbshare {command}" in ended.out.split("Examples:")[1]


@pytest.mark.parametrize(
    "words",
    [
        ["ls"],
        ["status"],
        ["show", "x"],
        ["pair"],
        ["ps"],
        ["run", "x", "y"],
        ["gc"],
        ["du"],
        ["node", "ls"],
        ["path", "x"],
    ],
    ids=" ".join,
)
def test_without_a_daemon_says_up(cli: Cli, words: list[str]) -> None:
    ended = cli(*words)
    assert ended.status == 1
    assert ended.out == ""
    first, second = ended.err.splitlines()
    assert first.startswith("error: no daemon is running")
    assert second.startswith("  try: tbshare ")
    assert second.endswith(" up")


def refused(ended: Outcome, status: int, *said: str) -> None:
    assert ended.status == status
    assert ended.out == ""
    *_, first, second = ended.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("  try: ")
    for text in said:
        assert text in ended.err


def test_errors_of_the_daemon(serving: Serving, cli: Cli) -> None:
    refused(cli("show", "nothing-such"), 1, "the nearest is llama-70b", "  try: tbshare ls")
    refused(cli("evict", "last"), 1, "only copy")
    refused(cli("stop", "zzz"), 2, "tbshare ps")
    refused(cli("path", "bug"), 1, "internal error in path (KeyError)")
    assert "secret" not in cli("path", "bug").err


def test_errors_of_the_words(serving: Serving, cli: Cli, model: str) -> None:
    refused(cli("lss"), 2, "did you mean ls?")
    refused(cli("--foo"), 2, "tbshare --help")
    refused(cli("push"), 2, "push wants a PATH")
    refused(cli("push", "--foo"), 2, "tbshare push --help")
    refused(cli("push", model, "--limit", "fast"), 2, "is no rate")
    refused(cli("push", model, "--undo"), 2, "--move")
    refused(cli("push", "/not/there"), 1, "no such file or directory: /not/there")
    refused(cli("node"), 2, "tbshare node --help")
    refused(cli("node", "rename", "x"), 2, "tbshare node rename --help")
    refused(cli("help", "nonsense"), 2, "topics are refs")
    refused(cli("completion", "csh"), 2, "csh")
    refused(cli("ls", "a", "b"), 2)
    refused(cli("run", "llama-70b", "x", "--max-tokens", "0"), 2)
    refused(cli("run", "llama-70b", "x", "--seed", str(1 << 70)), 2)
    refused(cli("show", "a\x00b"), 2, "UTF-8")
    refused(cli("show", "a\udc80b"), 2, "UTF-8")
    refused(cli("push", "a\udc80b"), 2, "UTF-8")
    refused(cli("config", "get", "store.kep_free"), 2, "store.keep_free")
    refused(cli("--home"), 2, "--home")


def test_home_may_stand_anywhere(serving: Serving, cli: Cli) -> None:
    away = Cli(Path("/not/there"), cli.capture)
    assert away("ls").status == 1
    assert away("ls", "--home", str(serving.home)).status == 0
    assert away("ls", f"--home={serving.home}").status == 0


def test_push_hands_everything_over(
    serving: Serving, cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = cli(
        "push", model, "--to", "a,b", "--to", "c,a", "--include", "*.x", "--exclude", "*.y", "--exclude", "z",
        "--limit", "400Mbit", "--follow-links", "--name", "n", "--volume", "v", "--move",
    )  # fmt: skip
    assert ended.status == 0
    assert serving.answers.asked[-1] == local.PushParams(
        path=model,
        name="n",
        volume="v",
        to=["a", "b", "c"],
        include=["*.x"],
        exclude=["*.y", "z"],
        follow_links=True,
        move=True,
        limit_bytes_per_second=50_000_000,
    )
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert cli("push", "--from-hf-cache", "a/b").status == 0
    assert serving.answers.asked[-1] == local.PushParams(path="", hf_cache="a/b", hf_cache_directory="/hf/hub")


def test_push_closing_lines(serving: Serving, cli: Cli, model: str) -> None:
    ended = cli("push", model)
    assert ended.out == (
        "m@1: 4 GB to 1 node in 2 s at 1 GB/s\nsaved by dedup: 2 GB were there already, 2 GB moved\n"
    )
    assert "note: left out by default: .git" in ended.err
    assert "studio-2: needs 4 GB" in ended.err
    assert cli("push", model, "--name", "same").out == "already there as m@1, nothing moved\n"
    assert cli("push", model, "--dry-run").out.startswith("would push 4 GB in 3 files")
    assert "tbshare wait p1" in cli("push", model, "-d").out


def test_push_with_failed_and_pending_targets_is_3(serving: Serving, cli: Cli, model: str) -> None:
    ended = cli("push", model, "--name", "failing")
    assert ended.status == 3
    assert "failed: studio-2: disk full" in ended.err
    assert ended.err.splitlines()[-1].startswith("  try: ")
    ended = cli("push", model, "--name", "pending")
    assert ended.status == 3
    assert "pending: studio-3" in ended.err
    assert cli("push", model, "--name", "pending", "-d").status == 0
    ended = cli("push", model, "--name", "failing", "--json")
    assert ended.status == 3
    assert json.loads(ended.out.splitlines()[-1])["result"]["failed"] == ["studio-2"]


def test_status_with_attention_is_1(serving: Serving, cli: Cli) -> None:
    serving.answers.attention = [
        report.Attention(kind="away", text="studio-3 is away for 3 days", cure="tbshare node ls")
    ]
    ended = cli("status")
    assert ended.status == 1
    assert ended.out.splitlines()[:2] == [
        "needs attention",
        "  studio-3 is away for 3 days; try: tbshare node ls",
    ]
    ended = cli("status", "--json")
    assert ended.status == 1
    assert json.loads(ended.out)["attention"][0]["kind"] == "away"


def test_verify_with_corruption(serving: Serving, cli: Cli) -> None:
    assert cli("verify", "rotten").status == 1
    assert cli("verify", "rotten", "--repair").status == 0
    damaged = cli("verify", "logless")  # no byte of an object is wrong
    assert damaged.status == 1
    assert "corrupt: log.db: was damaged; not repaired" in damaged.err
    assert "as it should be" not in damaged.out
    assert cli("verify", "logless", "--repair").status == 0


def test_rm_without_anybody_to_ask_removes_nothing(serving: Serving, cli: Cli) -> None:
    ended = cli.process("rm", "llama-70b")
    refused(ended, 2, "studio-1, studio-2", "tbshare rm llama-70b --yes")
    assert serving.answers.asked[-1] == local.RemoveParams(ref="llama-70b", yes=False)


def test_names_cannot_steer_the_terminal(serving: Serving, cli: Cli) -> None:
    shown = cli("show", "llama-70b").out
    assert "\x1b" not in shown
    assert "evil\\x1b[2Jname\\n.json" in shown
    assert "\x1b" not in cli("run", "llama-70b", "x").out


def test_a_path_that_is_there_is_a_path(
    serving: Serving, cli: Cli, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    assert cli("show", "model").status == 0
    assert serving.answers.asked[-1] == local.ShowParams(path=model)
    assert cli("show", "./model").status == 0
    refused(cli("show", "./llama-70b"), 1, "no such file")
    assert cli("show", "llama-70b").status == 0
    assert serving.answers.asked[-1] == local.ShowParams(ref="llama-70b")


def test_another_version_is_said(serving: Serving, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbshare.daemon.control.__version__", "0.0.9")
    ended = cli("ls")
    assert ended.status == 0
    assert "note: the daemon is tbshare 0.0.9" in ended.err
    assert "tbshare restart" in ended.err
    assert "0.0.9" in cli("version").out


def test_config_set_keeps_the_rest(cli: Cli, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("# mine\n[store]\nkeep_free = '5%'  # old\naccept = 'all'\n\n[log]\n")
    assert cli("config", "set", "store.keep_free", "50GB").status == 0
    assert cli("config", "set", "log.level", "debug").status == 0
    assert cli("config", "set", "links.direct", "10.0.0.0/24, 10.1.0.0/24").status == 0
    assert cli("config", "set", "listen.port", "7400").status == 0
    text = (home / "config.toml").read_text()
    assert text.startswith('# mine\n[store]\nkeep_free = "50GB"\naccept')
    assert cli("config", "get", "store.keep_free").out == "50GB\n"
    assert cli("config", "get", "links.direct").out == "10.0.0.0/24,10.1.0.0/24\n"
    assert cli("config", "get", "listen.port").out == "7400\n"
    for words in (
        ["listen.port", "x"],
        ["listen.port", "70000"],
        ["log.level", "loud"],
        ["log.levl", "info"],
    ):
        refused(cli("config", "set", *words), 2)
    assert (home / "config.toml").read_text() == text
    (home / "config.toml").write_text("[store\n")
    refused(cli("config", "ls"), 2)
    refused(cli("config", "set", "log.level", "info"), 2)
    assert (home / "config.toml").read_text() == "[store\n"


def test_config_set_changes_the_level_of_a_live_daemon(serving: Serving, cli: Cli) -> None:
    assert cli("config", "set", "log.level", "debug").status == 0
    assert serving.answers.asked[-1] == local.LogLevelParams(level="debug")
    assert "restart" in cli("config", "set", "listen.port", "7400").err


def test_config_edit(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "true")
    assert cli("config", "edit").status == 0
    assert "# keep_free = " in (home / "config.toml").read_text()
    monkeypatch.setenv("VISUAL", "false")
    refused(cli("config", "edit"), 1)
    monkeypatch.setenv("VISUAL", "/not/there")
    refused(cli("config", "edit"), 1, "/not/there")


def test_show_of_a_path_says_nothing_of_a_tree(serving: Serving, cli: Cli, model: str) -> None:
    """Nobody has published it: it has no tree, no author and no place here."""
    ended = cli("show", model)
    assert ended.status == 0
    assert "nobody" not in ended.out
    assert f"tbshare push {model}" in ended.out


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("{} ls > /dev/full", 1, "cannot be written"),
        ("{} ls >&-", 0, ""),
        ("{} ls 2>&-", 0, ""),
        ("{} run llama-70b <&-", 2, "wants a prompt"),
        ("{} rm llama-70b <&-", 2, "without a yes"),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(serving: Serving, cli: Cli, shell: str, status: int, said: str) -> None:
    """One sentence or none, never an internal error."""
    if "/dev/full" in shell and not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    ended = subprocess.run(
        ["sh", "-c", shell.format(shlex.join(cli.command()))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == status
    assert said in ended.stderr
    assert "internal error" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_config_set_in_a_file_that_is_no_text(cli: Cli, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_bytes(b"\xff")
    refused(cli("config", "set", "log.level", "info"), 2, "UTF-8")
    assert (home / "config.toml").read_bytes() == b"\xff"


def test_up_with_a_mistake_in_the_configuration_is_a_usage_error(cli: Cli, home: Path) -> None:
    home.mkdir()
    (home / "config.toml").write_text("[store]\nkep_free = '1%'\n")
    refused(cli("up"), 2, "store.keep_free")
