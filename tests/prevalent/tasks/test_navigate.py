"""An episode, told and drawn."""

from pathlib import Path

import pytest

from fq_toolkit.cli import main


@pytest.mark.parametrize("name", ["ndh", "hanna"])
def test_one_episode_is_told_and_drawn(
    name: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "way.png"
    assert main(["navigate", str(runs[name]), "--split", "train", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert told.count("->") == told.count("step ") >= 1
    assert ("goal progress" if name == "ndh" else "requests for help") in told
    capsys.readouterr()
    assert main(["navigate", str(runs[name]), "--item", "nobody", "--out", str(out)]) == 2
    assert "no instruction 'nobody'" in capsys.readouterr().err
