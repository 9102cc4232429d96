"""Who may import whom holds in running processes too: router and scheduler live without torch."""

import subprocess
import sys

import pytest

WITHOUT = """
import importlib, importlib.abc, pkgutil, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocked())
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""

TORCH = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}
SERVER_SIDE = {"services", "redis", "structlog", "pydantic", "uvloop", "brisk_native"}


@pytest.mark.parametrize(
    ("package", "blocked", "expected"),
    [
        ("services.router", TORCH | {"brisk_native"}, "services.router.__main__"),
        ("services.scheduler", TORCH | {"brisk_native"}, "services.scheduler.__main__"),
        ("services.storemgr", TORCH, "services.storemgr.__main__"),
        ("services.common", TORCH | {"brisk_native"}, "services.common.lifecycle"),
        ("brisk_client", TORCH | SERVER_SIDE, "brisk_client.cli"),
    ],
)
def test_a_package_imports_whole_without_what_it_must_not_need(
    package: str, blocked: set[str], expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package=package, blocked=blocked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.split()


def test_the_block_blocks() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(package="torch", blocked={"torch"})],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "torch is blocked by the test" in done.stderr
