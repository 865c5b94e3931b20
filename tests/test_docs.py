"""What the documentation points at is there: files, headings, commands and their options."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from ella_cli.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.M | re.S)


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(h) for h in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.M)}


def commands(page: Path) -> list[list[str]]:
    """Every `ella ...` of the console blocks, as words."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for one in re.findall(r"(?:^\$|;|\bdo|\btime)\s+(ella [^;]*)", line):
                found.append(shlex.split(one, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not heading or heading in anchors(file), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        command = typer.main.get_command(app)
        context = typer.Context(command)
        rest = [word for word in words if word != "..."]
        while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest.pop(0))
            assert found is not None, f"{page.name}: ella {shlex.join(words)}"
            command = found
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        given = {word.partition("=")[0] for word in rest if re.match(r"-{1,2}[a-z]", word)}
        assert given <= known, f"{page.name}: ella {shlex.join(words)}: {given - known}"
        whole = not any(word == "..." or "$" in word for word in words) and "--help" not in given
        for needed in command.params if whole else []:
            if needed.required and needed.opts[0].startswith("-"):
                assert given & set(needed.opts), f"{page.name}: ella {shlex.join(words)}"


def test_the_documentation_has_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30
