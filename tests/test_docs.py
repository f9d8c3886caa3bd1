"""The documentation: generated pages are current, every command shown is valid, every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

from bundler.cli import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

names = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_pages_are_current(generator: ModuleType) -> None:
    for name, text in generator.pages().items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"{name} is out of date; run `make docs`"


def test_the_supported_models_have_every_row_of_the_specification(generator: ModuleType) -> None:
    rows = [line.split("|")[1].strip() for line in generator.scope_table()[2:]]
    specification = (DOCS / "specification.md").read_text(encoding="utf-8")
    promised = re.findall(r"^\| (\w+) \| (?:PTQ|N)\b", specification, re.MULTILINE)
    assert len(rows) == 26
    assert sorted(rows) == sorted(promised)


def test_the_readme_is_short_and_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    assert max(map(len, text.splitlines())) <= 165
    for name in cli.list_commands(click.Context(cli)):
        assert f"`bundler {name}" in text


def _code(page: Path) -> Iterator[str]:
    """Yield the lines of indented code blocks and of blocks fenced as bash, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    fence = ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = "" if fence else line[3:].strip() or "text"
        elif fence == "bash" or (not fence and line.startswith("    ")):
            yield line.strip()


def _inline(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def _commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    return {name: command for name in cli.list_commands(context) if (command := cli.get_command(context, name))}


COMMANDS = _commands()


def _parse(words: list[str]) -> None:
    """Parse the arguments of `bundler` without executing the command.

    Raises:
        click.ClickException: they are not valid.
    """
    while words and words[0] == "--debug":
        words = words[1:]
    name, *arguments = words
    if name not in ("--help", "--version") and "--help" not in arguments:
        COMMANDS[name].make_context(name, arguments)


@names
def test_every_bundler_command_of_a_code_block_is_valid(page: Path) -> None:
    for line in _code(page):
        if re.match(r"(\.venv/bin/)?bundler ", line) and "[OPTIONS]" not in line:
            _parse(shlex.split(line, comments=True)[1:])


@names
def test_every_make_command_of_a_code_block_is_valid(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in _code(page):
        if line.startswith("make "):
            words = shlex.split(line, comments=True)
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= set(TARGETS), line
            for variable in (word.partition("=")[0] for word in words[1:] if "=" in word):
                assert re.search(rf"\b{variable}\b", makefile), line


@names
def test_every_command_and_option_in_the_text_exists(page: Path) -> None:
    known = {option for command in COMMANDS.values() for item in command.params for option in item.opts if not _hidden(item)}
    programs = [*(ROOT / "templates").glob("*.py"), *(ROOT / "bundler" / "device").rglob("*.py")]
    device = {option for path in programs for option in re.findall(r'"(--[a-z0-9-]+)"', path.read_text(encoding="utf-8"))}
    foreign = {"--help", "--version", "--debug", "--platform", "--check", "--pull", "--calibration-pictures", "--quiet"}
    for code in _inline(page):
        words = code.split()
        if words[0] == "bundler" and len(words) > 1 and words[1].isalpha() and words[1].islower():
            assert words[1] in COMMANDS, code
        if words[0] == "make" and len(words) > 1 and words[1].isalpha() and words[1].islower():
            assert words[1] in TARGETS, code
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code):
            assert option in known | device | foreign, code


def _hidden(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.hidden


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@names
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"(?<!\\)\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        waiting += [(page.parent / target).resolve() for target in targets]
    assert set(PAGES) <= reached


def test_nothing_refers_to_places_outside_of_the_repository() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\bissue \d|\.\./shared|/work/", text), page
