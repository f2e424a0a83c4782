"""What crosses the link: messages, their encoding, row codecs and the handshake.

Bytes in, bytes out. Every frame from the other side is checked against `collm.limits.Limits`
before memory is taken for it, and whatever is wrong with it comes out as one `ProtocolError`.

Not covered: sending and receiving (`collm.link`), and whether a message makes sense at this
point of a session (`collm.session`).
"""
