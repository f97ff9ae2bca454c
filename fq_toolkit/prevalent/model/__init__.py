"""The cross-modal encoder, the agents on top of it, and the speaker."""
