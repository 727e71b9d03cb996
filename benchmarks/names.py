"""A name server that gives the addresses of the replicas."""

import ipaddress
import socketserver
import struct
import threading
from collections.abc import Sequence
from types import TracebackType

RECORDS = {4: 1, 6: 28}  # version of IP -> type of the record
FOUND, FAILED = 0x8180, 0x8182


class Names:
    """Answers every question with `addresses`, or with a failure while that is None. `port`: of the loopback, UDP."""

    def __init__(self, addresses: Sequence[str] | None) -> None:
        self.addresses = addresses
        self._server = socketserver.UDPServer(("127.0.0.1", 0), self._handler())
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> "Names":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        names = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                question, server = self.request
                server.sendto(names.answer(question), self.client_address)

        return Handler

    def answer(self, message: bytes) -> bytes:
        end = message.index(b"\0", 12) + 5  # the name, then its type and class
        question, wanted = message[12:end], int.from_bytes(message[end - 4 : end - 2])
        found = [ipaddress.ip_address(address).packed for address in self.addresses or ()]
        records = [packed for packed in found if RECORDS[4 if len(packed) == 4 else 6] == wanted]
        flags = FAILED if self.addresses is None else FOUND
        answers = [struct.pack("!HHHIH", 0xC00C, wanted, 1, 1, len(packed)) + packed for packed in records]
        return message[:2] + struct.pack("!HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(answers)
