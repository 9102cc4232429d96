"""What a process may use of a machine's memory: the tightest limit counts, caches count as free."""

from __future__ import annotations

from pathlib import Path

from services.common.memory import memory_available_bytes, memory_limit_bytes

GIB = 2**30


def test_the_control_groups_limit_counts_if_it_is_lower(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "memory/c").mkdir(parents=True)

    def limit(path: str, text: str) -> int:
        (root / path).write_text(text + "\n")
        limited = memory_limit_bytes(own, root)
        (root / path).unlink()
        return limited

    whole = memory_limit_bytes(tmp_path / "absent", root)
    own.write_text("4:cpu,memory:/c\n1:cpu:/\n0::/a/b\n")
    assert limit("a/b/memory.max", "1073741824") == GIB
    assert limit("a/memory.max", "1073741824") == GIB
    assert limit("memory.max", "1073741824") == GIB
    assert limit("memory/c/memory.limit_in_bytes", "1073741824") == GIB
    assert limit("memory/memory.limit_in_bytes", "1073741824") == GIB
    assert limit("a/b/memory.max", "max") == whole
    assert limit("a/b/memory.max", str(whole * 2)) == whole
    own.write_text("0::/a\n")
    assert limit("a/b/memory.max", "1073741824") == whole
    assert limit("a/memory.max", "1073741824") == GIB


def test_what_is_available_is_what_neither_the_host_nor_a_group_has_in_use(tmp_path: Path) -> None:
    own, group, meminfo = tmp_path / "own", tmp_path / "root" / "a", tmp_path / "meminfo"
    group.mkdir(parents=True)
    own.write_text("0::/a\n")

    def available() -> int:
        return memory_available_bytes(own, tmp_path / "root", meminfo)

    whole = memory_limit_bytes(own, tmp_path / "root")
    assert available() == whole
    meminfo.write_text("MemTotal: 9999999999 kB\nMemAvailable: 2097152 kB\n")
    assert available() == min(whole, 2 * GIB)
    (group / "memory.max").write_text(f"{GIB}\n")
    (group / "memory.current").write_text(f"{GIB // 2}\n")
    assert available() == GIB // 2
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB // 4}\n")
    assert available() == GIB - GIB // 4
    (group / "memory.current").write_text(f"{2 * GIB}\n")
    assert available() == 0
