"""The index as a frontend of its own has it: a file that a worker makes, perhaps after the frontend is started.

A frontend that made the file itself would answer every List with nothing wherever it looks at another file than the
workers write: an empty index and an index that nobody keeps look the same. So it only takes what a worker has made,
and says what is missing until there is one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping

from temporalio.api.workflowservice.v1 import request_response_pb2 as ws

from everfold.kernel.errors import Code, StatusError
from everfold.visibility.schema import APPLICATION_ID, IndexUnusable
from everfold.visibility.store import Page, VisibilityStore, path_of


class FoundIndex:
    """Answers from the index at a URL once a worker has made it, refuses until then. Blocks, as the store does."""

    def __init__(self, url: str) -> None:
        """Opens nothing.

        Raises:
            IndexUnusable: the URL names a database that is not supported.
        """
        self._path = path_of(url)
        self._store: VisibilityStore | None = None
        self._lock = threading.Lock()

    def look(self) -> str:
        """Opens the index if there is one; else what was expected, what was found, and what to do.

        Raises:
            IndexUnusable: there is one, and this build cannot use it.
        """
        with self._lock:
            if self._store is not None:
                return ""
            found = self._found()
            if not found:
                self._store = VisibilityStore(self._path)
                return ""
        return (
            f"visibility.url: expected the index that a worker keeps at {self._path.absolute()}, found {found}. Give "
            "the frontends and the workers (`everfold worker`) the same --visibility-url, a file on the machine of all "
            "of them, e.g. sqlite:////var/lib/everfold/index.db; a worker makes it when it starts"
        )

    def list(
        self, namespace_id: str, query: str, page_size: int, token: bytes, search_attributes: Mapping[str, str]
    ) -> Page:
        """As the store's. Raises StatusError FAILED_PRECONDITION while there is no index of a worker."""
        return self._opened().list(namespace_id, query, page_size, token, search_attributes)

    def count(
        self, namespace_id: str, query: str, search_attributes: Mapping[str, str]
    ) -> ws.CountWorkflowExecutionsResponse:
        """As the store's. Raises StatusError FAILED_PRECONDITION while there is no index of a worker."""
        return self._opened().count(namespace_id, query, search_attributes)

    def close(self) -> None:
        """Closes the index if it is open. Nobody may be using it."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _opened(self) -> VisibilityStore:
        store = self._store
        if store is None:
            try:
                missing = self.look()
            except IndexUnusable as error:
                missing = str(error)
            store = self._store
            if store is None:
                # Not UNAVAILABLE: SDKs and the `temporal` command repeat such a call until their deadline, and then
                # show the deadline instead of the reason.
                raise StatusError(Code.FAILED_PRECONDITION, missing)
        return store

    def _found(self) -> str:
        """What is there instead of a worker's index; empty when it is one."""
        try:
            self._path.stat()
        except FileNotFoundError:
            return "no file"
        except OSError as error:
            return f"that it cannot be read ({error.strerror})"
        try:
            return self._made()
        except sqlite3.Error as error:
            return f"a file that cannot be read as an index ({error})"

    def _made(self) -> str:
        # Opened for writing, as SQLite's readers of a write-ahead log need it; `rw` never makes a file.
        connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)
        try:
            if connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,):
                return ""
            if connection.execute("PRAGMA user_version").fetchone() == (0,):
                return "a file that holds no index"
            # Workers have marked their indexes from some version on; what they have folded in shows the older ones.
            if connection.execute("SELECT count(*) FROM positions").fetchone() == (0,):
                return "an index that no worker has written to"
            return ""
        finally:
            connection.close()
