"""What belongs to one statement goes to the cluster as one burst, however far behind the driver thread is."""

from __future__ import annotations

import threading

import pytest

from remoteexec.engine import driver
from remoteexec.engine.client import Deliver
from remoteexec.engine.tracker import Linked
from remoteexec_server.wire import header
from remoteexec_server.wire.messages import Accepted, Close, Closed, Request, Submit, Welcome
from remoteexec_server.wire.resources import Resources


class Service:
    """Accepts every burst; the first when `gate` opens, and keeps the driver thread until then."""

    def __init__(self) -> None:
        self.bursts: list[int] = []
        self.reached, self.gate = threading.Event(), threading.Event()

    def open(self, deliver: Deliver) -> Welcome:
        self.deliver = deliver
        deliver((Linked(), b""))
        return Welcome("0", header.PYTHON, "here", "/", "fake", "6b" * 32)

    def send(self, request: Request, data: bytes = b"") -> None:
        if isinstance(request, Submit):
            self.reached.set()
            self.gate.wait(10)
            self.bursts.append(len(request.tasks))
            self.deliver((Accepted(request.burst, ("1",) * len(request.tasks)), b""))

        if isinstance(request, Close):
            self.deliver((Closed(), b""))

    def close(self) -> None:
        pass


def test_a_statement_is_one_burst_also_when_it_is_over_before_its_calls_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_SUBMITS", driver._Patience(0.0, -1.0))  # the driver is behind from the start
    service = Service()
    engine = driver.Driver(service, "b")
    engine.start()
    engine.submit(print, (), {}, Resources())
    assert service.reached.wait(10)
    with engine.gathering():
        for number in range(10):
            engine.submit(print, (number,), {}, Resources())
    service.gate.set()
    assert engine.wait_sent(10)
    assert service.bursts == [1, 10]
    engine.stop(cancel=True)
    engine.join()
