#!/usr/bin/python3
"""A peer that speaks XEP-0046 0.7 and nothing else.

Written from the text of XEP-0046 alone, on slixmpp and plain sockets, so that
it shares no mistake with the project it is tested against. It logs in, prints
its events on standard output, one JSON object a line, and takes commands on
standard input, one a line:

    dial JID        ask the full JID for a stream
    digest ID       read stream ID to its end, answer one line, "SHA256 LENGTH",
                    and close
    send ID N       send N bytes, end this direction, read the answer to its end
    quit            log out and end

Events: ready {jid}; request {id, peer}; open {id, role, side, tls};
failed {id, why}; done {id, sent, received, sha256, answer}; cut {id, why}.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import os
import random
import secrets
import socket
import sys
import threading
import xml.etree.ElementTree as ET

import slixmpp
from slixmpp.exceptions import IqError, IqTimeout
from slixmpp.xmlstream.handler import Callback
from slixmpp.xmlstream.matcher import MatchXPath

from channel import Channel, Cut, HandshakeError

NS = "http://jabber.org/protocol/dtcp"
PATIENCE = 30  # seconds until a session that has no stream is given up
OUTPUT = threading.Lock()


def emit(event, **fields):
    """Print one event."""
    with OUTPUT:
        print(json.dumps({"event": event, **fields}), flush=True)


class Session:
    """One negotiation, on either side."""

    def __init__(self, number, role, peer, peer_key=None, peer_hosts=()):
        self.number = number
        self.role = role  # "requester" or "responder"
        self.peer = peer
        self.key = secrets.token_hex(8)
        self.lock = threading.Lock()
        self.known = threading.Event()  # set once the peer's key is known
        self.peer_key = peer_key
        self.peer_hosts = list(peer_hosts)[:3]
        self.stream = None
        self.over = False
        self.dials = 0
        self.gave_up = False
        self.peer_gave_up = False
        if peer_key:
            self.known.set()

    def query(self, hosts):
        """The <query/> that tells the peer our key and hosts."""
        query = ET.Element(f"{{{NS}}}query")
        ET.SubElement(query, f"{{{NS}}}key").text = self.key
        for host in hosts:
            ET.SubElement(query, f"{{{NS}}}host").text = host
        return query

    def choose(self, channel):
        """Make channel the stream, unless there is one or all is over."""
        with self.lock:
            if self.stream or self.over:
                return False
            self.stream = channel
            return True

    def opened(self, side):
        """Tell that the stream stands: the last line of the handshake is out."""
        self.stream.patience(120)
        emit("open", id=self.number, role=self.role, side=side, tls=self.stream.encrypted)

    def fail(self, why):
        """End the session without a stream, once."""
        with self.lock:
            if self.stream or self.over:
                return
            self.over = True
        self.known.set()
        emit("failed", id=self.number, why=why)


def parse(query):
    """Key and hosts of a <query/>."""
    key = query.findtext(f"{{{NS}}}key")
    hosts = [(host.text or "").strip() for host in query.findall(f"{{{NS}}}host")]
    return key, hosts


def split_host(text):
    """Address and port of "host:port", IPv6 in brackets."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


class Peer(slixmpp.ClientXMPP):
    """The XMPP side: asks, answers, gives up."""

    def __init__(self, options, password):
        super().__init__(options.jid, password)
        self.options = options
        self.ca_certs = options.ca
        self.sessions = {}
        self.asked = set()  # ids of our own requests
        self.listener = None
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("failed_auth", lambda _: os._exit(5))
        self.register_handler(
            Callback("dtcp", MatchXPath(f"{{jabber:client}}iq/{{{NS}}}query"), self.received))

    async def get_dns_records(self, domain, port=None):
        """The server's address is given; ask no name server."""
        return []

    async def started(self, _):
        if self.options.can_listen:
            self.listener = socket.create_server(("127.0.0.1", 0))
            threading.Thread(target=self.accept, daemon=True).start()
        self.send_presence(ppriority=-1)
        emit("ready", jid=self.boundjid.full)
        threading.Thread(target=self.commands, daemon=True).start()

    def hosts(self):
        """What we announce: up to three places at which we can be reached."""
        if not self.listener:
            return []
        port = self.listener.getsockname()[1]
        return [f"{host}:{port}" for host in self.options.host][:3]

    def on_loop(self, function, *arguments):
        self.loop.call_soon_threadsafe(function, *arguments)

    # Asking and answering.

    async def request(self, peer):
        session = Session(len(self.sessions) + 1, "requester", slixmpp.JID(peer))
        self.sessions[session.number] = session
        iq = self.make_iq_set(ito=peer)
        iq.set_payload(session.query(self.hosts()))
        self.asked.add(iq["id"])
        try:
            answer = await iq.send(timeout=PATIENCE)
        except IqError as error:
            fault = error.iq.xml.find("{jabber:client}error")
            session.fail("refused: " + ET.tostring(fault, encoding="unicode"))
            return
        except IqTimeout:
            session.fail("no answer")
            return
        session.peer_key, hosts = parse(answer.xml.find(f"{{{NS}}}query"))
        session.peer_hosts = hosts[:3]
        self.begin(session)

    def received(self, iq):
        if iq["type"] == "set":
            self.requested(iq)
        elif iq["type"] == "error" and iq["id"] not in self.asked:
            key, _ = parse(iq.xml.find(f"{{{NS}}}query"))
            for session in self.sessions.values():
                if session.key == key and session.peer == iq["from"]:
                    session.peer_gave_up = True
                    self.judge(session)

    def requested(self, iq):
        key, hosts = parse(iq.xml.find(f"{{{NS}}}query"))
        if self.options.refuse:
            if self.options.old:
                self.send_raw(f"<iq type='error' id='{iq['id']}' to='{iq['from']}'>"
                              "<error code='501'>DTCP not supported</error></iq>")
            else:
                refusal = iq.reply(clear=True)
                refusal["error"]["condition"] = "forbidden"
                refusal["error"]["type"] = "auth"
                refusal.send()
            return
        session = Session(len(self.sessions) + 1, "responder", iq["from"], key, hosts)
        self.sessions[session.number] = session
        emit("request", id=session.number, peer=str(iq["from"]))
        answer = iq.reply(clear=True)
        answer.set_payload(session.query(self.hosts()))
        answer.send()
        self.begin(session)

    def begin(self, session):
        """Both keys are known: dial everything at once."""
        session.known.set()
        self.loop.call_later(PATIENCE, session.fail, "no stream in time")
        # An entity that was not provided any hosts is assumed to have given up.
        session.peer_gave_up = not self.hosts()
        hosts = session.peer_hosts if self.options.can_dial else []
        session.dials = len(hosts)
        for host in hosts:
            threading.Thread(target=self.dial, args=(session, host), daemon=True).start()
        if not hosts:
            self.give_up(session)

    def give_up(self, session):
        """No dial is left. Say so, unless the peer takes it for granted."""
        session.gave_up = True
        if session.peer_hosts and not session.stream:
            if self.options.old:
                self.send_raw(f"<iq type='error' to='{session.peer}'><query xmlns='{NS}'>"
                              f"<key>{session.peer_key}</key></query><error code='503'>"
                              "Could not connect to any of the hosts.</error></iq>")
            else:
                iq = self.make_iq(ito=session.peer, itype="error")
                query = ET.Element(f"{{{NS}}}query")
                ET.SubElement(query, f"{{{NS}}}key").text = session.peer_key
                iq.xml.append(query)
                iq["error"]["type"] = "cancel"
                iq["error"]["code"] = "503"
                iq["error"]["condition"] = "service-unavailable"
                iq.send()
        self.judge(session)

    def judge(self, session):
        if session.gave_up and session.peer_gave_up:
            session.fail("both have given up")

    # TCP, in threads of their own.

    def dial(self, session, host):
        channel = None
        try:
            channel = Channel(socket.create_connection(split_host(host), timeout=5))
            if self.options.starttls:
                channel.write_line("starttls")
                if channel.read_line() == "ok":
                    channel.start_tls(None)
            channel.write_line("key:" + session.peer_key)
            answer = channel.read_line()
            if answer != "ok:" + session.key:
                raise HandshakeError(f"answer {answer!r}")
            if session.choose(channel):
                # Only a dialer that is the requester has this last word to say.
                if session.role == "requester":
                    channel.write_line("ok")
                session.opened("dialer")
                return
        except (OSError, ValueError, HandshakeError) as error:
            print(f"dial {host}: {error}", file=sys.stderr)
        if channel:
            channel.close()
        self.on_loop(self.dialed_in_vain, session)

    def dialed_in_vain(self, session):
        session.dials -= 1
        if session.dials == 0 and not session.stream:
            self.give_up(session)

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(Channel(connection),), daemon=True).start()

    def serve(self, channel):
        """Answer commands until one of them makes a stream."""
        try:
            while True:
                command, _, argument = channel.read_line().partition(":")
                if command == "starttls":
                    if self.options.starttls and not channel.encrypted:
                        channel.write_line("ok")
                        channel.start_tls(self.options.starttls)
                    else:
                        channel.write_line("error")
                elif command == "key" and self.key_made_stream(channel, argument):
                    return
                else:
                    channel.write_line("error")
        except (OSError, ValueError, HandshakeError) as error:
            print(f"serve: {error}", file=sys.stderr)
            channel.close()

    def key_made_stream(self, channel, key):
        """Whether the key line made a stream. False: it deserves an error."""
        session = next((s for s in list(self.sessions.values()) if s.key == key), None)
        # The peer may dial before we have seen its answer.
        if not session or not session.known.wait(PATIENCE) or session.over:
            return False
        if session.role == "requester":
            # The stream stands with our answer, so decide before it.
            if not session.choose(channel):
                return False
            channel.write_line("ok:" + session.peer_key)
        else:
            channel.write_line("ok:" + session.peer_key)
            if channel.read_line() != "ok" or not session.choose(channel):
                raise HandshakeError("the requester chose another connection")
        session.opened("listener")
        return True

    # Commands.

    def commands(self):
        for line in sys.stdin:
            words = line.split()
            if words[0] == "dial":
                asyncio.run_coroutine_threadsafe(self.request(words[1]), self.loop)
            elif words[0] in ("digest", "send"):
                threading.Thread(target=self.transfer, args=words, daemon=True).start()
            else:
                break
        self.on_loop(self.disconnect)

    def transfer(self, verb, number, length="0"):
        channel = self.sessions[int(number)].stream
        sent, answer = 0, b""
        digest = hashlib.sha256()
        try:
            if verb == "send":
                source = random.Random(int(number))
                while sent < int(length):
                    piece = source.randbytes(min(65536, int(length) - sent))
                    channel.write(piece)
                    digest.update(piece)
                    sent += len(piece)
                channel.end()
            received = 0
            while piece := channel.read():
                received += len(piece)
                if verb == "digest":
                    digest.update(piece)
                else:
                    answer = (answer + piece)[:4096]
            if verb == "digest":
                channel.write(f"{digest.hexdigest()} {received}\n".encode())
                channel.end()
            emit("done", id=int(number), sent=sent, received=received,
                 sha256=digest.hexdigest(), answer=answer.decode(errors="replace"))
        except (OSError, Cut) as error:
            emit("cut", id=int(number), why=repr(error))
        channel.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jid", required=True, help="full address to log in as")
    parser.add_argument("--password-file", required=True)
    parser.add_argument("--server", required=True, help="host:port with STARTTLS")
    parser.add_argument("--ca", required=True, help="PEM file to verify the server with")
    parser.add_argument("--can-listen", "--no-listen", action=Switch, default=True, nargs=0)
    parser.add_argument("--can-dial", "--no-dial", action=Switch, default=True, nargs=0)
    parser.add_argument("--starttls", metavar="FILE", help="offer TLS, with this key and certificate")
    parser.add_argument("--host", action="append", help="address to announce (127.0.0.1)")
    parser.add_argument("--refuse", action="store_true", help="refuse every request")
    parser.add_argument("--old", action="store_true",
                        help="as in 2002: errors with a code only, give up without an id")
    options = parser.parse_args()
    options.host = options.host or ["127.0.0.1"]
    with open(options.password_file, encoding="utf-8") as file:
        password = file.readline().rstrip("\r\n")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    peer = Peer(options, password)
    peer.connect(split_host(options.server))
    peer.process(forever=False)


class Switch(argparse.Action):
    """--can-X turns X on and --no-X turns it off."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string.startswith("--can-"))


if __name__ == "__main__":
    main()
