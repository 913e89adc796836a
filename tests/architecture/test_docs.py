"""What the pages say of names, commands and files is so."""

import re
from pathlib import Path

import pytest

from picloud_jupyter import cloud
from picloud_jupyter.cli.run import commands
from picloud_services.jobs.info_fields import FIELDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMPATIBILITY = (ROOT / "docs" / "compatibility.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_table_has_a_head(page):
    """A row behind an empty line is shown as text, not as a row."""
    lines = ["", *page.read_text().splitlines(), ""]
    for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
        if line.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"[|\-: ]+", after), line


def test_every_command_is_named():
    said = re.search(r"`picloud ([a-z -]+)`\. From PiCloud", COMPATIBILITY)
    assert said
    assert set(said[1].split()) == {command.name for command in commands()}


def test_every_field_of_info_is_named():
    told = GUIDE[GUIDE.index("## What `info` knows") :]
    names = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", told))))
    internal = {"host_python", "folder"}
    assert {name.partition(".")[0] for name in FIELDS} - internal <= names


def later_names():
    rows = re.findall(r"^\| (.*?) \| later \|", COMPATIBILITY, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([a-z_.]+)`", row) if name[0] != "_"]


@pytest.mark.parametrize("name", [*later_names(), "wait_for.port"])
def test_a_part_that_is_not_built_yet_says_so(name):
    holder = cloud
    *above, last = name.split(".")
    for part in above:
        holder = getattr(holder, part)
    with pytest.raises(AttributeError, match=rf"cloud\.{name} of PiCloud does not exist"):
        getattr(holder, last)
