"""The TCP connection under an SSH connection."""

from __future__ import annotations

import socket

from ..errors import ConnectError

__all__ = ["open_socket"]


def open_socket(host: str, port: int, timeout_s: float, dead_after_s: float | None = None) -> socket.socket:
    """A TCP connection without Nagle's delay that notices when the other side is gone.

    Raises:
        ConnectError: Says whether the name, the network, or the port was the trouble.
    """
    where = f"{host}, port {port}"
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except socket.gaierror as exc:
        raise ConnectError(
            f"The name {host!r} does not resolve: {exc.strerror}.\n"
            "Check the spelling and whether you are online (some clusters need a VPN)."
        ) from exc
    except UnicodeError as exc:
        raise ConnectError(f"{host!r} is not a host name: {exc}.\nCheck the spelling.") from exc
    except TimeoutError as exc:
        raise ConnectError(
            f"{where}, did not answer within {timeout_s:g} s.\n"
            "Check host and port and whether you are online; a firewall may want a VPN."
        ) from exc
    except ConnectionRefusedError as exc:
        raise ConnectError(
            f"{where}, refuses connections: the machine is there, but no SSH server listens on that port.\n"
            "Check the port, and whether the login node is in maintenance."
        ) from exc
    except OSError as exc:
        raise ConnectError(
            f"{where}, cannot be reached: {exc.strerror or exc}.\n"
            "Check host and port and whether you are online; a firewall may want a VPN."
        ) from exc
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # Linux alone has it; elsewhere the system's own retransmission limit ends a silent connection.
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None and dead_after_s is not None:
        sock.setsockopt(socket.IPPROTO_TCP, user_timeout, int(dead_after_s * 1000))
    return sock
