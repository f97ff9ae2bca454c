"""A small run of the R2R trainer."""

from fq_toolkit.prevalent.tasks.r2r.config import R2RConfig

TINY = R2RConfig(
    steps=4, batch_size=4, scans=2, train_items=12, validation_items=4, hidden_size=16, max_steps=5,
    feature_dim=8, cross_modal=True, a2c_weight=0.5, feature_dropout=0.2, log_every=1, checkpoint_every=2,
    device="cpu",
)  # fmt: skip
