"""Rows of results: a full one and a skipped one, and a small set with a floor, peers and a discriminator."""

from dataclasses import fields, replace

from benchmarks.results import MEASURED, SKIPPED, Row

ROW = Row(
    case="lookup",
    shape="C10 L0",
    n=32768,
    dim=256,
    num_codes=1024,
    layout="nchw",
    dtype="float32",
    contender="FeatureQuantizer",
    kind="ours",
    device="cpu",
    machine="2-core-test",
    threads=2,
    python="3.11.7",
    torch="2.13.0+cpu",
    version="fq-toolkit 0.1.0",
    commit="abc",
    dirty=False,
    date="2026-01-01",
    status=MEASURED,
    gate="green",
    clock="perf_counter",
    rounds=7,
    median_ms=1.5,
    q25_ms=1.25,
    q75_ms=2.0,
    peak_extra_bytes=4096,
    floor_ms=1.0,
    floor_share=0.5,
    wrong_share=0.0,
)
SKIP = replace(
    ROW,
    contender="peer, skipped",
    status=SKIPPED,
    note='too "large", says it',
    **{field.name: None for field in fields(Row) if "None" in str(field.type)},
)
BLANK = Row(
    **{field.name: "x" for field in fields(Row) if field.type == "str"}
    | {"n": 1, "dim": 1, "num_codes": 1, "threads": 2, "dirty": False}
    | {
        "case": "train_step",
        "device": "cpu",
        "dtype": "float32",
        "machine": "2-core-test",
        "status": "measured",
        "clock": "perf_counter",
    }
    | {"date": "2026-01-01", "note": ""}
)


def _step(contender, milliseconds, shape="C10 L0", case="train_step", **more):
    return replace(BLANK, case=case, shape=shape, contender=contender, median_ms=milliseconds, **more)


ROWS = [
    _step("FeatureQuantizer", 50.0, peak_extra_bytes=5 << 20, floor_share=0.8),
    _step("released layer", 500.0, peak_extra_bytes=500 << 20),
    _step("lucidrains", 300.0, peak_extra_bytes=100 << 20),
    _step("FeatureQuantizer", 20.0, "DAC"),
    _step("released layer", 320.0, "DAC"),
    _step("lucidrains", None, "DAC", status=SKIPPED, note="does not fit: about 13 GiB"),
    _step("FeatureQuantizer", 30.0, case="lookup"),
    _step("faiss", 60.0, case="lookup"),
    _step("fp32 GEMM", 25.0, case="lookup", kind="floor"),
    _step("no quantizer", 1000.0, "D", "discriminator_overhead", kind="base"),
    _step("FeatureQuantizer", 1020.0, "D", "discriminator_overhead"),
]
