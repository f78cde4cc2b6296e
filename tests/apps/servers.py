"""Servers and their usual clients."""

import glob
import os
import re
import signal
import socket
import time
from pathlib import Path

from lab import Failure, sha
from registry import app


def start_redis(lab, name="redis", *options):
    port = lab.port()
    directory = lab.dir / name
    directory.mkdir(exist_ok=True)
    server = lab.start(
        ["redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", directory, "--save", "", *options], name, port
    )
    return server, port


@app("redis", "redis-server", "redis-tools", quick=True)
def redis(lab):
    server, port = start_redis(lab, "redis", "--appendonly", "yes", "--unixsocket", lab.dir / "redis.sock",
                               "--repl-diskless-sync-delay", "0")

    def cli(*words, **options):
        return lab.run(["redis-cli", "-p", port, *words], **options)

    lab.observe("pipelined INCR", sha(cli(stdin="INCR n\n" * 2000).out))
    lab.check("GET", ["redis-cli", "-p", port, "GET", "n"])
    big = lab.pattern_file("big", 3_000_000)
    lab.observe("SET 3 MB", cli("-x", "SET", "big", stdin=big.read_bytes()).out)
    lab.observe("GET 3 MB", sha(cli("GET", "big").out))
    lab.check("unix socket", ["redis-cli", "-s", lab.dir / "redis.sock", "STRLEN", "big"])
    lab.check("EVAL", ["redis-cli", "-p", port, "EVAL", "return redis.call('INCRBY', KEYS[1], 5)", "1", "n"])
    lab.check("blocking pop times out", ["redis-cli", "-p", port, "BLPOP", "nothing", "0.2"])
    lab.observe("fork for BGREWRITEAOF", cli("BGREWRITEAOF").out)
    lab.wait_until("rewrite", lambda: "aof_rewrite_in_progress:0" in cli("INFO", "persistence").out)
    lab.observe("rewrite status", re.findall(r"aof_last_bgrewrite_status:(\w+)", cli("INFO", "persistence").out))
    for threads in ("", "--threads 2"):
        bench = lab.run(
            ["redis-benchmark", "-p", port, "-n", "20000", "-c", "20", "-P", "16", "-q", "-t", "set,get,lpush", *threads.split()]
        )
        lab.observe(f"redis-benchmark {threads}", (bench.status, len(re.findall(r"requests per second", bench.out))))

    replica, replica_port = start_redis(lab, "replica", "--replicaof", f"127.0.0.1 {port}")
    lab.wait_until("replication", lambda: "master_link_status:up" in lab.run(
        ["redis-cli", "-p", replica_port, "INFO", "replication"]).out)
    lab.observe("value on the replica", sha(lab.run(["redis-cli", "-p", replica_port, "GET", "big"]).out))
    lab.observe("replica ends", replica.stop())
    lab.observe("clients", re.findall(r"connected_clients:(\d+)", cli("INFO", "clients").out))
    lab.check("SHUTDOWN", ["redis-cli", "-p", port, "SHUTDOWN"])
    lab.observe("server ends", server.stop())

    server, port = start_redis(lab, "redis", "--appendonly", "yes", "--io-threads", "3", "--io-threads-do-reads", "yes")
    lab.wait_until("loading", lambda: cli("PING").out == "PONG\n")
    lab.check("value after restart", ["redis-cli", "-p", port, "GET", "n"])
    lab.observe("io-threads", lab.run(["redis-benchmark", "-p", port, "-n", "20000", "-P", "64", "-q", "-t", "get"]).status)
    lab.observe("SIGTERM", server.stop())


NGINX_CONF = """
daemon off;
master_process on;
worker_processes 2;
pid nginx.pid;
error_log error.log warn;
events {{ worker_connections 512; {events} }}
http {{
    access_log access.log;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 65;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port}{listen};
        root {root};
        location /proxy/ {{ proxy_pass http://127.0.0.1:{port}/; }}
        location /plain/ {{ sendfile off; alias {root}/; }}
    }}
    {more}
}}
"""


def start_nginx(lab, name="nginx", events="", listen="", more=""):
    """nginx with a master and two workers over a directory of files; returns (server, port)."""
    port, prefix, root = lab.port(), lab.dir / name, lab.dir / "www"
    prefix.mkdir()
    prefix.chmod(0o755)
    lab.write("www/small.txt", "hello from a small file\n")
    lab.pattern_file("www/one.bin", 1_000_003)
    lab.pattern_file("www/big.bin", 20_000_001)
    root.chmod(0o755)
    conf = lab.write(
        f"{name}/nginx.conf", NGINX_CONF.format(port=port, root=root, events=events, listen=listen, more=more)
    )
    user = ["-g", "user nobody nogroup;"] if os.geteuid() == 0 else []
    server = lab.start(["/usr/sbin/nginx", "-p", f"{prefix}/", "-c", conf, *user], name, port)
    lab.wait_until("two workers", lambda: len(children(server.pid)) == 2)
    if lab.lib:
        for worker in children(server.pid):
            lab.expect_loaded(worker)
    return server, port


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def fetch(lab, label, url, *options, keep_body=True):
    """Observes curl's exit status, the HTTP status and the body's checksum."""
    body = lab.dir / "body.out"
    body.unlink(missing_ok=True)
    result = lab.run(["curl", "-sS", "-o", body, "-w", "%{http_code} %{size_download} %{num_connects}", *options, url])
    lab.observe(label, (result.status, result.out, sha(body.read_bytes()) if keep_body and body.exists() else None))


@app("nginx", "nginx-light", "curl", quick=True)
def nginx(lab):
    for style, events, listen in (("shared listener", "", ""), ("accept mutex", "accept_mutex on; multi_accept on;", ""),
                                  ("reuseport", "", " reuseport")):
        server, port = start_nginx(lab, style.replace(" ", "-"), events, listen)
        base = f"http://127.0.0.1:{port}"
        for path in ("small.txt", "one.bin", "big.bin", "plain/big.bin", "proxy/big.bin", "missing"):
            fetch(lab, f"{style}: {path}", f"{base}/{path}")
        fetch(lab, f"{style}: range", f"{base}/big.bin", "-r", "1000000-1999999")
        fetch(lab, f"{style}: HEAD", f"{base}/big.bin", "-I", "-w", "%{http_code} %header{content-length}",
              keep_body=False)
        many = lab.run(["curl", "-sS", "-w", "%{http_code}\n", f"{base}/small.txt?[1-200]"])
        lab.observe(f"{style}: 200 requests kept alive", (many.status, many.digest()))
        workers = set(children(server.pid))
        server.process.send_signal(signal.SIGHUP)
        lab.wait_until("new workers", lambda: len(set(children(server.pid)) - workers) == 2
                       and not workers & set(children(server.pid)))
        fetch(lab, f"{style}: after reload", f"{base}/one.bin")
        os.kill(children(server.pid)[0], signal.SIGKILL)
        lab.wait_until("a new worker for the killed one", lambda: len(children(server.pid)) == 2)
        fetch(lab, f"{style}: after a worker's death", f"{base}/one.bin")
        lab.observe(f"{style}: SIGQUIT", server.stop(signal.SIGQUIT))
        logs = lab.dir / style.replace(" ", "-")
        lab.observe(f"{style}: log lines", (logs / "access.log").read_text().count("\n"))
        complaints = re.findall(r"\[(?:error|crit|alert|emerg)\] [\d#]+: (?:\*\d+ )?([^\d\"/]*)", (logs / "error.log").read_text())
        lab.observe(f"{style}: complaints", sorted(complaints))


@app("haproxy", "haproxy", "nginx-light", "curl")
def haproxy(lab):
    backend, backend_port = start_nginx(lab)
    port, control = lab.port(), lab.dir / "haproxy.sock"
    conf = lab.write("haproxy.cfg", f"""
global
    nbthread 2
    stats socket {control} mode 600 level admin expose-fd listeners
    hard-stop-after 5s
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
    option httpclose
frontend front
    bind 127.0.0.1:{port}
    default_backend back
backend back
    balance roundrobin
    server one 127.0.0.1:{backend_port} check inter 200ms
    server two 127.0.0.1:{backend_port} check inter 200ms
""")
    server = lab.start(["/usr/sbin/haproxy", "-W", "-db", "-f", conf, "-p", lab.dir / "haproxy.pid"], "haproxy", port)

    def ask(command):
        with socket.socket(socket.AF_UNIX) as control_socket:
            control_socket.connect(str(control))
            control_socket.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: control_socket.recv(65536), b"")).decode()

    for path in ("small.txt", "one.bin", "big.bin", "missing"):
        fetch(lab, f"through haproxy: {path}", f"http://127.0.0.1:{port}/{path}")
    many = lab.run(["curl", "-sS", "-w", "%{http_code}\n", f"http://127.0.0.1:{port}/small.txt?[1-200]"])
    lab.observe("200 requests", (many.status, many.digest()))
    lab.observe("threads", re.findall(r"Nbthread: (\d+)", ask("show info")))
    lab.observe("servers up", ask("show servers state").count(" 127.0.0.1 2 "))
    # The master re-executes itself and the new worker takes the listeners over the control socket (SCM_RIGHTS).
    server.process.send_signal(signal.SIGUSR2)
    time.sleep(1)
    for number in range(3):
        fetch(lab, f"after reload {number}", f"http://127.0.0.1:{port}/one.bin")
    backend.stop(signal.SIGQUIT)
    lab.wait_until("backends down", lambda: ask("show servers state").count(" 127.0.0.1 0 ") == 2)
    fetch(lab, "no backend", f"http://127.0.0.1:{port}/one.bin")
    lab.observe("SIGTERM", server.stop())


@app("memcached", "memcached", quick=True)
def memcached(lab):
    port = lab.port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    server = lab.start(["memcached", "-l", "127.0.0.1", "-p", port, "-t", "4", "-m", "64", *user], "memcached", port)
    value = lab.pattern_file("value", 900_000).read_bytes()
    with socket.create_connection(("127.0.0.1", port)) as one:
        stream = one.makefile("rwb")

        def ask(data):
            stream.write(data)
            stream.flush()
            return stream.readline()

        lab.observe("set 900 kB", ask(b"set big 7 0 %d\r\n%s\r\n" % (len(value), value)))
        lab.observe("get header", ask(b"get big\r\n"))
        lab.observe("get body", sha(stream.read(len(value) + 2)))
        lab.observe("get end", stream.readline())
        lab.observe("incr of text", ask(b"incr big 1\r\n"))
        stream.write(b"".join(b"set k%d 0 0 4\r\n%04d\r\n" % (i, i) for i in range(1000)))
        stream.flush()
        lab.observe("1000 pipelined sets", sha(b"".join(stream.readline() for _ in range(1000))))
    found = []
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for index, connection in enumerate(connections):
        connection.sendall(b"get k%d\r\n" % index)
    for connection in connections:
        found.append(connection.makefile("rb").readline())
        connection.close()
    lab.observe("50 connections over 4 threads", sha(b"".join(found)))
    lab.observe("SIGTERM", server.stop())


@app("postgresql", "postgresql-15", "postgresql-client-15")
def postgresql(lab):
    programs = Path(sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1])
    user = "postgres" if os.geteuid() == 0 else None
    data, port = lab.dir / "data", lab.port()
    lab.dir.chmod(0o777)
    made = lab.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync"], user=user)
    if made.status != 0:
        raise Failure(f"initdb: {made.status} {made.err.strip()[-200:]}")
    server = lab.start(
        [programs / "postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", lab.dir, "-c", "fsync=off",
         "-c", "max_parallel_workers_per_gather=2"], "postgres", port, user=user,
    )
    address = ["-h", "127.0.0.1", "-p", port, "-U", "postgres"]

    def sql(label, text, *options):
        lab.check(label, [programs / "psql", *address, "-X", "-At", *options, "-c", text, "postgres"])

    lab.wait_until("connections", lambda: lab.run([programs / "pg_isready", *address]).status == 0)
    lab.observe("pgbench -i", lab.run([programs / "pgbench", *address, "-i", "-q", "-s", "2", "postgres"]).status)
    for mode in ("simple", "prepared"):
        bench = lab.run([programs / "pgbench", *address, "-c", "6", "-j", "2", "-t", "100", "-M", mode, "postgres"])
        lab.observe(f"pgbench {mode}", (bench.status, re.findall(r"actually processed: (\S+)", bench.out),
                                        re.findall(r"failed transactions: (\S+)", bench.out)))
    sql("sums agree", "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches),"
        " (select count(*) from pgbench_history)")
    sql("parallel query", "set min_parallel_table_scan_size=0; set parallel_setup_cost=0;"
        " select count(*), sum(aid) from pgbench_accounts")
    sql("large result", "select string_agg(md5(i::text), '') from generate_series(1, 50000) i")
    sql("error", "select 1/0")
    sql("copy", "copy (select * from generate_series(1, 100000)) to stdout")
    sql("terminate another backend", "select pg_terminate_backend(pid) from pg_stat_activity where backend_type='walwriter'")
    lab.check("unix socket", [programs / "psql", "-h", lab.dir, "-p", port, "-U", "postgres", "-Atc", "select 42", "postgres"])
    lab.observe("pg_dump", sha(re.sub(r"\\(un)?restrict .*", "", lab.run(
        [programs / "pg_dump", *address, "-t", "pgbench_branches", "--schema-only", "postgres"]).out)))
    lab.observe("fast shutdown", server.stop(signal.SIGINT))


@app("openssh", "openssh-server", "openssh-client", "curl", quick=True)
def openssh(lab):
    port, me = lab.port(), os.environ.get("USER") or Path("~").expanduser().owner()
    lab.dir.chmod(0o700)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty directory; Debian makes it when the service starts
    for key in ("host", "user"):
        lab.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", lab.dir / key])
    lab.write("authorized", (lab.dir / "user.pub").read_text(), 0o600)
    conf = lab.write("sshd_config", f"""
Port {port}
ListenAddress 127.0.0.1
HostKey {lab.dir}/host
AuthorizedKeysFile {lab.dir}/authorized
PidFile {lab.dir}/sshd.pid
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp internal-sftp
""")
    server = lab.start(["/usr/sbin/sshd", "-D", "-e", "-f", conf], "sshd", port)
    options = ["-F", "none", "-i", lab.dir / "user", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes",
               "-o", f"UserKnownHostsFile={lab.dir}/known", "-o", "LogLevel=ERROR"]
    ssh = ["ssh", *options, "-p", port, f"{me}@127.0.0.1"]
    lab.check("command", [*ssh, "echo over ssh; exit 7"])
    lab.check("standard input", [*ssh, "wc -c"], stdin="x" * 500_000)
    lab.check("killed command", [*ssh, "kill -9 $$"])
    lab.check("terminal", [*ssh, "-tt", "stty size"])
    source = lab.pattern_file("source", 8_000_000)
    for style in ("-O", "-s"):
        lab.check(f"scp {style} there", ["scp", "-q", style, *options, "-P", port, source, f"{me}@127.0.0.1:{lab.dir}/there"])
        lab.check(f"scp {style} back", ["scp", "-q", style, *options, "-P", port, f"{me}@127.0.0.1:{lab.dir}/there", lab.dir / "back"])
        lab.observe(f"scp {style} content", sha((lab.dir / "back").read_bytes()))
    forward, www = lab.port(), lab.port()
    lab.write("www/index.html", "through the tunnel\n")
    http = lab.start(["python3", "-m", "http.server", "--bind", "127.0.0.1", "-d", lab.dir / "www", www], "http", www)
    tunnel = lab.start(["ssh", *options, "-p", port, "-N", "-L", f"127.0.0.1:{forward}:127.0.0.1:{www}", f"{me}@127.0.0.1"],
                       "tunnel", forward)
    fetch(lab, "through a forwarded port", f"http://127.0.0.1:{forward}/index.html")
    lab.observe("tunnel ends", tunnel.stop())
    http.stop()
    lab.observe("sshd ends", server.stop())
