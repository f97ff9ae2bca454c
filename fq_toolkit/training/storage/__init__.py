"""What a run leaves on disk: checkpoints, locks, identities."""
