"""A small TCP proxy: a line to a server that can be cut, for one machine or for all, in one direction or both."""

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import psutil

from pipeline.local_stack.server import Server
from tests.services import free_port


class Gate:
    """Controls what passes from one sender to a server, and what passes back."""

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
    """Forwards connections from its port. While it is cut nothing arrives, and neither side is told.

    What was sent meanwhile arrives afterwards, as TCP would resend it. Each sender has its own gate. The connecting
    process tells which sender it is, because all of them use the same address: the one that the target advertises.
    """

    def __init__(self, target_port: int, senders: Sequence[Server] = ()) -> None:
        self.port = free_port()
        self._target = "127.0.0.1", target_port
        self.gates: dict[Server | None, Gate] = {sender: Gate() for sender in (None, *senders)}  # None: all others
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Accept connections: the target is listening."""
        self.close()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def close(self) -> None:
        """Refuse connections, as the machine of a dead target does; existing ones end with the target."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
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
        """Return the machine that has a process connecting from that port; None for a client."""
        for sender in self.gates:
            if sender is not None and sender.running and port in _ports_of(sender.pid):
                return sender
        return None

    def _pass_on(self, source: socket.socket, sink: socket.socket, open_: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                open_.wait()
                sink.sendall(data)
        open_.wait()  # a cut also holds back the end of a connection
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
