"""The file of a run: one SQLite database of rows and certificates, which grows and is never rewritten.

Why SQLite, of the standard library, and not parquet: a parquet file is readable only once its footer is written, at
the end, so a run that is killed loses the file or needs one file per example; here each example is one transaction,
which is there whole or not at all whenever the process ends (SIGKILL included), and the library itself sees to it that
one process writes at a time. Reading it runs no code of the file: values are numbers, text and bytes, the schema must
be ours to the letter, and arrays are read as safetensors.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from lipcert.errors import StoreError
from lipcert.guarantee import STRENGTH
from lipcert.robustness.rows import ROW_FIELDS, Decision, Row, Status

FORMAT = "lipcert-robustness-1"

_SCHEMA = {
    "about": "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "shared": "CREATE TABLE shared (name TEXT PRIMARY KEY, content BLOB NOT NULL)",
    "decisions": (
        'CREATE TABLE decisions ("index" INTEGER PRIMARY KEY, label INTEGER NOT NULL, predicted INTEGER NOT NULL, '
        "status TEXT NOT NULL, certified_radius REAL NOT NULL, attacked_radius REAL NOT NULL, margin REAL NOT NULL, "
        "method TEXT NOT NULL, guarantee TEXT, seconds REAL NOT NULL, proof BLOB, example BLOB, counter BLOB, "
        "sha256 TEXT NOT NULL)"
    ),
}
_COLUMNS = ", ".join(f'"{name}"' for name in (*ROW_FIELDS, "proof", "example", "counter", "sha256"))
#: What a run is of, and what to say where the file's is another.
_IDENTITY = {
    "model": "of another model (another network, other weights, or another scale=)",
    "data": "of other data (other inputs, labels, or another order)",
    "settings": "of a run with other settings",
    "version": "written by another version of lipcert",
}
#: Settings of which a run may be given more than it had: what is undecided is then taken up again.
_MORE = ("budget", "effort")
#: Where the file says which rows these still are.
_AGAIN = "again"


class Store:
    """Rows and certificates of one run, in a file that other processes cannot write meanwhile.

    Args:
        connection: to the database; None: one is made whenever the file is read, and ended by ``rest``.
        where: the file, or its name in messages.
    """

    def __init__(self, connection: sqlite3.Connection | None, where: str) -> None:
        self._connection, self.where = connection, where
        self._owner, self._logged, self._kept = os.getpid(), False, connection is not None
        self._again: set[int] = set()
        self._top, self._raised = math.inf, ""

    # -- opening ---------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path | None, about: Mapping[str, str], radii: Sequence[float] | None = None) -> Store:
        """The file of a run, made if there is none; a temporary one for None.

        Args:
            path: where; it ends up as one file.
            about: what the run is of (``model``, ``data``, ``settings``, ``version`` and more).
            radii: those asked for, ascending. Where the run is given more time or effort than it had, rows that are
                open at one of them are taken up again; None: it may not be.

        Raises:
            StoreError: the file is something else, damaged, of another run, or in use.
        """
        where = "the temporary file of this run" if path is None else str(path)
        fresh = path is None or _absent(Path(path))
        with _named(where):
            # "" is a temporary database of SQLite's own: on the disk once it outgrows memory, gone when closed
            connection = sqlite3.connect(
                "" if path is None else str(path), timeout=0.5, isolation_level=None, check_same_thread=False
            )
        store = cls(connection, where)
        try:
            with _named(where):
                store._execute("PRAGMA trusted_schema = OFF")
                if not fresh and store._tables():
                    store._require_ours()  # before anything is written
                    store._require_same(about, radii is not None)
                store._pragmas(path is not None)
                store._begin(about, radii)
        except BaseException:
            connection.close()
            raise
        return store

    @classmethod
    def read(cls, path: str | Path) -> Store:
        """A file that exists, to be read.

        Raises:
            StoreError: missing, or no file of a run, or damaged.
        """
        if not Path(path).is_file():
            raise StoreError(f"there is no file {path}.")
        log = Path(f"{path}-wal")
        if log.is_file() and log.stat().st_size:
            raise StoreError(f"{path} is of a run that goes on, or was killed: finish it first, with resume={path}.")
        store = cls(None, str(path))
        try:
            with _named(str(path)):
                store._require_ours()
        finally:
            store.rest()
        return store

    def _pragmas(self, lasting: bool) -> None:
        self._execute("PRAGMA locking_mode = EXCLUSIVE")
        if lasting:
            # the log holds what the main file does not yet: a killed process loses no transaction that was committed
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = NORMAL")
            self._logged = True

    def _begin(self, about: Mapping[str, str], radii: Sequence[float] | None) -> None:
        with self._transaction():  # held until closed: no second run writes here
            if not self._tables():
                for text in _SCHEMA.values():
                    self._execute(text)
                for name, value in {"format": FORMAT, **about}.items():
                    self._execute("INSERT INTO about VALUES (?, ?)", (name, value))
        self._require_ours()
        self._require_same(about, radii is not None)
        self._again = self._waiting()
        if radii is None:
            return
        self._top = radii[-1]
        if self.about["settings"] != about["settings"]:
            self._raised = about["settings"]  # the file says so with the first example, until then it is as it was
            self._again |= {row.index for row in self.rows() if any(row.status_at(r) == "open" for r in radii)}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self._execute("BEGIN EXCLUSIVE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            raise

    def _waiting(self) -> set[int]:
        """Rows that are to be decided anew, as the file says."""
        held = self.about.get(_AGAIN, "[]")
        try:
            found = json.loads(held)
        except (ValueError, RecursionError):
            found = None
        there = {index for (index,) in self._execute('SELECT "index" FROM decisions')}
        if not isinstance(found, list) or not all(type(index) is int and index in there for index in found):
            raise StoreError(f"{self.where} is damaged: it names {held[:20]!r} as rows to be decided anew.{_ANEW}")
        return set(found)

    def _tables(self) -> dict[str, str]:
        found = self._execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name if kind == "table" else f"{kind} {name}": sql for kind, name, sql in found}

    def _require_ours(self) -> None:
        if self._tables() != _SCHEMA or self.about.get("format") != FORMAT:
            raise StoreError(f"{self.where} is no file of a certification run (format {FORMAT}).")
        (state,) = self._execute("PRAGMA quick_check(1)").fetchone()
        if state != "ok":
            raise StoreError(f"{self.where} is damaged: {state}.{_ANEW}")

    def _require_same(self, about: Mapping[str, str], more: bool) -> None:
        held = self.about
        for name, text in _IDENTITY.items():
            if held.get(name) != about[name] and not (
                more and name == "settings" and _more(held.get(name), about[name])
            ):
                what = _difference(held.get(name), about[name]) if name == "settings" else ""
                raise StoreError(f"{self.where} is {text}{what}: give another file with resume=, or delete this one.")

    # -- content ---------------------------------------------------------------------------------------------

    @property
    def about(self) -> dict[str, str]:
        """What the run is of."""
        with _named(self.where):
            return dict(self._execute("SELECT name, value FROM about").fetchall())

    def shared(self, name: str) -> bytes | None:
        """What several rows rest on."""
        with _named(self.where):
            found = self._execute("SELECT content FROM shared WHERE name = ?", (name,)).fetchone()
        return None if found is None else bytes(found[0])

    def share(self, contents: Mapping[str, bytes]) -> None:
        """Keep what several rows rest on, by names; all of it or nothing."""
        places = ", ".join(["(?, ?)"] * len(contents))
        with _named(self.where):
            self._execute(
                f"INSERT INTO shared VALUES {places}", tuple(part for pair in contents.items() for part in pair)
            )

    def add(self, decision: Decision) -> None:
        """Write one example: it is there whole, or not at all.

        Of an example that was taken up again what was known before is kept where it is more.

        Raises:
            StoreError: no space is left, the disk fails, or the example is there already.
        """
        index, again = decision.row.index, self._again - {decision.row.index}
        with _named(self.where), self._transaction():
            if self._raised:
                self._execute("UPDATE about SET value = ? WHERE name = 'settings'", (self._raised,))
            if self._raised or again != self._again:
                self._execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (_AGAIN, json.dumps(sorted(again))))
            if again != self._again:
                (values,) = self._execute(f'SELECT {_COLUMNS} FROM decisions WHERE "index" = ?', (index,)).fetchall()
                decision = self._decision(values).joined(decision, self._top)
                self._execute('DELETE FROM decisions WHERE "index" = ?', (index,))
            self._insert(decision)
        self._again, self._raised = again, ""

    def _insert(self, decision: Decision) -> None:
        values = [getattr(decision.row, name) for name in ROW_FIELDS]
        values += [decision.proof, decision.example, decision.counter, decision.sha256]
        self._execute(f"INSERT INTO decisions ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})", tuple(values))

    def finished(self) -> set[int]:
        """Indices of the examples that are there, and are not to be decided anew."""
        with _named(self.where):
            return {index for (index,) in self._execute('SELECT "index" FROM decisions')} - self._again

    def rows(self) -> Iterator[Row]:
        """In order."""
        for decision in self.decisions():
            yield decision.row

    def decisions(self) -> Iterator[Decision]:
        """In order, with their evidence.

        Raises:
            StoreError: one does not match its hash.
        """
        with _named(self.where):
            for values in self._execute(f'SELECT {_COLUMNS} FROM decisions ORDER BY "index"'):
                yield self._decision(values)

    def _decision(self, values: tuple[Any, ...]) -> Decision:
        row = Row(*values[: len(ROW_FIELDS)])
        decision = Decision(row, *values[len(ROW_FIELDS) : -1])
        if not _sound(decision) or decision.sha256 != values[-1]:
            raise StoreError(f"{self.where} is damaged: row {row.index} does not match its hash.{_ANEW}")
        return decision

    def copy(self, path: str | Path) -> None:
        """Write all of it to another file, which appears whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        target = Path(path)
        temporary = None
        with _named(str(path)):
            try:
                handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".lipcert-")
                os.close(handle)
                self._execute("VACUUM INTO ?", (temporary,))
                os.chmod(temporary, 0o644)
                os.replace(temporary, target)
                temporary = None
            except OSError as problem:
                raise StoreError(f"cannot write {path}: {problem}") from problem
            finally:
                if temporary is not None:
                    os.unlink(temporary)

    def rest(self) -> None:
        """Hold the file no longer, where it is only read; it is opened again when it is needed."""
        if not self._kept and self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Let others have the file."""
        if os.getpid() != self._owner or self._connection is None:  # in a forked worker the file is the parent's
            return
        if self._logged:
            with contextlib.suppress(sqlite3.Error):  # what is in the log stays there, and is found by the next run
                self._execute("PRAGMA journal_mode = DELETE")
            self._logged = False
        self._connection.close()
        self._connection = None

    def _execute(self, text: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        if self._connection is None:
            self._connection = _connected(f"file:{quote(str(Path(self.where).absolute()))}?mode=ro", uri=True)
            self._connection.execute("PRAGMA trusted_schema = OFF")
        return self._connection.execute(text, values)


_ANEW = " Delete it (and the files -wal and -shm beside it) and run again, or take a copy from a backup."


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Errors of SQLite in words of ours."""
    try:
        yield
    except sqlite3.Error as problem:
        text = str(problem)
        if "locked" in text:
            reason = "another run has it open: wait for that to end, or give another file with resume="
        elif "full" in text or "disk I/O" in text:
            reason = f"it cannot be written ({text}): make space on the disk and run again, what is finished is kept"
        elif "unable to open" in text or "readonly" in text:
            reason = f"it cannot be opened for writing ({text}): its folder must exist and be yours"
        elif "not a database" in text or "malformed" in text:
            reason = f"it is damaged, or no file of a run ({text}).{_ANEW}".rstrip(".")
        else:
            reason = f"SQLite reports {type(problem).__name__}: {text}"
        raise StoreError(f"{where}: {reason}.") from problem


def _connected(name: str, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=0.5, isolation_level=None, check_same_thread=False, uri=uri)


def _sound(decision: Decision) -> bool:
    """Whether every value is of its kind: SQLite itself would hold anything."""
    row = decision.row
    numbers = (row.certified_radius, row.attacked_radius, row.margin, row.seconds)
    return (
        all(type(v) is int and v >= 0 for v in (row.index, row.label, row.predicted))
        and row.status in get_args(Status)
        and all(type(v) is float and not math.isnan(v) for v in numbers)
        and min(row.certified_radius, row.attacked_radius) >= 0.0
        and type(row.method) is str
        and (row.guarantee is None or row.guarantee in STRENGTH)
        and all(v is None or type(v) is bytes for v in (decision.proof, decision.example, decision.counter))
    )


def _absent(path: Path) -> bool:
    if path.is_dir():
        raise StoreError(f"{path} is a folder; the file of a run is one file, for instance run.sqlite in it.")
    return not path.exists()


def _settings(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _more(held: str | None, wanted: str) -> bool:
    """Whether two settings differ only in what may grow, and that grew."""
    one, other = _settings(held), _settings(wanted)
    same = all(one.get(k) == other.get(k) for k in {*one, *other} - set(_MORE))
    pairs = [(one.get(k), other.get(k)) for k in _MORE]
    return same and all(isinstance(a, float) and isinstance(b, float) and a <= b for a, b in pairs)


def _difference(held: str | None, wanted: str) -> str:
    one, other = _settings(held), _settings(wanted)
    names = [k for k in sorted({*one, *other}) if one.get(k) != other.get(k)]
    return " (" + ", ".join(f"{k}: {one.get(k)} there, {other.get(k)} now" for k in names) + ")" if one else ""
