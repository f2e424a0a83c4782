"""The public Python API: `Edge`, `Cloud`, and the events of an answer. `collm` exports it.

Not covered: building and training artifacts (the command line does), and HTTP (`collm serve`).
"""
