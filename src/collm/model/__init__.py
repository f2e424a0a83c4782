"""Checkpoints in, artifacts out: read, build and store models. No network."""
