"""Servers on the stack inside their process, each in a network namespace of its own; clients on the ordinary kernel of
another. Without the library the same address is the kernel's. Every connection comes in over a veth pair.
"""

import itertools
import os
from contextlib import contextmanager

from lab import Failure
from registry import app

OURS, PEER, BESIDE = "10.9.0.2", "10.9.0.1", "10.9.0.3"
OURS6, PEER6 = "fd09::2", "fd09::1"
_COUNT = itertools.count()


class Link:
    """Two namespaces and the veth pair between them."""

    def __init__(self, lab, home, peer):
        self.lab, self.home, self.peer = lab, home, peer

    def stack(self):
        """Environment of a program on OURS: on the stack if the lab has the library."""
        return {"KCMSHIM_STACK": f"packet:veth0 {OURS}/24 {OURS6}/64 via {PEER}"} if self.lab.lib else {}

    def at_home(self, argv):
        return ["ip", "netns", "exec", self.home, *argv]

    def serve(self, name, argv, **more):
        """Starts a server on OURS, and waits for the host: what is sent to an address that nobody has is lost, and
        comes again a second later."""
        server = self.lab.start(self.at_home(argv), name, env=self.stack(), **more)
        if self.lab.lib:
            self.lab.wait_until(f"a stack for {name}", self.has_stack)
        return server

    def has_stack(self):
        """Whether somebody has a packet socket at home."""
        sockets = self.lab.run(self.at_home(["cat", "/proc/net/packet"]), env={"LD_PRELOAD": ""}).out
        return len(sockets.splitlines()) > 1

    def run(self, argv):
        """Runs a client on OURS."""
        return self.lab.run(self.at_home(argv), env=self.stack())

    def serve_at_peer(self, name, argv):
        """Starts a server on PEER, on the kernel's stack."""
        return self.lab.start(self.at_peer(argv), name, env={"LD_PRELOAD": ""})

    def serve_beside(self, name, argv):
        """Starts a server on BESIDE, at the peer's end of the link: on the stack as well."""
        stack = {"KCMSHIM_STACK": f"packet:veth1 {BESIDE}/24"} if self.lab.lib else {}
        return self.lab.start(self.at_peer(argv), name, env=stack)

    def at_peer(self, argv):
        """The same command in the peer's namespace."""
        return ["ip", "netns", "exec", self.peer, *argv]

    def ask(self, argv, stdin=None):
        return self.lab.run(self.at_peer(argv), stdin=stdin, env={"LD_PRELOAD": ""})

    def await_answer(self, argv):
        """Runs a client until it is answered: nothing but an answer shows that a stack listens."""
        self.lab.wait_until(f"answer to {argv[0]}", lambda: self.ask(argv).status == 0)


@contextmanager
def link(lab):
    if os.geteuid() != 0:
        raise Failure("network namespaces need root")
    number = f"{os.getpid()}-{next(_COUNT)}"
    home, peer = f"kcmhome-{number}", f"kcmpeer-{number}"

    def ip(*words):
        result = lab.run(["ip", *words], env={"LD_PRELOAD": ""})
        if result.status:
            raise Failure(f"ip {' '.join(words)}: {result.err}")
        return result.out

    try:
        for name in (home, peer):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", home, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1", "netns", peer)
        ip("-n", home, "link", "set", "veth0", "up")
        ip("-n", peer, "link", "set", "veth1", "up")
        ip("-n", peer, "address", "add", f"{PEER}/24", "dev", "veth1")
        ip("-n", peer, "address", "add", f"{PEER6}/64", "dev", "veth1", "nodad")
        if not lab.lib:
            ip("-n", home, "address", "add", f"{OURS}/24", "dev", "veth0")
            ip("-n", home, "address", "add", f"{OURS6}/64", "dev", "veth0", "nodad")
            ip("-n", peer, "address", "add", f"{BESIDE}/24", "dev", "veth1")
        # Until both ends know of their carrier what is sent there is lost.
        for show in (("-n", home, "link", "show", "veth0"), ("-n", peer, "link", "show", "veth1")):
            lab.wait_until("a carrier", lambda show=show: "state UP" in ip(*show))
        yield Link(lab, home, peer)
    finally:
        for name in (home, peer):
            lab.run(["ip", "netns", "delete", name], env={"LD_PRELOAD": ""})


DNS_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 53))
while True:
    query, client = s.recvfrom(2000)
    end = query.index(bytes(1), 12) + 5
    answer = bytes([192, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3])
    s.sendto(query[:2] + bytes([132, 0, 0, 1, 0, 1, 0, 0, 0, 0]) + query[12:end] + answer, client)
"""


@app("stack-dns", "bind9-dnsutils", "dnsperf", "iproute2", quick=True)
def dns(lab):
    with link(lab) as net:
        net.serve("dns", ["/usr/bin/python3", lab.write("dns.py", DNS_SERVER)])
        dig = ["dig", "+short", "+time=2", "+tries=1", f"@{OURS}", "www.example.org"]
        net.await_answer(dig)
        lab.observe("dig", net.ask(dig).out)
        queries = lab.write("queries", "www.example.org A\n")
        report = net.ask(["dnsperf", "-s", OURS, "-d", queries, "-n", "3000", "-c", "4"]).out
        lab.observe("dnsperf", [line.split()[2:4] for line in report.splitlines() if "completed:" in line or "lost:" in line])


MEMCACHED_CLIENT = """
import hashlib, socket
connections = [socket.create_connection(("10.9.0.2", 11211), 20) for _ in range(50)]
one = connections[0].makefile("rwb")
value = bytes(range(256)) * 3600
def ask(data):
    one.write(data)
    one.flush()
    return one.readline()
print(ask(b"set big 7 0 %d\\r\\n%s\\r\\n" % (len(value), value)))
print(ask(b"get big\\r\\n"), hashlib.sha256(one.read(len(value) + 2)).hexdigest(), one.readline())
one.write(b"".join(b"set k%d 0 0 4\\r\\n%04d\\r\\n" % (i, i) for i in range(1000)))
one.flush()
print(hashlib.sha256(b"".join(one.readline() for _ in range(1000))).hexdigest())
for index, connection in enumerate(connections):
    connection.sendall(b"get k%d\\r\\n" % index)
print([c.makefile("rb").read(22) for c in connections])
"""


@app("stack-memcached", "memcached", "iproute2", quick=True)
def memcached(lab):
    with link(lab) as net:
        net.serve("memcached", ["memcached", "-u", "root", "-l", OURS, "-p", "11211", "-t", "4"])
        client = ["/usr/bin/python3", lab.write("client.py", MEMCACHED_CLIENT)]
        net.await_answer(client)
        lab.observe("client", net.ask(client).out)


NODE_SERVER = """
const http = require("http"), big = Buffer.alloc(8 << 20, "kcmshim");
http.createServer((q, r) => r.end(q.url == "/big" ? big : "hello " + q.method)).listen(8080, "0.0.0.0");
"""


@app("stack-node", "nodejs", "curl", "wrk", "iproute2")
def node(lab):
    with link(lab) as net:
        net.serve("node", ["node", lab.write("server.js", NODE_SERVER)])
        page = f"http://{OURS}:8080/"
        net.await_answer(["curl", "-sf", page])
        lab.observe("curl", net.ask(["curl", "-s", page]).out)
        lab.observe("8 MiB", [net.ask(["curl", "-s", page + "big"]).digest() for _ in range(3)])
        report = net.ask(["wrk", "-t1", "-c16", "-d2", page]).out
        lab.observe("wrk", [line for line in report.splitlines() if "Socket errors" in line or "Non-2xx" in line])


HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
frontend f
    bind 10.9.0.2:8080
    default_backend b
backend b
    server s 10.9.0.1:8081
"""


@app("stack-haproxy", "haproxy", "curl", "iproute2")
def haproxy(lab):
    """Between a client and a server of the peer's kernel: both its sides are the stack's."""
    body = lab.pattern_file("www/one.bin", 4_000_000)
    with link(lab) as net:
        net.serve_at_peer("http", ["/usr/bin/python3", "-m", "http.server", "8081", "--bind", PEER, "-d", body.parent])
        net.serve("haproxy", ["haproxy", "-db", "-f", lab.write("haproxy.cfg", HAPROXY)])
        page = f"http://{OURS}:8080/one.bin"
        net.await_answer(["curl", "-sf", "-o", "/dev/null", page])
        lab.observe("4 MB", [net.ask(["curl", "-s", page]).digest() for _ in range(5)])
        lab.observe("404", net.ask(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", page + "x"]).out)
