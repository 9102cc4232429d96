"""The Makefile is the front page: every verb has its help, and the lock holds what it should."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def phony_verbs() -> set[str]:
    found = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found
    return set(found.group(1).split())


def test_help_lists_every_verb_with_a_line() -> None:
    out = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert set(listed) == phony_verbs()
    assert all(len(text) > 10 for text in listed.values())


def test_every_direct_dependency_is_pinned_and_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(line for name in extras if name != "bench" for line in extras[name]),
    ]
    pins = {
        normal(line.split(";")[0])
        for line in wanted
        if not line.startswith("brisk[") and ";" not in line
    }
    assert all("==" in pin for pin in pins)
    locked = {normal(line) for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert pins <= locked


def test_the_lock_names_no_address() -> None:
    assert not re.search(r"://|@|--", (ROOT / "requirements.lock").read_text())


def test_every_direct_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    names = {re.split(r"[=;\[ ]", line)[0] for line in lines} - {"brisk"}
    told = set(
        re.findall(
            r"^\| `([A-Za-z0-9-]+)`", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
        )
    )
    assert names - told == set()


def normal(requirement: str) -> str:
    """Return `name==version` with the name as indexes compare it."""
    name, _, version = requirement.strip().partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
