"""A trace from outside is parsed strictly: every broken rule is refused with its line."""

from pathlib import Path

import pytest

from sim import trace
from sim.request import Arrival
from sim.trace import TraceError, read

HEADER = "at_s,model,prompt_tokens,output_tokens\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_good_trace_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "0,a,1,2\r\n0.5,org/b,3,4\n1e1,a,5,6")
    assert read(path) == (
        Arrival(0.0, "a", 1, 2),
        Arrival(0.5, "org/b", 3, 4),
        Arrival(10.0, "a", 5, 6),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 must be"),
        ("time,model\n0,a\n", "line 1 must be"),
        (HEADER, "no arrivals"),
        (HEADER + "0,a,1\n", "line 2 must have 4 columns. Given: 3"),
        (HEADER + "0,a,1,2,3\n", "line 2 must have 4 columns. Given: 5"),
        (HEADER + "\n", "line 2 must have 4 columns. Given: 0"),
        (HEADER + "0,../etc,1,2\n", "line 2: model name"),
        (HEADER + "0,,1,2\n", "line 2: model name must not be empty"),
        (HEADER + "nan,a,1,2\n", "at_s must be from 0"),
        (HEADER + "inf,a,1,2\n", "at_s must be from 0"),
        (HEADER + "-1,a,1,2\n", "at_s must be from 0"),
        (HEADER + "1_0,a,1,2\n", "at_s must be from 0"),
        (HEADER + " 1,a,1,2\n", "at_s must be from 0"),
        (HEADER + "1e9,a,1,2\n", "at_s must be from 0"),
        (HEADER + "e,a,1,2\n", "at_s must be from 0"),
        (HEADER + ",a,1,2\n", "at_s must be from 0"),
        (HEADER + "2,a,1,2\n1,a,1,2\n", "line 3: at_s goes back from 2 to 1"),
        (HEADER + "0,a,0,2\n", "line 2: prompt_tokens must be from 1"),
        (HEADER + "0,a,1,-2\n", "line 2: output_tokens must be from 1"),
        (HEADER + "0,a,1,2.5\n", "line 2: output_tokens must be from 1"),
        (HEADER + "0,a,1," + "9" * 100 + "\n", "line 2: output_tokens must be from 1"),
        (HEADER + "0,a,2000,2000\n", "line 2: at most 2048 tokens"),
        (HEADER + '0,"a,1,2\n', "line 2: "),
        (HEADER + "0,a,1,2" + " " * 300 + "\n", "line 2 has more than 256 characters"),
        ((HEADER + "0,").encode() + b"\xff,1,2\n", "not ASCII"),
        (HEADER.encode() + "0,ä,1,2\n".encode(), "not ASCII"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        read(written(tmp_path, text))


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "endless.csv"
    with path.open("wb") as file:
        file.truncate(4 * 2**30)  # zeros, and not one line end
    with pytest.raises(TraceError, match="line 1 has more than 256 characters"):
        read(path)


def test_the_numbers_of_arrivals_and_models_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, HEADER + "0,a,1,2\n0,b,1,2\n0,c,1,2\n")
    monkeypatch.setattr(trace, "MODELS_MAX", 2)
    with pytest.raises(TraceError, match="line 4: at most"):
        read(path)
    monkeypatch.setattr(trace, "MODELS_MAX", 3)
    monkeypatch.setattr(trace, "ARRIVALS_MAX", 2)
    with pytest.raises(TraceError, match="line 4: at most"):
        read(path)
