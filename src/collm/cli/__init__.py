"""The command `collm`: one file per verb."""
