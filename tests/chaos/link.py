"""The way to a server that can be cut, for one machine or for all, one way or both: a small TCP proxy."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil

from pipeline.local_stack.server import Server
from tests.services import free_port


class Gate:
    """Lets through what somebody sends to a server, and what comes back."""

    def __init__(self) -> None:
        self.there, self.back = threading.Event(), threading.Event()
        self.mend()

    def cut(self, there: bool = True, back: bool = True) -> None:
        """Let nothing through towards the server, nothing back from it, or neither."""
        if there:
            self.there.clear()
        if back:
            self.back.clear()

    def mend(self) -> None:
        """Let everything through."""
        self.there.set()
        self.back.set()


class Link:
    """Passes on what comes to its port. While it is cut nothing arrives, and neither side is told.

    What was sent meanwhile arrives afterwards, as TCP would repeat it. Each of the senders has a gate of its own. Who
    it is follows from the process that connects, because all of them learn the same address: of a leader, from itself.
    """

    def __init__(self, target_port: int, senders: Sequence[Server] = ()) -> None:
        self.port = free_port()
        self._target = "127.0.0.1", target_port
        self.gates: dict[Server | None, Gate] = {sender: Gate() for sender in (None, *senders)}  # None: all others
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
        """Let nothing through towards the target, nothing back from it, or neither, whoever sends."""
        for gate in self.gates.values():
            gate.cut(there, back)

    def mend(self) -> None:
        """Let everything through."""
        for gate in self.gates.values():
            gate.mend()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, (_, port) = listener.accept()
                threading.Thread(target=self._connect, args=[client, port], daemon=True).start()

    def _connect(self, client: socket.socket, port: int) -> None:
        gate = self.gates[self._sender(port)]
        gate.there.wait()
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._pass_on, args=[client, server, gate.there], daemon=True).start()
        self._pass_on(server, client, gate.back)

    def _sender(self, port: int) -> Server | None:
        """Return the machine of which a process connects from that port."""
        for sender in self.gates:
            if sender is not None and sender.running and port in _ports_of(sender.pid):
                return sender
        return None

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


def _ports_of(pid: int) -> set[int]:
    """Return the ports from which a process and its children have connections."""
    ports: set[int] = set()
    with suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children()):
            with suppress(psutil.NoSuchProcess):  # a child may end meanwhile
                ports |= {connection.laddr.port for connection in process.net_connections("tcp") if connection.laddr}
    return ports
