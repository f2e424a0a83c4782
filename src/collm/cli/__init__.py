"""The command `collm`: one file per verb."""

import os

# gRPC's C core writes lines of its own to standard error; ours say the same once. It reads this
# when it is imported, so it has to stand before the verbs' imports.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
