"""All gates in one table: whatever goes wrong in one is a finding."""

from benchmarks import gates


def test_an_op_that_raises_is_red(monkeypatch):
    def broken(*, device):
        raise RuntimeError("no kernel")

    monkeypatch.setitem(gates.GATES, "lookup", broken)
    assert gates.run_gates(["lookup"]) == {"lookup": ["lookup: RuntimeError: no kernel"]}
