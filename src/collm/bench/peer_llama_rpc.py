"""llama.cpp's own split as a peer: `llama-server` on the edge, `ggml-rpc-server` in the cloud.

The wheels on PyPI are built without RPC, so both programs come from a build of llama.cpp with
-DGGML_RPC=ON. The last layers and the head run behind the link, so logits come back. (With the
head kept on the edge, by --override-tensor, it was three times as slow.) Its RPC is meant for
networks one trusts; both programs listen on loopback here. Not covered: several servers.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from collm.bench.cores import Cores, pin, settled_cpu_seconds
from collm.bench.failures import BaselineFailed, UnusableSetting
from collm.bench.peers import PeerReply
from collm.link.base import Closing
from collm.link.shapes import LinkShape
from collm.serve.spawn import spawned_link

_SERVER = "llama-server"
_RPC_SERVERS = ("ggml-rpc-server", "rpc-server")
_UP_SECONDS, _ANSWER_SECONDS, _END_SECONDS = 60.0, 300.0, 5.0
_GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}


def find_programs(folder: Path) -> tuple[Path, Path]:
    """`llama-server` and its RPC server in `folder`. Raises UnusableSetting."""
    server = folder / _SERVER
    rpc = next((folder / n for n in _RPC_SERVERS if os.access(folder / n, os.X_OK)), None)
    if rpc is None or not os.access(server, os.X_OK):
        raise UnusableSetting(
            f"--llama-cpp {folder}: expected the programs {_SERVER} and {_RPC_SERVERS[0]} there; "
            "build llama.cpp with -DGGML_RPC=ON and give the folder build/bin"
        )
    return server, rpc


class LlamaRpc(Closing):
    """The two programs and a shaped link between. Raises BaselineFailed where they fail."""

    name = "llama.cpp RPC"

    def __init__(
        self,
        programs: tuple[Path, Path],
        gguf: Path,
        link: LinkShape,
        *,
        far_layers: int,
        context: int,
        threads: int,
        cores: Cores,
    ) -> None:
        self.note = (
            f"llama-server on the edge, the last {far_layers} layers and the head on an RPC server"
        )
        self._stack = ExitStack()
        try:
            server, rpc = programs
            port = _free_port()
            self._far = self._start([str(rpc), "-H", "127.0.0.1", "-p", str(port)], threads)
            pin(self._far.pid, cores.cloud)
            self._wait(self._far, lambda: _takes_connections(port))
            shaped = self._stack.enter_context(spawned_link(link, f"127.0.0.1:{port}"))
            pin(shaped.pid, cores.link)
            self._port = _free_port()
            words = [str(server), "-m", str(gguf), "--rpc", shaped.address]
            words += ["-ngl", str(far_layers + 1), "-c", str(context), "-np", "1", "-tb"]
            words += [str(threads), "--host", "127.0.0.1", "--port", str(self._port), "--no-webui"]
            self._near = self._start(words, threads)
            pin(self._near.pid, cores.edge)
            self._wait(self._near, self._is_healthy)
            pin(self._near.pid, cores.edge)  # threads that the loading made
        except BaseException:
            self.close()
            raise

    def answer(self, prompt: Sequence[int], tokens: int) -> PeerReply:
        """Streamed by llama-server's own /completion, from an empty cache."""
        asked = {"prompt": list(prompt), "n_predict": tokens, "stream": True, "ignore_eos": True}
        asked |= {"cache_prompt": False, "return_tokens": True, **_GREEDY}
        near, far = (settled_cpu_seconds(p.pid) for p in (self._near, self._far))
        ids: list[int] = []
        arrivals: list[float] = []
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("POST", "/completion", json.dumps(asked))
            response = connection.getresponse()
            if response.status != 200:
                raise BaselineFailed(f"llama-server refused: {response.read(300)!r}")
            for line in response:
                if line.startswith(b"data: {"):
                    some = [int(token) for token in json.loads(line[6:]).get("tokens", [])]
                    ids += some
                    arrivals += [time.perf_counter() - started] * len(some)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BaselineFailed(f"llama-server ended in mid-answer: {error}") from None
        finally:
            connection.close()
        if len(ids) != tokens:
            raise BaselineFailed(f"llama-server made {len(ids)} tokens, {tokens} were asked for")
        return PeerReply(
            token_ids=ids,
            arrivals=arrivals,
            near_cpu=settled_cpu_seconds(self._near.pid) - near,
            far_cpu=settled_cpu_seconds(self._far.pid) - far,
        )

    def close(self) -> None:
        """End the programs and the link."""
        self._stack.close()

    def _start(self, words: list[str], threads: int) -> subprocess.Popen[bytes]:
        said = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        process = subprocess.Popen(
            [*words, "-t", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(_end, process)
        return process

    def _wait(self, process: subprocess.Popen[bytes], is_up: Callable[[], bool]) -> None:
        until = time.monotonic() + _UP_SECONDS
        while not is_up():
            if process.poll() is not None or time.monotonic() > until:
                raise BaselineFailed(
                    f"{Path(str(process.args[0])).name} did not come up"  # type: ignore[index]
                    f" (exit code {process.poll()})"
                )
            time.sleep(0.1)

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _takes_connections(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
