"""The package's promise: one interface, two implementations, and the truth about which one runs."""

from __future__ import annotations

import ast
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import brisk_native
from brisk_native import ChecksumError, ReadCancelledError, ShortReadError

from tests.unit.native import loaders

PACKAGE = Path(brisk_native.__file__).parent


def signatures(path: Path) -> dict[str, str]:
    """Return the arguments and the result of each public function and method in a file."""
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        if prefix.startswith("_"):
            continue
        for item in inside:
            if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
                returns = ast.unparse(item.returns) if item.returns else ""
                found[prefix + item.name] = f"({ast.unparse(item.args)}) -> {returns}"
    return found


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(folder)!r}); {code}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def copy_without_extension(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "brisk_native", ignore=shutil.ignore_patterns("*.so"))
    return folder


def test_the_stub_and_the_python_implementation_have_the_same_signatures() -> None:
    in_python: dict[str, str] = {}
    modules = ("_fallback", "_no_devices", "_no_pool", "_parsers", "_weight_index")
    for module in modules:
        in_python |= signatures(PACKAGE / f"{module}.py")
    assert signatures(PACKAGE / "_native.pyi") == in_python


def test_the_compiled_library_runs_where_it_was_built() -> None:
    expected = "native" if loaders.is_built() else "python"
    assert expected == brisk_native.IMPLEMENTATION


def test_without_the_extension_the_python_implementation_runs_and_says_so(tmp_path: Path) -> None:
    code = "import brisk_native as b; print(b.IMPLEMENTATION, hex(b.crc32c(b'123456789')))"
    ran = run(copy_without_extension(tmp_path), code)
    assert (ran.stdout, ran.stderr) == ("python 0xe3069283\n", "")


def test_an_extension_that_does_not_load_is_an_error_not_a_slow_loader(tmp_path: Path) -> None:
    folder = copy_without_extension(tmp_path)
    (folder / "brisk_native" / "_native.so").write_bytes(b"no library")
    ran = run(folder, "import brisk_native")
    assert ran.returncode == 1
    assert "ImportError" in ran.stderr


def test_every_public_name_is_there() -> None:
    assert all(hasattr(brisk_native, name) for name in brisk_native.__all__)
    assert brisk_native.CHUNK_BYTES == 4 * 1024 * 1024


def test_the_errors_have_their_places_in_the_tree_and_survive_pickling() -> None:
    assert issubclass(ShortReadError, EOFError)
    assert not issubclass(ChecksumError, OSError)
    checksum = pickle.loads(pickle.dumps(ChecksumError("f", 2, 8, "wrong")))  # noqa: S301
    assert (checksum.path, checksum.chunk, checksum.offset) == ("f", 2, 8)
    assert str(checksum) == "f: chunk 2 at offset 8: wrong"
    cancelled = pickle.loads(pickle.dumps(ReadCancelledError(7)))  # noqa: S301
    assert cancelled.bytes_done == 7
