"""Fixtures of the layer tests: the CPU backends."""

import pytest

from fq_toolkit.kernels import ops


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on each CPU backend; the native one is skipped where it cannot be built."""
    reason = ops.backend_report()[request.param]
    if reason != "usable":
        pytest.skip(f"the {request.param} backend {reason}")
    monkeypatch.setenv("FQ_TOOLKIT_BACKEND", request.param)
    return request.param
