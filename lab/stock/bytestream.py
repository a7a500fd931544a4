#!/usr/bin/python3
"""A client that sends and receives bytes over XEP-0065 proxies.

All that it knows of the protocol is slixmpp's own plugin, unchanged. It logs
in, prints its events on standard output, one JSON object a line, and takes
commands on standard input, one a line:

    proxy JID       offer this proxy from now on, and no other
    send JID N      send N bytes to the full JID, and end
    quit            log out and end

Events: ready {jid}; proxy {jid, host}; sent {sent, sha256, setup, seconds};
received {received, sha256, seconds}; failed {why}. Times are in seconds: setup
is until the proxy has activated the stream.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import os
import random
import sys
import time

import slixmpp

PIECE = 65536


def emit(event, **fields):
    """Print one event."""
    print(json.dumps({"event": event, **fields}), flush=True)


class Client(slixmpp.ClientXMPP):
    """One login. It carries one stream at a time."""

    def __init__(self, options, password):
        super().__init__(options.jid, password)
        self.ca_certs = options.ca
        self.register_plugin("xep_0030")
        self.register_plugin("xep_0065", {"auto_accept": True})
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("failed_auth", lambda _: os._exit(5))
        self.add_event_handler("socks5_stream", self.opened)
        self.add_event_handler("socks5_data", self.received)
        self.add_event_handler("socks5_closed", self.closed)
        self.incoming = None  # began, digest, count

    async def get_dns_records(self, domain, port=None):
        """The server's address is given; ask no name server."""
        return []

    async def started(self, _):
        self.send_presence(ppriority=-1)
        reader = asyncio.StreamReader()
        await self.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        emit("ready", jid=self.boundjid.full)
        while words := (await reader.readline()).decode().split():
            try:
                if words[0] == "proxy":
                    await self.choose(words[1])
                elif words[0] == "send":
                    await self.send_bytes(slixmpp.JID(words[1]), int(words[2]))
                else:
                    break
            except Exception as error:  # whatever it is, the test wants to hear it
                emit("failed", why=repr(error))
        self.disconnect()

    async def choose(self, jid):
        """Find the proxy as any client does, and forget the others."""
        plugin = self["xep_0065"]
        plugin._proxies = {}
        found = await plugin.discover_proxies()
        # Its address may have come with a resource.
        chosen = {proxy: host for proxy, host in found.items() if slixmpp.JID(proxy).bare == jid}
        if len(chosen) != 1:
            raise LookupError(f"{jid} is not among {list(found)}")
        plugin._proxies = {str(proxy): host for proxy, host in chosen.items()}
        host, port = list(chosen.values())[0]
        emit("proxy", jid=jid, host=f"{host}:{port}")

    async def send_bytes(self, peer, count):
        began = time.monotonic()
        stream = await self["xep_0065"].handshake(peer, timeout=20)
        if not stream:
            raise ConnectionError("no stream")
        setup = time.monotonic() - began
        source, digest, sent = random.Random(count), hashlib.sha256(), 0
        while sent < count:
            piece = source.randbytes(min(PIECE, count - sent))
            digest.update(piece)
            await stream.write(piece)
            sent += len(piece)
        stream.transport.close()  # once everything is written
        emit("sent", sent=sent, sha256=digest.hexdigest(), setup=setup,
             seconds=time.monotonic() - began)

    def opened(self, _):
        self.incoming = time.monotonic(), hashlib.sha256(), [0]

    def received(self, data):
        _, digest, count = self.incoming
        digest.update(data)
        count[0] += len(data)

    def closed(self, _):
        if not self.incoming:
            return  # the end of a stream that we sent
        began, digest, count = self.incoming
        self.incoming = None
        emit("received", received=count[0], sha256=digest.hexdigest(),
             seconds=time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jid", required=True, help="full address to log in as")
    parser.add_argument("--password-file", required=True)
    parser.add_argument("--server", required=True, help="host:port with STARTTLS")
    parser.add_argument("--ca", required=True, help="PEM file to verify the server with")
    options = parser.parse_args()
    with open(options.password_file, encoding="utf-8") as file:
        password = file.readline().rstrip("\r\n")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    client = Client(options, password)
    host, _, port = options.server.rpartition(":")
    client.connect((host, int(port)))
    client.process(forever=False)


if __name__ == "__main__":
    main()
