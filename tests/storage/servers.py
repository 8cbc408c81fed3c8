"""A local S3 server, a relay before it that cuts connections, and a server that never answers."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server on loopback, with an empty `BUCKET`, and yield its address."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    try:
        client(address).create_bucket(Bucket=BUCKET)
        yield address
    finally:
        server.stop()


def client(address: str) -> Any:
    """Return a client of the server, with which tests look at and spoil its objects."""
    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=VARIABLES["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=VARIABLES["AWS_SECRET_ACCESS_KEY"],
        region_name=VARIABLES["AWS_DEFAULT_REGION"],
    )


class Relay:
    """Passes bytes on between its own `address` and a server's; cuts the first answers that get too long."""

    def __init__(self, address: str, cuts: int, after: int) -> None:
        """Cut `cuts` connections, each when `after` bytes of answers have passed."""
        self._host, _, port = address.removeprefix("http://").partition(":")
        self._port = int(port)
        self.cuts_left, self._after = cuts, after
        self.passed = 0
        """Bytes of answers that have passed."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection((self._host, self._port))
                for source, sink in ((ours, theirs), (theirs, ours)):
                    answers = source is theirs
                    threading.Thread(target=self._pass, args=(source, sink, answers), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError), source, sink:
            while content := source.recv(65536):
                if answers:
                    passed += len(content)
                    self.passed += len(content)
                    if passed > self._after and self.cuts_left:
                        self.cuts_left -= 1
                        sink.shutdown(socket.SHUT_RDWR)
                        return
                sink.sendall(content)
            sink.shutdown(socket.SHUT_WR)


class SilentServer:
    """Takes connections at its `address`, and answers nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections, and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in (self._listener, *self.taken):
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.taken.append(self._listener.accept()[0])
