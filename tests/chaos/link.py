"""A line between two machines that can be cut, one way or both: a small TCP proxy."""

import socket
import threading
from contextlib import suppress

from tests.services import free_port


class Link:
    """Passes on what comes to its port. While it is cut nothing arrives, and neither side is told.

    What was sent meanwhile arrives afterwards, as TCP would repeat it.
    """

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self._target = "127.0.0.1", target_port
        self._there, self._back = threading.Event(), threading.Event()
        self.mend()
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Take connections: the target listens."""
        self.close()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def close(self) -> None:
        """Refuse connections, as the machine of a dead target does; present ones end with the target."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
            self._listener.close()
            self._listener = None

    def cut(self, there: bool = True, back: bool = True) -> None:
        """Let nothing through towards the target, nothing back from it, or neither."""
        if there:
            self._there.clear()
        if back:
            self._back.clear()

    def mend(self) -> None:
        """Let everything through."""
        self._there.set()
        self._back.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._connect, args=[client], daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._there.wait()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._pass_on, args=[client, server, self._there], daemon=True).start()
        self._pass_on(server, client, self._back)

    def _pass_on(self, source: socket.socket, sink: socket.socket, open_: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                open_.wait()
                sink.sendall(data)
        open_.wait()  # the end of a connection does not pass a cut, either
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
