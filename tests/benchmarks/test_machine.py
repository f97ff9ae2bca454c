"""Names and versions that go into the results."""

import re
import time

import pytest

from benchmarks import machine


def test_the_name_is_a_readable_file_name():
    name = machine.machine_name("cpu")
    assert re.fullmatch(r"[0-9]+-core-[a-z0-9-]+", name)
    assert name.startswith(f"{machine.core_count()}-core")


@pytest.mark.parametrize(
    ("model", "flags", "name"),
    [
        ("AMD EPYC", "avx2 avx512f", "2-core-amd-epyc-avx512"),
        (
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
            "avx2 avx512f amx_tile",
            "2-core-intel-xeon-platinum-8481c-amx",
        ),
        ("AMD Ryzen 9 5950X 16-Core Processor", "avx2", "2-core-amd-ryzen-9-5950x-avx2"),
    ],
)
def test_names_of_known_processors(monkeypatch, model, flags, name):
    monkeypatch.setattr(machine, "core_count", lambda: 2)
    monkeypatch.setattr(
        machine.Path, "read_text", lambda _: f"model name\t: {model}\nflags\t\t: fpu {flags} sse\n"
    )
    assert machine.machine_name("cpu") == name


def test_versions():
    assert machine.package_version("torch").startswith("torch 2.")
    assert machine.package_version("no-such-package") == ""


def test_own_work_is_not_the_load_of_others():
    others = machine.OtherLoad()
    begin = time.process_time()
    while time.process_time() - begin < 0.3:
        pass
    load = others.cores()
    assert load is None or 0 <= load <= machine.core_count()


def test_too_short_a_time_has_no_load():
    assert machine.OtherLoad().cores() is None
