"""The files of a crew, the pilots of one client. All of it can be made again from the bursts and the outcomes.

    sessions/<session>/crews/<client>/
        spec.json                 `Spec`
        init                      the function each worker calls first, in a file as of an outcome
        tickets/<name>            what nobody has taken
        taken/<pilot>/<name>      what a pilot has in hand, or had when it died
        pilots/<pilot>            `Beat`: written again and again
        hungry/<pilot>            it has found nothing to take
        dismissed/<pilot>         it is one too many, and is to go when what it runs has ended
        stop                      nothing more will come: idle pilots are to go

A ticket is taken by renaming it, which one of several pilots does. Whatever is given back is at first written beside
what it was part of, then taken out of that, then renamed: at each moment the tickets and what one pilot has in hand
hold each task, and in one pilot's hand a task counts once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..wire import messages
from ..wire.messages import BurstId, Pilots, TaskKey
from ..wire.payload import Pickled
from . import hdf5
from .session import Session, checked, publish
from .tickets import Piece, Ticket

_SEIZED = "~"
"""Behind a pilot's name: somebody takes over what it had."""


class BadTicket(Exception):
    """A ticket that cannot be read."""


@dataclass(frozen=True)
class Spec:
    """What pilots have to know.

    Attributes:
        pilots: without `init`, which is in a file.
        command: starts a pilot, without its arguments.
        scheduler: the queue's name in the configuration.
        grace_s: see messages.Terms.
    """

    pilots: Pilots
    command: tuple[str, ...]
    scheduler: str
    grace_s: float


@dataclass(frozen=True)
class Beat:
    """What a pilot says of itself.

    Attributes:
        job: the scheduler's name of its job.
        ended: tasks it has run.
        left: why it has ended, "" while it has not.
        successor: name of the job it has submitted to take its place.
    """

    job: str
    host: str
    pid: int
    started: float
    ended: int = 0
    left: str = ""
    successor: str = ""


class CrewStore:
    """The files of one crew.

    Args:
        client: whose tasks its pilots run; it begins the ids of their bursts.
    """

    def __init__(self, session: Session, client: str) -> None:
        self.session, self.client = session, client
        self.path = session.path / "crews" / checked(client)
        self._tickets, self._taken = self.path / "tickets", self.path / "taken"
        self._beats, self._hungry, self._dismissed = (self.path / name for name in ("pilots", "hungry", "dismissed"))
        self._init_key = TaskKey(f"{client}-init")

    def create(self, spec: Spec, init: bytes) -> None:
        """Make the crew, or change what it is to be."""
        for part in (self._tickets, self._taken, self._beats, self._hungry, self._dismissed):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.path / "stop").unlink()
        if init:
            given = hdf5.Outcome(True, Pickled(init), {})
            publish(self.path / "init", hdf5.write_outcome(self._init_key, given, self.session.key))
        publish(self.path / "spec.json", messages.to_json(spec).encode())

    def spec(self) -> Spec | None:
        """What the crew is to be; None: there is none."""
        try:
            return messages.build(Spec, json.loads((self.path / "spec.json").read_bytes()))
        except FileNotFoundError:
            return None

    def init(self) -> bytes:
        """The pickled function that each worker calls first; empty if there is none.

        Raises:
            header.HeaderError: it must not be loaded here.
        """
        try:
            data = (self.path / "init").read_bytes()
        except FileNotFoundError:
            return b""
        value = hdf5.read_outcome(data, self._init_key, self.session.key).value
        return b"" if value is None else value.data

    def stop(self) -> None:
        """Nothing more will come."""
        with contextlib.suppress(OSError):
            publish(self.path / "stop", b"")

    def stopped(self) -> bool:
        """Whether nothing more will come: so it is said, or the session is gone."""
        try:
            return "stop" in os.listdir(self.path)
        except OSError:
            return True

    # ---- tickets that nobody has ----

    def tickets(self) -> list[str]:
        """Names of what nobody has taken, the oldest first."""
        return sorted(name for name in os.listdir(self._tickets) if not name.startswith("."))

    def add(self, tickets: Sequence[Ticket], order: int) -> None:
        """Let pilots take these.

        Args:
            order: those with a lower one are taken first.
        """
        for number, ticket in enumerate(tickets):
            name = f"{order:016x}-{number:06x}-{secrets.token_hex(3)}"
            _write(self._tickets / f".{name}", ticket)
            os.rename(self._tickets / f".{name}", self._tickets / name)

    def read(self, name: str) -> Ticket | None:
        """A ticket; None: somebody has taken it.

        Raises:
            BadTicket: it is damaged.
        """
        try:
            return _read(self._tickets / name)
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """A ticket is of no use."""
        with contextlib.suppress(FileNotFoundError):
            (self._tickets / checked(name)).unlink()

    # ---- tickets of a pilot ----

    def join(self, pilot: str) -> None:
        """A pilot is there."""
        (self._taken / checked(pilot)).mkdir(mode=0o700, exist_ok=True)

    def take(self, pilot: str, name: str) -> bool:
        """Take a ticket; False: somebody else was first."""
        mine = self._taken / pilot / name
        try:
            os.rename(self._tickets / name, mine)
        except FileNotFoundError:  # NFS may say so although it was we who have renamed it
            return name in os.listdir(self._taken / pilot)
        return True

    def finish(self, pilot: str, name: str) -> None:
        """All of a ticket has ended."""
        with contextlib.suppress(FileNotFoundError):
            (self._taken / pilot / name).unlink()

    def give_back(self, pilot: str, name: str, ticket: Ticket, given: Sequence[Ticket]) -> None:
        """Let others take a part of a ticket.

        Args:
            ticket: what is left of it.
            given: what others may take.
        """
        mine = self._taken / pilot
        order, number, _ = name.split("-")
        names = [f"{order}-{number}-{secrets.token_hex(3)}" for _ in given]
        for new, part in zip(names, given, strict=True):
            _write(mine / new, part)
        if ticket.pieces:
            _write(mine / f".{name}", ticket)
            os.rename(mine / f".{name}", mine / name)
        else:
            (mine / name).unlink()
        for new in names:
            os.rename(mine / new, self._tickets / new)

    def in_hand(self) -> Mapping[str, list[Ticket]]:
        """What each pilot has, had when it died, or what somebody has seized of it."""
        found: dict[str, list[Ticket]] = {}
        for directory in sorted(os.listdir(self._taken)):
            found[directory] = list(self._hand(directory).values())
        return found

    def members(self) -> list[str]:
        """Pilots that have, or had, something in hand."""
        return sorted(os.listdir(self._taken))

    def leave(self, pilot: str) -> None:
        """A pilot is gone, and has nothing in hand."""
        for path in (self._taken / pilot, self._hungry / pilot):
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()

    def seize(self, pilot: str) -> str | None:
        """Take over all that a dead pilot has in hand; returns its new name, None if somebody else was first."""
        try:
            os.rename(self._taken / pilot, self._taken / f"{pilot}{_SEIZED}")
        except OSError:
            return None
        return f"{pilot}{_SEIZED}"

    def pieces(self, seized: str) -> dict[tuple[BurstId, int], tuple[Piece, Ticket]]:
        """What is in a hand, each task once."""
        return {
            (ticket.burst, piece.position): (piece, ticket)
            for ticket in self._hand(seized).values()
            for piece in ticket.pieces
        }

    def release(self, seized: str, back: Sequence[Ticket], order: int) -> None:
        """End a seizure: these tickets are for others, all else of it has ended."""
        hand = self._taken / seized
        names = [f"{order:016x}-{number:06x}-{secrets.token_hex(3)}" for number, _ in enumerate(back)]
        for name, ticket in zip(names, back, strict=True):
            _write(hand / name, ticket)
        for name in os.listdir(hand):
            if name not in names:
                (hand / name).unlink()
        for name in names:
            os.rename(hand / name, self._tickets / name)
        with contextlib.suppress(OSError):
            hand.rmdir()

    def _hand(self, directory: str) -> dict[str, Ticket]:
        hand: dict[str, Ticket] = {}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for name in os.listdir(self._taken / directory):
                if not name.startswith("."):
                    with contextlib.suppress(BadTicket, FileNotFoundError):
                        hand[name] = _read(self._taken / directory / name)
        return hand

    # ---- pilots ----

    def beat(self, pilot: str, beat: Beat) -> None:
        """A pilot is alive, or has left."""
        publish(self._beats / checked(pilot), messages.to_json(beat).encode())

    def read_beat(self, pilot: str) -> Beat | None:
        """What a pilot has said last; None: nothing yet."""
        try:
            return messages.build(Beat, json.loads((self._beats / checked(pilot)).read_bytes()))
        except (OSError, ValueError):
            return None

    def beats(self) -> Iterator[tuple[str, float]]:
        """All pilots that have ever said something, and when, by the clock of the file system."""
        for entry in os.scandir(self._beats):
            if not entry.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat().st_mtime

    def hunger(self, pilot: str, hungry: bool) -> None:
        """Say that a pilot has found nothing to take, or that it has something again."""
        path = self._hungry / pilot
        with contextlib.suppress(OSError):
            if hungry:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            else:
                path.unlink()

    def dismiss(self, pilot: str) -> None:
        """A pilot is one too many."""
        publish(self._dismissed / checked(pilot), b"")

    def dismissed(self, pilot: str) -> bool:
        """Whether a pilot is one too many."""
        return pilot in os.listdir(self._dismissed)

    def change(self, spec: Spec) -> None:
        """From now on the crew is to be like this."""
        publish(self.path / "spec.json", messages.to_json(spec).encode())

    def hungry(self) -> list[str]:
        """Pilots that have found nothing to take."""
        return os.listdir(self._hungry)


def owner_of(directory: str) -> str:
    """The pilot whose hand it is, or was."""
    return directory.rstrip(_SEIZED)


def crews(session: Session) -> list[str]:
    """Clients whose tasks run in pilots."""
    try:
        return sorted(os.listdir(session.path / "crews"))
    except FileNotFoundError:
        return []


def without_init(pilots: Pilots) -> Pilots:
    """The same as it stands in a `Spec`."""
    return replace(pilots, init="")


def regroup(pieces: Sequence[tuple[Piece, Ticket]], ended: frozenset[TaskKey] = frozenset()) -> list[Ticket]:
    """Tickets for pieces of several, those of one ticket together again."""
    found: dict[int, tuple[Ticket, list[Piece]]] = {}
    for piece, ticket in pieces:
        needs = tuple(key for key in piece.needs if key not in ended)
        found.setdefault(id(ticket), (ticket, []))[1].append(replace(piece, needs=needs))
    return [replace(ticket, pieces=tuple(members)) for ticket, members in found.values()]


def _write(path: Path, ticket: Ticket) -> None:
    """Without waiting for the disk: what a crash leaves of tickets is made again from the burst."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as file:
        file.write(messages.to_json(ticket).encode())


def _read(path: Path) -> Ticket:
    data = path.read_bytes()
    try:
        return messages.build(Ticket, json.loads(data))
    except ValueError as exc:
        raise BadTicket(f"{path}: {exc}") from exc
