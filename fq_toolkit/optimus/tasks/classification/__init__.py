"""Labels predicted from latents."""
