"""The speaker, and the instructions it writes for new paths."""
