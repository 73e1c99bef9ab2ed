"""A client that keeps no promise: HTTP/2 and gRPC by hand, a frame at a time."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import zlib
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
FRAME_BYTES = 16 * 1024
SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    numbers = {"window": 4, "frame": 5}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items()))


def window(stream: int, count: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, count.to_bytes(4, "big"))


def literal(name: str, value: str) -> bytes:
    assert len(name) < 127
    assert len(value) < 127
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def headers(path: str, **more: str) -> bytes:
    """A request's header block without compression's tables."""
    fields = {":path": path, ":authority": "localhost", "te": "trailers", "content-type": "application/grpc"}
    fields.update({name.replace("_", "-"): value for name, value in more.items()})
    return b"\x83\x86" + b"".join(literal(name, value) for name, value in fields.items())  # POST, http


def message(data: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(data)) + data


def bomb(inflated: int) -> bytes:
    """A gzip file of zeros."""
    zipper = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(2**20)
    return b"".join(zipper.compress(block) for _ in range(inflated // len(block))) + zipper.flush()


class Stranger:
    """A connection. It reads only when told to."""

    def __init__(self, address: str, *, greet: bool = True, **own_settings: int) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.received = b""
        if greet:
            self.send(PREFACE + settings(**own_settings))
            # A server grants its larger windows from when the client has acknowledged them.
            if self.frames(10, until=SETTINGS):
                self.send(frame(SETTINGS, ACK, 0))

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes, timeout: float = 10.0) -> bool:
        """Sends all of it; False when the server closed the connection or did not read it in time."""
        self.socket.settimeout(timeout)
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def ask(self, stream: int, method: str, **more: str) -> bool:
        return self.send(frame(HEADERS, END_HEADERS, stream, headers(SERVICE + method, **more)))

    def call(self, stream: int, method: str, body: bytes, **more: str) -> bool:
        """Headers and a whole body."""
        blocks = [body[at : at + FRAME_BYTES] for at in range(0, len(body), FRAME_BYTES)] or [b""]
        frames = [frame(DATA, 0, stream, block) for block in blocks[:-1]] + [frame(DATA, 1, stream, blocks[-1])]
        return self.ask(stream, method, **more) and self.send(b"".join(frames))

    def frames(self, seconds: float, *, until: int | None = None) -> list[tuple[int, int, int, bytes]]:
        """What comes in so long, or until a kind of frame has come: (kind, flags, stream, payload)."""
        found: list[tuple[int, int, int, bytes]] = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            while len(self.received) >= 9:
                word, flags, stream = struct.unpack_from(">IBI", self.received)
                end = 9 + (word >> 8)
                if len(self.received) < end:
                    break
                found.append((word & 0xFF, flags, stream, self.received[9:end]))
                self.received = self.received[end:]
                if word & 0xFF == until:
                    return found
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(2**20)
            except TimeoutError:
                break
            except OSError:
                data = b""
            if not data:
                break
            self.received += data
        return found

    def closed_within(self, seconds: float) -> bool:
        """Whether the server ends the connection in time; what it says meanwhile is dropped."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(2**16):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False


class Resident:
    """The resident memory of a process, watched by a thread: its highest value since the start."""

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/statm"
        self.before = self.now()
        self.peak = self.before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Resident:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def now(self) -> int:
        with open(self._path) as file:
            return int(file.read().split()[1]) * 4096

    @property
    def grown_mb(self) -> float:
        return (self.peak - self.before) / 2**20

    def comes_back(self, within_mb: float, seconds: float) -> float:
        """Waits until the memory is near what it was; returns how far it still is, in MB."""
        deadline = time.monotonic() + seconds
        while (left := (self.now() - self.before) / 2**20) > within_mb and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            with contextlib.suppress(OSError, IndexError):
                self.peak = max(self.peak, self.now())
