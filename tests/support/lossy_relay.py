"""A bad network between an RTSP client and its server, in user space: no root, no namespace.

    client <--TCP: RTSP--> relay <--> server          pull(): nothing passes any more, nothing is
    client <--UDP: RTP --- relay <---/                closed; plug(): what waited passes again

Over UDP a share of the packets to the client is lost: the relay puts its own ports into the
client's SETUP, so that RTP comes through here. What the client sends over UDP goes straight.
"""

from __future__ import annotations

import random
import re
import selectors
import socket
import threading
from types import TracebackType


class LossyRelay:
    """Stands at `url` for the server at another port of this machine."""

    def __init__(self, server_port: int, *, udp_loss: float = 0.0) -> None:
        """
        Args:
            udp_loss: share of the UDP packets that are lost.
        """
        self._server = ("127.0.0.1", server_port)
        self._udp_loss = udp_loss
        self._dice = random.Random(0)
        self._pulled = threading.Event()
        self._done = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, tuple[socket.socket, bool]] = {}  # to whom; by a client?
        self._udp_ways: dict[socket.socket, int] = {}  # to which port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.num_lost = 0
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._run)

    def pull(self) -> None:
        """Pull the cable."""
        self._pulled.set()

    def plug(self) -> None:
        """Plug it in again."""
        self._pulled.clear()

    def __enter__(self) -> LossyRelay:
        self._watch(self._listener)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        for connection in [self._listener, *self._ways, *self._udp_ways]:
            connection.close()
        self._selector.close()

    def _watch(self, connection: socket.socket) -> None:
        self._selector.register(connection, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._done.is_set():
            if self._pulled.is_set():
                self._lose_udp()
                self._done.wait(0.02)
                continue
            for key, _ in self._selector.select(timeout=0.02):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is self._listener:
                    self._accept()
                elif connection in self._udp_ways:
                    self._pass_packet(connection)
                elif connection in self._ways:
                    self._pass_bytes(connection)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._server, timeout=5)
        except OSError:
            client.close()
            return
        self._ways |= {client: (server, True), server: (client, False)}
        self._watch(client)
        self._watch(server)

    def _pass_bytes(self, connection: socket.socket) -> None:
        other, is_client = self._ways[connection]
        try:
            data = connection.recv(65_536)
            if is_client and data.startswith(b"SETUP"):
                data = re.sub(rb"client_port=(\d+)-(\d+)", self._own_ports, data)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass  # the same as an orderly end: both sides are closed
        for one in (connection, other):
            self._selector.unregister(one)
            self._ways.pop(one)
            one.close()

    def _own_ports(self, asked: re.Match[bytes]) -> bytes:
        ports = []
        for wanted in asked.groups():
            relayed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            relayed.bind(("127.0.0.1", 0))
            relayed.setblocking(False)
            self._udp_ways[relayed] = int(wanted)
            self._watch(relayed)
            ports.append(relayed.getsockname()[1])
        return b"client_port=%d-%d" % tuple(ports)

    def _pass_packet(self, relayed: socket.socket) -> None:
        packet = relayed.recv(65_536)
        if self._dice.random() < self._udp_loss:
            self.num_lost += 1
            return
        relayed.sendto(packet, ("127.0.0.1", self._udp_ways[relayed]))

    def _lose_udp(self) -> None:
        """No packet waits in a cable that is pulled."""
        for relayed in self._udp_ways:
            try:
                while True:
                    relayed.recv(65_536)
            except BlockingIOError:
                continue
