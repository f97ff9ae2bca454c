"""What a run says: progress, metrics, plots, and streams that may go away."""
