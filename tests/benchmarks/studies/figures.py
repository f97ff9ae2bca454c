"""Rows of a made-up study."""

from benchmarks.studies.results import Row, Setting

SETTING = Setting(
    preset="digits",
    steps=4,
    samples=20,
    commit="abc",
    dirty=False,
    machine="2-core-test",
    device="cpu",
    threads=1,
    versions='torch 2.13.0, "quoted", python 3.11',
)
FID = "fid[digits-cnn]"


def rows_of(by_arm: dict[str, dict[int, float]], metric: str = FID, setting: Setting = SETTING) -> list[Row]:
    return [
        Row(setting, arm, seed, metric, value, "2026-01-01")
        for arm, by_seed in by_arm.items()
        for seed, value in by_seed.items()
    ]
