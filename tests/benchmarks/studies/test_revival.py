"""The study of revival runs and says what it measured."""

from benchmarks.studies import revival as study_revival


def test_the_study_prints_a_row_per_arm(capsys) -> None:
    study_revival.main(["--steps", "2", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "commit" in lines[0]
    assert "2 steps" in lines[1]
    assert [line.split("|")[1].strip() for line in lines[4:]] == list(study_revival.ARMS)
