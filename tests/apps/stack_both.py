"""Programs on the stack as clients, at both ends, and servers that fork: beside `stack_servers`, whose servers answer the kernel.
"""

import glob
import json
import re
import time
from pathlib import Path

from lab import Failure
from registry import app
from stack_servers import BESIDE, OURS, OURS6, PEER, PEER6, link

MEGABYTES = 40


def flows(run):
    """Of an iperf3 run: its status, and of each stream whether both ends counted bytes. Of how many is for benches.

    A server that has not put the run before away says that it is busy, in a report without streams.
    """
    for _ in range(20):
        report = run()
        try:
            end = json.loads(report.out)["end"]
        except (ValueError, KeyError):
            return report.status, report.out[-200:]
        if "streams" in end:
            sides = [side for stream in end["streams"] for side in stream.values()]
            return report.status, [side["bytes"] > 0 for side in sides]
        time.sleep(0.2)
    return report.status, "no streams"


def iperf_runs(lab, net, ours, theirs, client):
    """Servers at both ends, asked from the other one; the client of ours has an address of its own."""
    net.serve("ours", ["iperf3", "-s", "-B", ours])
    net.serve_at_peer("theirs", ["iperf3", "-s", "-B", theirs])
    for server in (theirs, ours):
        net.await_answer(["iperf3", "-c", server, "-n", "1"])
    stack = {"KCMSHIM_STACK": f"packet:veth0 {client}"} if lab.lib else {}
    for name, words in IPERF_RUNS.items():
        argv = ["iperf3", "-J", "-c", ours, *words]
        lab.observe(f"server, {name}", flows(lambda: net.ask(argv)))
    for name, words in IPERF_RUNS.items():
        argv = net.at_home(["iperf3", "-J", "-c", theirs, *words])
        lab.observe(f"client, {name}", flows(lambda: lab.run(argv, env=stack)))


IPERF_RUNS = {
    "TCP": ["-n", "20M"],
    "TCP, four streams": ["-n", "40M", "-P", "4"],
    "TCP back": ["-n", "20M", "-R"],
    "TCP back, four streams": ["-n", "40M", "-P", "4", "-R"],
    "UDP": ["-u", "-b", "5M", "-t", "1"],
    "UDP back": ["-u", "-b", "5M", "-t", "1", "-R"],
}


@app("stack-iperf3", "iperf3", "iproute2")
def iperf3(lab):
    with link(lab) as net:
        iperf_runs(lab, net, OURS, PEER, f"10.9.0.4/24 via {PEER}")


@app("stack-iperf3-ipv6", "iperf3", "iproute2")
def iperf3_ipv6(lab):
    with link(lab) as net:
        iperf_runs(lab, net, OURS6, PEER6, "fd09::4/64")


ECHO = """
import hashlib, select, socket, sys, threading
kind, address, family = sys.argv[1], sys.argv[2], socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
def listener():
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, 7000))
    s.listen(200)
    return s
def blocking():
    def each(conn):
        while data := conn.recv(20000):
            conn.sendall(data)
        conn.close()
    s = listener()
    while True:
        threading.Thread(target=each, args=(s.accept()[0],), daemon=True).start()
def epoll():
    s, ready, conns, unsent = listener(), select.epoll(), {}, {}
    s.setblocking(False)
    ready.register(s, select.EPOLLIN)
    while True:
        for fd, events in ready.poll():
            if fd == s.fileno():
                conn = s.accept()[0]
                conn.setblocking(False)
                conns[conn.fileno()], unsent[conn.fileno()] = conn, b""
                ready.register(conn, select.EPOLLIN)
                continue
            if events & select.EPOLLIN:
                data = conns[fd].recv(20000)
                unsent[fd] += data
                if not data and not unsent[fd]:
                    ready.unregister(fd)
                    conns.pop(fd).close()
                    continue
            try:
                unsent[fd] = unsent[fd][conns[fd].send(unsent[fd]):]
            except BlockingIOError:
                pass
            ready.modify(fd, select.EPOLLOUT if unsent[fd] else select.EPOLLIN)
def udp():
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.bind((address, 7000))
    while True:
        s.sendto(*s.recvfrom(2000))
def ask_tcp():
    good = []
    def one(number):
        data = bytes((i * number) % 251 for i in range(30000 + number))
        with socket.create_connection((address, 7000)) as conn:
            threading.Thread(target=lambda: (conn.sendall(data), conn.shutdown(socket.SHUT_WR))).start()
            back = b""
            while part := conn.recv(65536):
                back += part
        good.append(hashlib.sha256(back).digest() == hashlib.sha256(data).digest())
    threads = [threading.Thread(target=one, args=(n,)) for n in range(1, 101)]
    [t.start() for t in threads], [t.join() for t in threads]
    print(good.count(True))
def knock_tcp():
    socket.create_connection((address, 7000), 1).close()
def knock_udp():
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.connect((address, 7000))
    s.send(b"?")
    s.recv(1)
def ask_udp():
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.connect((address, 7000))
    good = 0
    for n in range(200):
        data = bytes([n]) * (n * 7 + 1)
        for _ in range(5):  # a datagram may be lost
            try:
                s.send(data)
                good += s.recv(2000) == data
                break
            except OSError:
                pass
    print(good)
globals()[kind]()
"""


@app("stack-echo", "python3", "iputils-ping", "iproute2", quick=True)
def echo(lab):
    """The examples that come with NtyTcp: an echo that blocks, one with epoll, one of datagrams, and ping."""
    for address in (OURS, OURS6):
        for kind, protocol in (("blocking", "tcp"), ("epoll", "tcp"), ("udp", "udp")):
            with link(lab) as net:
                net.serve(kind, ["/usr/bin/python3", "-c", ECHO, kind, address])
                net.await_answer(["/usr/bin/python3", "-c", ECHO, f"knock_{protocol}", address])
                said = net.ask(["/usr/bin/python3", "-c", ECHO, f"ask_{protocol}", address])
                lab.observe(f"{kind} echo at {address}", (said.status, said.out, said.err))
                said = net.ask(["ping", "-c", "5", "-i", "0.05", "-s", "3000", "-W", "5", address])
                count = re.search(r"(\d+) packets transmitted, (\d+) received", said.out)
                lab.observe(f"ping beside {kind} at {address}", (said.status, count.groups() if count else said.out))


ASYNCIO = """
import asyncio, hashlib, sys
async def serve():
    async def each(reader, writer):
        while data := await reader.read(70000):
            writer.write(data)
            await writer.drain()
        writer.close()
    server = await asyncio.start_server(each, "10.9.0.2", 7000, backlog=512)
    await server.serve_forever()
async def one(number):
    reader, writer = await asyncio.open_connection("10.9.0.2", 7000)
    data = bytes((i * number) % 251 for i in range(50000 + number))
    writer.write(data)
    writer.write_eof()
    back = await reader.read()
    writer.close()
    return back == data
async def ask():
    print(sum(await asyncio.gather(*(one(n) for n in range(1, 201)))))
asyncio.run(serve() if sys.argv[1] == "serve" else ask())
"""


@app("stack-asyncio", "python3-minimal", "iproute2", quick=True)
def asyncio(lab):
    with link(lab) as net:
        program = lab.write("echo.py", ASYNCIO)
        net.serve("echo", ["/usr/bin/python3", program, "serve"])
        net.await_answer(["/usr/bin/python3", program, "ask"])
        lab.observe("200 clients", net.ask(["/usr/bin/python3", program, "ask"]).out)


@app("stack-clients", "curl", "redis-server", "redis-tools", "iproute2", quick=True)
def clients(lab):
    """Clients on the stack of servers on the kernel."""
    body = lab.pattern_file("www/big.bin", MEGABYTES << 20)
    with link(lab) as net:
        net.serve_at_peer("http", ["/usr/bin/python3", "-m", "http.server", "8081", "--bind", PEER, "-d", body.parent])
        net.serve_at_peer("redis", ["redis-server", "--bind", PEER, "--save", "", "--protected-mode", "no"])
        net.await_answer(["curl", "-sf", "-o", "/dev/null", f"http://{PEER}:8081/"])
        net.await_answer(["redis-cli", "-h", PEER, "ping"])
        lab.observe("curl", net.run(["curl", "-s", f"http://{PEER}:8081/big.bin"]).digest())
        lab.observe("curl, nobody listens", net.run(["curl", "-s", f"http://{PEER}:9/"]).status)
        for pipeline in ("1", "16"):
            bench = net.run(["redis-benchmark", "-h", PEER, "-t", "set,get", "-n", "20000", "-P", pipeline, "-q"])
            lab.observe(f"redis-benchmark -P {pipeline}", (bench.status, bench.out.count("requests per second")))
        lab.observe("redis", net.run(["redis-cli", "-h", PEER, "dbsize"]).out)


@app("stack-both", "curl", "redis-server", "redis-tools", "iproute2", quick=True)
def both(lab):
    """Two processes, each on a stack of its own."""
    body = lab.pattern_file("www/big.bin", MEGABYTES << 20)
    with link(lab) as net:
        net.serve_beside("redis", ["redis-server", "--bind", BESIDE, "--save", "", "--protected-mode", "no"])
        lab.wait_until("redis", lambda: net.run(["redis-cli", "-h", BESIDE, "ping"]).status == 0)
        bench = net.run(["redis-benchmark", "-h", BESIDE, "-t", "set,get", "-n", "20000", "-P", "4", "-q"])
        lab.observe("redis-benchmark", (bench.status, bench.out.count("requests per second")))
        lab.observe("a value of 40 MB", lab.run(
            net.at_home(["redis-cli", "-h", BESIDE, "-x", "set", "big"]), stdin=body.read_bytes(), env=net.stack()).out)
        lab.observe("and back", net.run(["redis-cli", "-h", BESIDE, "get", "big"]).digest())


NGINX = """
worker_processes 2;
daemon off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile {sendfile};
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 10.9.0.2:8080; root {root}; }}
}}
"""


@app("stack-nginx", "nginx-light:nginx", "curl", "wrk", "iproute2", quick=True)
def nginx(lab):
    body = lab.pattern_file("www/big.bin", 200 << 20)
    lab.dir.chmod(0o777)
    with link(lab) as net:
        for sendfile in ("on", "off"):
            conf = lab.write("nginx.conf", NGINX.format(sendfile=sendfile, root=body.parent))
            server = net.serve(f"nginx-{sendfile}", ["nginx", "-p", lab.dir, "-c", conf, "-e", "stderr"])
            page = f"http://{OURS}:8080/big.bin"
            net.await_answer(["curl", "-sfI", page])
            sums = [net.ask(["sh", "-c", f"curl -s {page} | sha256sum"]).out for _ in range(2)]
            lab.observe(f"200 MB, sendfile {sendfile}", sums)
            ranges = net.ask(["sh", "-c", f"curl -s -r 1000-90000000 {page} | sha256sum"]).out
            lab.observe(f"a range, sendfile {sendfile}", ranges)
            report = net.ask(["wrk", "-t1", "-c32", "-d1", f"http://{OURS}:8080/none"]).out
            lab.observe(f"wrk, sendfile {sendfile}", [line for line in report.splitlines() if "Socket errors" in line])
            lab.observe(f"end, sendfile {sendfile}", server.stop())


@app("stack-postgresql", "postgresql-15", "postgresql-client-15", "iproute2")
def postgresql(lab):
    """The postmaster forks for each connection; parallel workers share nothing with it but memory."""
    programs = Path(sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1])
    data = lab.dir / "data"
    lab.dir.chmod(0o777)
    made = lab.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], user="postgres")
    if made.status != 0:
        raise Failure(f"initdb: {made.status} {made.err.strip()[-200:]}")
    with open(data / "pg_hba.conf", "a") as rules:
        rules.write("host all all 10.9.0.0/24 trust\n")
    with link(lab) as net:
        # A user of its own inside the namespace, which keeps what a device takes.
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--inh-caps", "+net_raw,+net_admin",
                   "--ambient-caps", "+net_raw,+net_admin"]
        server = net.serve("postgres", [*as_user, programs / "postgres", "-D", data, "-h", OURS, "-k", "", "-c", "fsync=off"])
        address = ["-h", OURS, "-U", "postgres"]
        net.await_answer([programs / "pg_isready", *address])
        lab.observe("pgbench -i", net.ask([programs / "pgbench", *address, "-i", "-q", "-s", "2", "postgres"]).status)
        for mode in ("simple", "prepared"):
            bench = net.ask([programs / "pgbench", *address, "-c", "6", "-j", "2", "-t", "50", "-M", mode, "postgres"])
            lab.observe(f"pgbench {mode}", (bench.status, re.findall(r"actually processed: (\S+)", bench.out)))
        sql = "select string_agg(md5(i::text), '') from generate_series(1, 200000) i"
        lab.observe("large result", net.ask([programs / "psql", *address, "-X", "-At", "-c", sql, "postgres"]).digest())
        lab.observe("fast shutdown", server.stop(2))
