"""What a disk may hold after a power cut: all that was synced, and of the rest whatever it likes.

A model of a POSIX file system that promises no more than the standard does. It replays the operations that a
program asked for, and at any point makes a state that the disk could be in then:

- what a file was given since its last sync may be there, missing, zero, or torn at 512 or 4,096 bytes;
- a new, changed or removed name may or may not have reached the disk while its directory was not synced,
  each independently of the others, in any order;
- a rename inside one directory is done or not done; one between two directories may have happened in the
  target alone (both names), never in the source alone;
- a file whose name was lost is lost, whatever was synced inside it.

The method is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014) and of
CrashMonkey (Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing", OSDI 2018),
at the level of system calls, with bounded samples instead of all states.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from device.disk import Operation

SECTORS = (512, 4096)


@dataclass(eq=False)
class File:
    """A file: what is on the disk for certain, and what was done to it since.

    Attributes:
        pending: (offset, bytes) for a write, (size, None) for a change of size.
    """

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list[tuple[int, "bytes | None"]])

    def sync(self) -> None:
        self.durable, self.pending = whole(self), []


@dataclass(eq=False)
class Link:
    """A symbolic link."""

    content: str


@dataclass(frozen=True, eq=False)
class Change:
    """Names of one directory that were given to other nodes, or to none, at one stroke.

    Attributes:
        number: its place among all changes.
        needs: a change without which this one cannot have reached the disk.
    """

    number: int
    folder: Folder
    names: tuple[tuple[str, Node | None], ...]
    needs: Change | None = None


@dataclass(eq=False)
class Folder:
    """A directory: the names in it as the program sees them, as they are on the disk, and what is on its way.

    Attributes:
        newest: for each name the number of the change that is on the disk.
    """

    live: dict[str, Node] = field(default_factory=dict[str, "Node"])
    durable: dict[str, Node] = field(default_factory=dict[str, "Node"])
    pending: list[Change] = field(default_factory=list[Change])
    newest: dict[str, int] = field(default_factory=dict[str, int])

    def sync(self) -> None:
        """Put all changes on the disk, and what they need in other directories."""
        for change in list(self.pending):
            _settle(change)

    def names(self, kept: Callable[[Change], bool]) -> dict[str, Node]:
        """Return the directory as it is when of the changes on their way those ``kept`` have arrived."""
        found, newest = dict(self.durable), dict(self.newest)
        for change in self.pending:
            if kept(change):
                _enter(change, found, newest)
        return found


Node = File | Folder | Link


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _enter(change: Change, names: dict[str, Node], newest: dict[str, int]) -> None:
    for name, node in change.names:
        if newest.get(name, -1) < change.number:
            newest[name] = change.number
            _put(names, name, node)


def _settle(change: Change) -> None:
    if change.needs is not None:
        _settle(change.needs)
    if change in change.folder.pending:
        change.folder.pending.remove(change)
        _enter(change, change.folder.durable, change.folder.newest)


class Model:
    """A file system that begins with what lies in ``root``, all of it synced."""

    def __init__(self, root: Path) -> None:
        self._inodes: dict[int, File] = {}
        self._number = 0
        self.root = self._read(root)
        self.marks: list[str] = []

    def _read(self, path: Path) -> Folder:
        folder = Folder()
        for entry in os.scandir(path):
            if entry.is_symlink():
                node: Node = Link(str(Path(entry.path).readlink()))
            elif entry.is_dir():
                node = self._read(Path(entry.path))
            else:
                node = self._inodes.setdefault(entry.inode(), File(Path(entry.path).read_bytes()))
            folder.live[entry.name] = folder.durable[entry.name] = node
        return folder

    # -- replaying ----------------------------------------------------------------------------------

    def apply(self, operation: Operation) -> None:
        """Do what the program did."""
        getattr(self, f"_{operation.what}")(operation)

    def _mark(self, operation: Operation) -> None:
        self.marks.append(operation.content.decode())

    def _create(self, operation: Operation) -> None:
        file = self._inodes[operation.inode] = File()
        self._name(operation.path, file)

    def _truncate(self, operation: Operation) -> None:
        self._inodes[operation.inode].pending.append((0, None))

    def _write(self, operation: Operation) -> None:
        self._inodes[operation.inode].pending.append((operation.offset, operation.content))

    def _resize(self, operation: Operation) -> None:
        self._inodes[operation.inode].pending.append((operation.offset, None))

    def _reserve(self, operation: Operation) -> None:
        file = self._inodes[operation.inode]
        if (size := len(whole(file))) < operation.offset:
            file.pending.append((size, bytes(operation.offset - size)))

    def _fsync(self, operation: Operation) -> None:
        node = self._find(operation.path) if operation.inode not in self._inodes else None
        if isinstance(node, Folder):
            node.sync()
        else:
            self._inodes[operation.inode].sync()

    _fdatasync = _fsync

    def _mkdir(self, operation: Operation) -> None:
        self._name(operation.path, Folder())

    def _symlink(self, operation: Operation) -> None:
        self._name(operation.path, Link(operation.other))

    def _link(self, operation: Operation) -> None:
        self._name(operation.other, self._find(operation.path))

    def _unlink(self, operation: Operation) -> None:
        self._name(operation.path, None)

    _rmdir = _unlink

    def _rename(self, operation: Operation) -> None:
        node = self._find(operation.path)
        source, old = self._place(operation.path)
        target, new = self._place(operation.other)
        if source is target:
            self._change(source, ((old, None), (new, node)))
        else:
            added = self._change(target, ((new, node),))
            self._change(source, ((old, None),), needs=added)

    def _name(self, path: str, node: Node | None) -> None:
        folder, name = self._place(path)
        self._change(folder, ((name, node),))

    def _change(
        self, folder: Folder, names: tuple[tuple[str, Node | None], ...], needs: Change | None = None
    ) -> Change:
        self._number += 1
        change = Change(self._number, folder, names, needs)
        folder.pending.append(change)
        for name, node in names:
            _put(folder.live, name, node)
        return change

    def _place(self, path: str) -> tuple[Folder, str]:
        parent, _, name = path.rpartition("/")
        folder = self._find(parent)
        assert isinstance(folder, Folder), path
        return folder, name

    def _find(self, path: str) -> Node:
        node: Node = self.root
        for part in path.split("/") if path not in ("", ".") else ():
            assert isinstance(node, Folder), path
            node = node.live[part]
        return node


# -- what the disk may hold ---------------------------------------------------------------------------


def whole(file: File) -> bytes:
    """Return a file as the program sees it."""
    return _written(file.durable, file.pending)


def _written(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    made = bytearray(content)
    for place, given in changes:
        end = place if given is None else place + len(given)
        if len(made) < end:
            made += bytes(end - len(made))
        if given is None:
            del made[place:]
        else:
            made[place:end] = given
    return bytes(made)


def dropped(file: File, _chance: random.Random) -> bytes:
    """Nothing since the last sync arrived."""
    return file.durable


def arrived(file: File, _chance: random.Random) -> bytes:
    """Everything arrived."""
    return whole(file)


def zeroed(file: File, _chance: random.Random) -> bytes:
    """The file has its new size, and zeros where its new bytes should be."""
    return _written(
        file.durable, [(at, None if new is None else bytes(len(new))) for at, new in file.pending]
    )


def torn(file: File, chance: random.Random) -> bytes:
    """The changes arrived in order up to the middle of one, which is torn at the end of a sector."""
    if not file.pending:
        return file.durable
    last = chance.randrange(len(file.pending))
    at, new = file.pending[last]
    if new is not None:
        sector = chance.choice(SECTORS)
        new = new[: max(0, (chance.randrange(at, at + len(new) + 1) // sector) * sector - at)]
    return _written(file.durable, [*file.pending[:last], (at, new)])


def scattered(file: File, chance: random.Random) -> bytes:
    """Each sector arrived or not by itself."""
    made, before, sector = bytearray(whole(file)), file.durable, chance.choice(SECTORS)
    for at in range(0, len(made), sector) if file.pending else ():
        if chance.random() < 0.5:
            old = before[at : at + sector]
            made[at : at + sector] = old.ljust(len(made[at : at + sector]), b"\0")
    return bytes(made)


Data = Callable[[File, random.Random], bytes]
LOSSES: tuple[Data, ...] = (dropped, arrived, zeroed, torn, scattered)


@dataclass(frozen=True)
class State:
    """One way in which the disk may be found, as ``path -> content``: bytes of a file, whose number tells
    names of one file, the text of a link, or None for a directory."""

    entries: tuple[tuple[str, tuple[int, bytes] | str | None], ...]

    @property
    def digest(self) -> bytes:
        """Tells states apart."""
        return hashlib.sha256(repr(self.entries).encode()).digest()

    def write(self, root: Path) -> None:
        """Make the state under the new directory ``root``."""
        root.mkdir()
        first: dict[int, Path] = {}
        for name, content in self.entries:
            path = root / name
            if content is None:
                path.mkdir()
            elif isinstance(content, str):
                path.symlink_to(content)
            elif content[0] in first:
                path.hardlink_to(first[content[0]])
            else:
                path.write_bytes(content[1])
                first[content[0]] = path


def states(model: Model, chance: random.Random, num_random: int) -> Iterator[State]:
    """Yield states in which the disk may be now: the extremes, and some by chance."""
    for share, loss in ((0.0, dropped), (1.0, dropped), (1.0, zeroed), (0.0, arrived), (1.0, arrived)):
        yield _state(model, share, [loss], chance)
    for _ in range(num_random):
        yield _state(model, chance.choice((0.2, 0.5, 0.8)), LOSSES, chance)


def _state(model: Model, share: float, losses: Sequence[Data], chance: random.Random) -> State:
    """Return a state in which this share of the names on their way has arrived."""
    decided: dict[Change, bool] = {}

    def kept(change: Change) -> bool:
        if change not in decided:
            needed = (
                change.needs is None or change.needs not in change.needs.folder.pending or kept(change.needs)
            )
            decided[change] = needed and chance.random() < share
        return decided[change]

    entries: list[tuple[str, tuple[int, bytes] | str | None]] = []
    made: dict[int, tuple[int, bytes]] = {}

    def walk(folder: Folder, above: str) -> None:
        for name, node in sorted(folder.names(kept).items(), key=lambda found: found[0]):
            path = above + name
            if isinstance(node, Folder):
                entries.append((path, None))
                walk(node, path + "/")
            elif isinstance(node, Link):
                entries.append((path, node.content))
            else:
                if id(node) not in made:
                    made[id(node)] = (len(made), chance.choice(losses)(node, chance))
                entries.append((path, made[id(node)]))

    walk(model.root, "")
    return State(tuple(entries))
