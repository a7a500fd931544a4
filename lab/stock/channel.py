"""One TCP connection of a stock peer: lines first, then a stream.

TLS runs over memory buffers rather than a wrapped socket, because only so can
one direction end while the other goes on.
"""

import socket
import ssl

LINE = 512  # bytes at most, the linefeed included


class HandshakeError(Exception):
    """The other side did not say what XEP-0046 lets it say."""


class Cut(Exception):
    """The stream ended without its end having been announced."""


class Channel:
    """A connection that reads and writes lines, then bytes, encrypted or not."""

    def __init__(self, connection):
        self.socket = connection
        self.socket.settimeout(30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pending = b""
        self.tls = None
        self.encrypted = False

    def patience(self, seconds):
        """Bound every read and write from now on."""
        self.socket.settimeout(seconds)

    def start_tls(self, certificate):
        """Begin TLS: as server with that PEM file, as client with None.

        XEP-0046 says nothing of certificates, so none is verified.
        """
        if self.pending:
            raise HandshakeError("bytes before TLS")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if certificate else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if certificate:
            context.load_cert_chain(certificate)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=bool(certificate))
        self.pump(self.tls.do_handshake)
        self.encrypted = True

    def pump(self, operation, *arguments):
        """Run one TLS operation, carrying bytes until it has what it needs."""
        while True:
            try:
                result = operation(*arguments)
                self.flush()
                return result
            except ssl.SSLWantReadError:
                self.flush()
                data = self.socket.recv(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()

    def flush(self):
        data = self.outgoing.read()
        if data:
            self.socket.sendall(data)

    def read(self):
        """Some bytes; none at the announced end of the stream."""
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        try:
            if self.tls:
                return self.pump(self.tls.read, 65536)
            return self.socket.recv(65536)
        except ssl.SSLZeroReturnError:
            return b""  # the peer's end, after ours
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise Cut(repr(error)) from error

    def write(self, data):
        if self.tls:
            self.pump(self.tls.write, data)
        else:
            self.socket.sendall(data)

    def end(self):
        """End our direction; the other goes on."""
        if self.tls:
            try:
                self.tls.unwrap()
            except (ssl.SSLWantReadError, ssl.SSLSyscallError):
                pass  # ours is said; the peer's may come much later
            self.flush()
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.socket.close()

    def read_line(self):
        """One line without its linefeed."""
        while b"\n" not in self.pending:
            if len(self.pending) >= LINE:
                raise HandshakeError("line too long")
            data, rest = b"", self.pending
            self.pending = b""
            try:
                data = self.read()
            except Cut as error:
                raise HandshakeError(str(error)) from error
            if not data:
                raise HandshakeError("connection closed")
            self.pending = rest + data
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode("ascii")

    def write_line(self, text):
        self.write(text.encode("ascii") + b"\n")
