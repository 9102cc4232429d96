"""Every constant is a positive number with a source, or the file is refused by name."""

from pathlib import Path

import pytest

from sim.calibration import FILE, SOURCES, CalibrationError, load


def test_the_shipped_constants_have_their_sources() -> None:
    found = load()
    assert set(found.hardware) == {"a40", "cpu"}
    assert all(each.source.startswith(SOURCES) for each in found.constants)
    assert found.control.rpc_s < 0.01


def test_joined_devices_are_as_strong_as_their_parts_together() -> None:
    single = load().hardware["a40"]
    pair = single.joined(2)
    assert pair.devices == single.devices / 2
    assert pair.device_bytes == 2 * single.device_bytes
    assert pair.ssd_speed == single.ssd_speed


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value = 0.0005", "value = 0", "control.rpc_s must be a positive number"),
        ("value = 0.0005", "value = nan", "control.rpc_s must be a positive number"),
        ("value = 0.0005", "value = true", "control.rpc_s must be a number"),
        ('source = "measured: unary', 'source = "guess: unary', "the source must begin with"),
        ("[control.rpc_s]", "[control.rpc_ms]", "control.rpc_s is missing"),
        ("[control.init_s]", "[a41.init_s]", "control.init_s is missing"),
        ("[cpu.spread]", "[cpu.more]\nvalue = 1\nsource = 'assumed: x'\n[cpu.spread]", "cpu.more"),
        ("value = 0.0005", "value = 0.0005\nnote = 1", "a value and a source, and nothing else"),
        ("[control.rpc_s]", "[control.rpc_s", "calibration.toml"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    damaged = tmp_path / FILE.name
    damaged.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CalibrationError, match=message):
        load(damaged)
