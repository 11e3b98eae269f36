"""A TCP proxy that makes loopback feel far away: delay, silent cut, reset, refusal. No root needed.

As a script it runs the proxy (a process of its own, so that it does not share the client's interpreter lock) and
obeys commands on stdin until that ends; `DelayProxy` is the handle. Unlike a real link it does not delay connect().
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from typing import Any

CHUNK_BYTES = 64 * 1024
QUEUED_CHUNKS = 4096  # what a link may hold: 256 MiB, above any window of ours


class DelayProxy:
    """A running proxy; use it as a context manager.

    Attributes:
        host, port: where it listens.
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int, delay_s: float = 0.025) -> None:
        """Start a proxy for one target.

        Args:
            delay_s: seconds each way; a round trip takes twice as long.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, target_host, str(target_port), str(delay_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _command(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def delay(self, delay_s: float) -> None:
        """Change the delay, in seconds each way, of what arrives from now on."""
        self._command("delay", delay_s)

    def stall(self) -> None:
        """Forward nothing, close nothing: a silent cut."""
        self._command("stall")

    def resume(self) -> None:
        """Forward again, beginning with what has been held back."""
        self._command("resume")

    def reset(self) -> None:
        """Reset every connection at both ends; new ones are accepted."""
        self._command("reset")

    def refuse(self) -> None:
        """Refuse new connections."""
        self._command("refuse")

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        self._command("accept")

    def connections(self) -> int:
        """How many connections have been accepted so far."""
        return int(self._command("connections"))

    def transferred_bytes(self) -> int:
        """How many bytes have been forwarded so far, both ways together."""
        return int(self._command("bytes"))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> DelayProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Proxy:
    """The proxy itself, on one event loop."""

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self._connections = 0
        self._bytes = 0

    async def listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def perform(self, command: list[Any]) -> Any:
        match command:
            case ["delay", delay_s]:
                self._delay_s = float(delay_s)
            case ["stall"]:
                self._forwarding.clear()
            case ["resume"]:
                self._forwarding.set()
            case ["reset"]:
                for writer in self._writers:
                    connection = writer.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
            case ["refuse"]:
                if self._server is not None:
                    self._server.close()
            case ["accept"]:
                await self.listen()
            case ["connections"]:
                return self._connections
            case ["bytes"]:
                return self._bytes
            case _:
                raise ValueError(f"no such command: {command}")
        return None

    async def _serve(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            far, to_far = await asyncio.open_connection(*self._target)
        except OSError:
            to_near.transport.abort()
            return
        for writer in (to_near, to_far):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._writers.add(writer)
        try:
            await asyncio.gather(self._forward(near, to_far), self._forward(far, to_near))
        except OSError:
            pass  # one end is gone: so is the other
        finally:
            for writer in (to_near, to_far):
                self._writers.discard(writer)
                writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            while True:
                due, data = await chunks.get()
                await asyncio.sleep(due - loop.time())
                await self._forwarding.wait()
                if not data:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(data)
                self._bytes += len(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            while data := await reader.read(CHUNK_BYTES):
                await chunks.put((loop.time() + self._delay_s, data))
            await chunks.put((loop.time() + self._delay_s, b""))
            await delivery
        finally:
            delivery.cancel()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("delay_s", type=float)
    arguments = parser.parse_args()
    proxy = Proxy((arguments.host, arguments.port), arguments.delay_s)
    print(json.dumps(await proxy.listen()), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        print(json.dumps(await proxy.perform(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
