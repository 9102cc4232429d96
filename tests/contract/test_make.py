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


def pins_of(path: Path) -> set[str]:
    return {normal(line) for line in path.read_text().splitlines() if "==" in line}


def test_every_direct_dependency_is_pinned_and_in_the_lock() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = [line for name in extras if not name.startswith("bench") for line in extras[name]]
    pins = {normal(line) for line in wanted if "brisk[" not in line and ";" not in line}
    assert pins
    assert all("==" in pin for pin in pins)
    assert pins <= pins_of(ROOT / "requirements.lock")


def test_the_sdk_has_floors_and_the_lock_what_is_tested() -> None:
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert all(">=" in floor for floor in floors)
    locked = {pin.partition("==")[0] for pin in pins_of(ROOT / "requirements.lock")}
    assert {normal(floor.replace(">=", "==")).partition("==")[0] for floor in floors} <= locked


def test_the_proxy_in_the_peers_extra_is_what_its_lock_installs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    wanted = {normal(re.sub(r"\[.*\]", "", line)) for line in extras["bench-proxy"]}
    assert wanted
    assert wanted <= pins_of(ROOT / "bench" / "peers" / "litellm.lock")


def test_the_lock_names_no_address() -> None:
    assert not re.search(r"://|@|--", (ROOT / "requirements.lock").read_text())


def test_every_direct_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras for line in extras[name])]
    names = {re.split(r"[=>;\[ ]", line)[0] for line in lines} - {"brisk"}
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
