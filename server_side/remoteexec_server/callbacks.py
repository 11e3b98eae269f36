"""Callbacks of futures: the user's code on threads of ours."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger("concurrent.futures")


def call_back(future: concurrent.futures.Future[Any], callbacks: Iterable[Callable[[Any], object]]) -> None:
    """Call them all, and log what they raise, as `concurrent.futures` does with an Exception.

    A SystemExit on a thread of ours would end that thread, and with it the executor. On the main thread, which cancels
    a future, say, what is no Exception goes on: Ctrl-C is meant for who called.
    """
    for callback in callbacks:
        try:
            callback(future)
        except Exception:
            log.exception("exception calling callback for %r", future)
        except BaseException:
            if threading.current_thread() is threading.main_thread():
                raise
            log.exception("exception calling callback for %r", future)
