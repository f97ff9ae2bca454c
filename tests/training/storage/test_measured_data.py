"""What a run is measured on is compared set by set."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fq_toolkit.training.errors import CheckpointError
from fq_toolkit.training.storage.checkpoints import Checkpoints
from fq_toolkit.training.storage.measured_data import (
    KEY,
    MeasuredSet,
    check_measured,
    digest_of,
    measured_line,
    set_records,
)
from fq_toolkit.training.storage.run_folder import RunFolder

SETS = st.dictionaries(
    st.sampled_from(["val_seen", "val_unseen"]),
    st.builds(
        MeasuredSet, st.sampled_from(["a.json", "b.json"]), st.sampled_from(["0" * 64, "1" * 64]), st.just(3)
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=SETS, now=SETS)
def test_sets_are_the_same_when_their_content_is(
    before: dict[str, MeasuredSet], now: dict[str, MeasuredSet], tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run") / "checkpoints")
    checkpoints.save(1, {}, {KEY: {name: one._asdict() for name, one in before.items()}})
    if {name: one.digest for name, one in before.items()} == {name: one.digest for name, one in now.items()}:
        check_measured(checkpoints, 1, now)  # wherever the files lie
        return
    with pytest.raises(
        CheckpointError, match=r"\.json, or what belongs to its items, is not what the run was"
    ):
        check_measured(checkpoints, 1, now)


@given(st.lists(st.text()), st.lists(st.text()))
def test_only_equal_rows_have_equal_digests(a: list[str], b: list[str]) -> None:
    assert (digest_of(a) == digest_of(b)) == (a == b)


@pytest.mark.parametrize("junk", [3, "text", {}, {"file": "a"}, {"file": "a", "digest": "b", "items": "c"}])
def test_an_entry_that_cannot_be_read_is_damage(tmp_path: Path, junk: object) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, {}, {KEY: {"valid": junk}})
    with pytest.raises(CheckpointError, match="damaged"):
        check_measured(checkpoints, 1, {"valid": MeasuredSet("a", "b", 1)})


def test_the_line_says_what_the_file_says(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert measured_line(run) == ""
    for text in ("", "true", "{}"):
        run.evaluation.write_text(text)
        assert measured_line(run) == ""
    sets = {"a": MeasuredSet("a.txt", "0123456789abcdef", 2000), "b": MeasuredSet("b.txt", "f" * 64, 1)}
    run.evaluation.write_text(json.dumps({KEY: set_records(sets)}))
    assert measured_line(run) == (
        "measured on a: a.txt (2,000 items, hash 0123456789ab); b: b.txt (1 items, hash ffffffffffff)\n"
    )
