"""200 peers that send a byte a second, and 50 that ask much and take no answer, until killed.

Run as a module, with an address and what all of them say, in hexadecimal. Prints a line when they
are connected. Who is hung up on comes again.
"""

from __future__ import annotations

import socket
import sys
import time


def dial(address: str) -> socket.socket:
    """A connection whose sends do not wait."""
    host, _, port = address.partition(":")
    one = socket.create_connection((host, int(port)), 5)
    one.setblocking(False)
    return one


def tell(one: socket.socket, words: bytes) -> bool:
    """Whether it is still connected."""
    try:
        return bool(one.send(words))
    except BlockingIOError:
        return True
    except OSError:
        return False


def main(address: str, words: bytes) -> None:
    """Bother the cloud at `address`."""
    slow, deaf = [[dial(address), 0] for _ in range(200)], [dial(address) for _ in range(50)]
    for one in deaf:
        tell(one, words)
    print("connected", flush=True)
    while True:
        for peer in slow:
            one, at = peer
            if not tell(one, words[at : at + 1]):
                one.close()
                peer[:] = [dial(address), -1]
            peer[1] += 1
            time.sleep(1 / len(slow))
        for index, one in enumerate(deaf):
            if not tell(one, b"\0"):
                one.close()
                deaf[index] = dial(address)
                tell(deaf[index], words)


if __name__ == "__main__":
    main(sys.argv[1], bytes.fromhex(sys.argv[2]))
