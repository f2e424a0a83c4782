"""Frames from one process to another: in memory, or over gRPC.

A link carries opaque frames (`bytes`), in order, both ways, for one session. `base.py` has
the two sides' protocols, `memory.py`, `grpc_client.py` and `grpc_server.py` implement them;
`delayed.py` makes any of them late.

Not covered: what is in a frame (`collm.wire`), reconnecting, TLS and credentials.
"""
