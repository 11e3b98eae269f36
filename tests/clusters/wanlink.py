"""A wide-area link between two network namespaces, in user space (stands in for tc netem, which not every kernel has).

Each end is a TUN device; what one end sends is written to the other after the delay. Needs root and /dev/net/tun.

    wanlink.py CONTROL_SOCKET DEVICE NAMESPACE_A ADDRESS_A NAMESPACE_B ADDRESS_B DELAY_MS

NAMESPACE - is the caller's own. Commands come as datagrams: "delay 50", "loss 0.02", "rate 10" (Mbit/s, 0 = no limit),
"down" (everything is dropped silently), "up". Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454CA, 0x0001, 0x1000  # linux/sched.h, linux/if_tun.h
QUEUE_S = 0.5  # what a limited link holds before it drops
PACKET_BYTES = 65536


@dataclass
class Settings:
    """What the link does to packets now; names are those of the commands."""

    delay: float = 25.0
    loss: float = 0.0
    rate: float = 0.0
    up: bool = True

    def change(self, command: str) -> None:
        match command.split():
            case ["up" | "down" as state]:
                self.up = state == "up"
            case ["delay" | "loss" | "rate" as name, value]:
                setattr(self, name, float(value))
            case _:
                print(f"no such command: {command}", flush=True)


@dataclass
class Direction:
    """One way through the link: when its wire is free, and what is under way."""

    target: int
    free_at: float = 0.0
    under_way: list[tuple[float, int, bytes]] = field(default_factory=list)
    sent: int = 0

    def send(self, packet: bytes, settings: Settings) -> None:
        if not settings.up or random.random() < settings.loss:
            return
        now = leaves = time.monotonic()
        if settings.rate:
            leaves = max(self.free_at, now) + len(packet) * 8 / (settings.rate * 1e6)
            if leaves - now > QUEUE_S:
                return
            self.free_at = leaves
        self.sent += 1  # equal arrival times keep their order
        heapq.heappush(self.under_way, (leaves + settings.delay / 1e3, self.sent, packet))

    def deliver(self) -> float | None:
        """Hand over what has arrived; returns when the next packet will have, None where nothing is under way."""
        now = time.monotonic()
        while self.under_way and self.under_way[0][0] <= now:
            try:
                os.write(self.target, heapq.heappop(self.under_way)[2])
            except OSError:
                pass  # the far device's queue is full: a packet is lost
        return self.under_way[0][0] if self.under_way else None


def open_end(namespace: str, device: str, address: str) -> int:
    """Make the TUN device of one end inside its namespace; returns its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = own if namespace == "-" else os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns", namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "address", "add", address, "dev", device], check=True)
    subprocess.run(["ip", "link", "set", device, "up", "txqueuelen", "1000"], check=True)
    libc.setns(own, CLONE_NEWNET)
    return fd


def main() -> None:
    control_path, device, namespace_a, address_a, namespace_b, address_b, delay_ms = sys.argv[1:]
    settings = Settings(delay=float(delay_ms))
    a, b = open_end(namespace_a, device, address_a), open_end(namespace_b, device, address_b)
    directions = {a: Direction(target=b), b: Direction(target=a)}
    control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    control.bind(control_path)
    poll = select.epoll()
    for fd in (a, b, control.fileno()):
        poll.register(fd, select.EPOLLIN)
    while True:
        due = [at for direction in directions.values() if (at := direction.deliver()) is not None]
        for fd, _ in poll.poll(max(0.0, min(due) - time.monotonic()) if due else -1):
            if fd == control.fileno():
                settings.change(control.recv(200).decode())
                continue
            try:
                while True:
                    directions[fd].send(os.read(fd, PACKET_BYTES), settings)
            except BlockingIOError:
                pass


if __name__ == "__main__":
    main()
