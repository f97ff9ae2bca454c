"""The navigation world beside its peers."""
