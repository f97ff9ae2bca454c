"""What is trained in a world: the navigator shared by R2R, NDH and HANNA, and the commands."""
