"""House rules that a machine can check."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbshare.cli import main

ROOT = Path(__file__).parent.parent
LINKS = {"cli": "../cli", "daemon": "../daemon", "fuse": "../fuse"}
FILE_LINES_MAX, FUNCTION_LINES_MAX = 500, 70
VAGUE = {
    "util",
    "utils",
    "helper",
    "helpers",
    "misc",
    "common",
    "core",
    "base",
    "manager",
    "shared",
    "stuff",
    "lib",
}
# Built from parts, so that this file does not break the rules it holds.
FORBIDDEN = {
    "a path of one machine": re.compile("/" + r"(?:work|root|home/(?!x/)[a-z]+|Users/(?!x/)[a-z]+)/[\w.]"),
    "a word about how it came about": re.compile(
        r"\b(?:sub" + r"agent|clau" + r"de|anthro" + r"pic|chat" + r"gpt|co" + r"pilot)\b", re.I
    ),
    "unfinished work": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "a package index": re.compile(r"https?://(?:py" + r"pi|files\.pyth" + r"onhosted|test\.py" + r"pi)\b"),
}


def tracked() -> list[Path]:
    """Return the project's files: those git knows, and new ones it does not ignore."""
    words = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def sources() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_folders_at_the_top_are_linked_into_the_package() -> None:
    for name, target in LINKS.items():
        link = ROOT / "tbshare" / name
        assert link.is_symlink(), name
        assert str(link.readlink()) == target


def test_files_and_functions_fit() -> None:
    long: list[str] = []
    for path in sources():
        text = path.read_text()
        if len(text.splitlines()) > FILE_LINES_MAX:
            long.append(f"{relative(path)}: {len(text.splitlines())} lines")
        for function in functions(ast.parse(text)):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                long.append(f"{relative(path)}: {function.name}: {lines} lines")
    assert long == []


def test_files_are_named_for_what_is_in_them() -> None:
    assert [relative(path) for path in sources() if path.stem in VAGUE] == []


def test_every_module_says_what_it_is_for() -> None:
    bare: list[str] = []
    for path in sources():
        test = path.name.startswith("test_") or path.name == "conftest.py"
        if not test and not ast.get_docstring(ast.parse(path.read_text())):
            bare.append(relative(path))
    assert bare == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_stands_in_no_file(what: str) -> None:
    found: list[str] = []
    for path in tracked():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if FORBIDDEN[what].search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_errors_are_not_swallowed() -> None:
    silent: list[str] = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                name = node.type.id if isinstance(node.type, ast.Name) else ""
                catches_all = node.type is None or name in ("Exception", "BaseException")
                if catches_all and all(isinstance(step, ast.Pass) for step in node.body):
                    silent.append(f"{relative(path)}:{node.lineno}")
    assert silent == []


def test_every_room_has_tests() -> None:
    rooms = {
        path.name for path in (ROOT / "tbshare").iterdir() if path.is_dir() and (path / "__init__.py").exists()
    }
    tested = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and list(path.glob("test_*.py"))}
    assert rooms - {"fuse"} <= tested


def test_the_commands_of_the_readme_exist() -> None:
    """Each `tbshare WORD` and each `make WORD` that the README gives as code is one."""
    text = (ROOT / "README.md").read_text()
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *re.findall(r"^(?:    |\w+\$ )(.+)$", text, re.M)])
    made = subprocess.run(["make", "-C", str(ROOT), "-qp"], capture_output=True, text=True, check=False)
    targets = set(re.findall(r"^([a-z]+):", made.stdout, re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", code))
    assert named
    assert named <= targets
    commands = set(re.findall(r"\btbshare ([a-z]+)", code))
    assert len(commands) > 10
    assert commands <= set(main.COMMANDS)
