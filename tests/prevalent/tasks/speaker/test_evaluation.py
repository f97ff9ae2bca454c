"""BLEU of a speaker."""

import pytest

from fq_toolkit.prevalent.tasks.speaker.evaluation import Told, bleu


def test_bleu_takes_several_references_and_no_case() -> None:
    one = Told("1_0", "go to the sofa and stop there", ("Walk on .", "Go to the sofa and stop there"))
    other = Told("2_0", "turn left at the lamp and wait", ("Turn left at the lamp and wait",))
    assert bleu([one, other]) == pytest.approx(100)
    assert bleu([one, other._replace(said="piano")]) < 90
