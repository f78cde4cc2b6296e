"""Servers on the stack whose connections are served by other processes than the one that listens: one for each
connection, or children of a daemon.
"""

import os
import signal

from lab import Failure
from registry import app
from stack_servers import OURS, link

WORDS = "there and back\n"


@app("stack-socat-fork", "socat", "iproute2", quick=True)
def socat_fork(lab):
    """Accepts, forks, and executes a program with the connection as its standard input and output."""
    body = lab.pattern_file("body", 3_000_000)
    client = ["socat", "-t10", "-", f"TCP:{OURS}:7300"]
    with link(lab) as net:
        def serve(what):
            server = net.serve("socat", ["socat", f"TCP-LISTEN:7300,bind={OURS},fork,reuseaddr", what])
            net.await_answer(["socat", "-u", "/dev/null", client[-1]])
            return server

        server = serve("EXEC:/bin/cat")
        lab.observe("echo", [net.ask(client, stdin=WORDS.encode()).out for _ in range(5)])
        lab.observe("3 MB echo", net.ask(client, stdin=body.read_bytes()).digest())
        server.stop()
        serve("SYSTEM:/usr/bin/env -i /usr/bin/sha256sum")
        lab.observe("without the library", net.ask(client, stdin=body.read_bytes()).out)


@app("stack-inetd", "socat", "openbsd-inetd", "iproute2", quick=True)
def inetd(lab):
    lines = [f"{OURS}:7302 stream tcp nowait root /bin/cat cat", f"{OURS}:7303 stream tcp nowait root /usr/bin/env env -i /bin/cat"]
    config = lab.write("inetd.conf", "\n".join(lines) + "\n")
    with link(lab) as net:
        net.serve("inetd", ["inetd", "-i", "-d", config])
        net.await_answer(["socat", "-u", "/dev/null", f"TCP:{OURS}:7302"])
        for port in ("7302", "7303"):
            cat = ["socat", "-t10", "-", f"TCP:{OURS}:{port}"]
            lab.observe(port, [net.ask(cat, stdin=WORDS.encode()).out for _ in range(3)])


NGINX = """
daemon on; user root; worker_processes 2; pid PREFIX/nginx.pid; error_log PREFIX/error.log;
events { worker_connections 256; }
http { access_log off; sendfile on; server { listen 10.9.0.2:80; root PREFIX/www; } }
"""


@app("stack-nginx-daemon", "nginx", "curl", "iproute2", quick=True)
def nginx_daemon(lab):
    """The process that listens ends at once; its child is the master, and grandchildren accept. Twice: the second
    finds the address free."""
    body = lab.pattern_file("www/body", 20_000_000)
    prefix = body.parent.parent
    config = lab.write("nginx.conf", NGINX.replace("PREFIX", str(prefix)))
    pid = prefix / "nginx.pid"
    page = ["curl", "-s", f"http://{OURS}/body"]
    with link(lab) as net:
        for _ in range(2):
            started = lab.run(net.at_home(["nginx", "-p", str(prefix), "-c", str(config)]), env=net.stack())
            lab.observe("start", started.status)
            net.await_answer(["curl", "-sf", "-o", "/dev/null", page[-1]])
            lab.observe("20 MB", [net.ask(page).digest() for _ in range(3)])
            os.kill(int(pid.read_text()), signal.SIGTERM)
            lab.wait_until("end of nginx", lambda: not pid.exists())


UPGRADED = """
env LD_PRELOAD; env KCMSHIM_STACK;
""" + NGINX
# Asks until there is a file, and ends with 0 if it has been answered each time.
ASKER = f"""
import os, socket, sys, time
answered, failed = 0, []
while not os.path.exists(sys.argv[1]):
    try:
        with socket.create_connection(("{OURS}", 80), 30) as s:
            s.sendall(b"GET /body HTTP/1.0\\r\\n\\r\\n")
            got = b"".join(iter(lambda: s.recv(65536), b""))
            answered += 1
            if not got.endswith(b"the end"):
                failed.append(got[-20:])
    except OSError as why:
        failed.append(why)
        time.sleep(0.01)
print(answered, failed[:3], len(failed))
sys.exit(bool(failed) or not answered)
"""


@app("stack-nginx-upgrade", "nginx", "curl", "iproute2", quick=True)
def nginx_upgrade(lab):
    """A server takes up a new configuration, and a new program that inherits its listener, while it is asked: nobody
    is turned away."""
    body = lab.write("www/body", "x" * 20_000 + "the end")
    prefix = body.parent.parent
    config = lab.write("nginx.conf", UPGRADED.replace("PREFIX", str(prefix)))
    pid, former = prefix / "nginx.pid", prefix / "nginx.pid.oldbin"

    def signal_master(number, file=pid):
        os.kill(int(file.read_text()), number)

    def workers():
        return set(lab.run(["pgrep", "-P", pid.read_text().strip()], env={"LD_PRELOAD": ""}).out.split())

    with link(lab) as net:
        started = lab.run(net.at_home(["/usr/sbin/nginx", "-p", str(prefix), "-c", str(config)]), env=net.stack())
        lab.observe("start", started.status)
        net.await_answer(["curl", "-sf", "-o", "/dev/null", f"http://{OURS}/body"])
        ends = prefix / "stop"
        asker = ["/usr/bin/python3", "-c", ASKER, ends]
        askers = [net.serve_at_peer(f"asker-{n}", asker) for n in range(2)]
        for _ in range(3):
            before = workers()
            signal_master(signal.SIGHUP)
            lab.wait_until("other workers", lambda: len(workers()) == 2 and not workers() & before)
        signal_master(signal.SIGUSR2)
        lab.wait_until("a new master", lambda: former.exists() and pid.exists() and len(workers()) == 2)
        signal_master(signal.SIGQUIT, former)
        lab.wait_until("the former master's end", lambda: not former.exists())
        ends.touch()
        for asker in askers:
            if asker.process.wait():
                raise Failure(f"{asker.name} was turned away: {asker.tail()}")
        signal_master(signal.SIGTERM)
        lab.wait_until("end of nginx", lambda: not pid.exists())
