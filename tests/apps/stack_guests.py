"""Several processes at one address of the stack: workers with connections of their own, programs that a program starts,
listeners side by side, and a master that is killed.
"""

import os
import signal

from registry import app
from stack_servers import OURS, PEER, link

NGINX = """
daemon off; user USER; worker_processes 2; pid PREFIX/nginx.pid; error_log PREFIX/error.log;
events { worker_connections 256; }
http {
    access_log off; sendfile on;
    client_body_temp_path PREFIX/body; proxy_temp_path PREFIX/proxy; fastcgi_temp_path PREFIX/fastcgi;
    uwsgi_temp_path PREFIX/uwsgi; scgi_temp_path PREFIX/scgi;
    upstream behind { server 10.9.0.1:8081; keepalive 4; }
    server {
        listen 10.9.0.2:8080 reuseport; root PREFIX/www;
        location /far { proxy_pass http://behind/; proxy_http_version 1.1; proxy_set_header Connection ""; }
        location /gone { proxy_pass http://10.9.0.1:9; }
    }
}
"""


@app("stack-nginx-reuseport", "nginx-light:nginx", "curl", "iproute2", quick=True)
def nginx_reuseport(lab):
    """Workers with a listener each, of another user and of root, that open connections of their own. In the end the
    master is killed, and those of root, who can open the device, go on."""
    near, far = lab.pattern_file("www/near", 10_000_000), lab.pattern_file("far/big", 30_000_000)
    lab.dir.chmod(0o777)
    with link(lab) as net:
        net.serve_at_peer("behind", ["/usr/bin/python3", "-m", "http.server", "8081", "--bind", PEER, "-d", far.parent])
        net.await_answer(["curl", "-sf", "-o", "/dev/null", f"http://{PEER}:8081/"])
        for user in ("nobody nogroup", "root"):
            text = NGINX.replace("PREFIX", str(near.parent.parent)).replace("USER", user)
            conf = lab.write("nginx.conf", text)
            server = net.serve(f"nginx-{user[:4]}", ["nginx", "-p", lab.dir, "-c", conf, "-e", "stderr"])
            page = f"http://{OURS}:8080"
            net.await_answer(["curl", "-sfI", "-m", "5", f"{page}/near"])
            lab.observe(f"{user}, near", [net.ask(["curl", "-s", f"{page}/near"]).digest() for _ in range(6)])
            lab.observe(f"{user}, far", [net.ask(["curl", "-s", f"{page}/far/big"]).digest() for _ in range(4)])
            code = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{page}/gone"]
            lab.observe(f"{user}, nobody behind", net.ask(code).out)
            if user != "root":
                lab.observe(f"{user}, end", server.stop())
        master = int((near.parent.parent / "nginx.pid").read_text())
        workers = lab.run(["pgrep", "-P", str(master)], env={"LD_PRELOAD": ""}).out.split()
        os.kill(master, signal.SIGKILL)
        net.await_answer(["curl", "-sfI", "-m", "5", f"{page}/near"])
        lab.observe("without a master", [net.ask(["curl", "-s", f"{page}/far/big"]).digest() for _ in range(4)])
        for worker in workers:
            os.kill(int(worker), signal.SIGTERM)


PARENT = """
import hashlib, multiprocessing, os, signal, socket, subprocess, sys
import requests
PEER = "10.9.0.1"
def fetch(number):
    got = requests.get(f"http://{PEER}:8081/big", headers={"Range": f"bytes={number * 100000}-{number * 100000 + 999999}"})
    return hashlib.sha256(got.content).hexdigest()
def listen(ready):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind(("10.9.0.2", 7400))
    server.listen(64)
    ready.release()
    while True:
        connection, _ = server.accept()
        with connection:
            connection.sendall(hashlib.sha256(connection.recv(100)).hexdigest().encode())
if __name__ == "__main__":
    own = socket.create_connection((PEER, 6379))
    def ping():
        own.sendall(b"PING\\r\\n")
        return own.recv(100)
    print(ping())
    for kind in ("fork", "spawn"):
        with multiprocessing.get_context(kind).Pool(4) as pool:
            print(kind, pool.map(fetch, range(12)))
    print(os.system(f"redis-cli -h {PEER} set word there > redis.out"), open("redis.out").read())
    print(subprocess.run(f"redis-cli -h {PEER} get word; curl -s http://{PEER}:8081/big | sha256sum", shell=True,
        capture_output=True, text=True).stdout)
    print(subprocess.run(["redis-benchmark", "-h", PEER, "-t", "set,get", "-n", "2000", "-c", "10", "-q"],
        capture_output=True, text=True).stdout.count("requests per second"))
    print(os.system(f"curl -s http://{PEER}:9/ > curl.out") >> 8)
    print(ping())
    ready, context = multiprocessing.Semaphore(0), multiprocessing.get_context("fork")
    workers = [context.Process(target=listen, args=(ready,), daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        ready.acquire()
    print("ready", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()
"""

CLIENT = """
import socket
answers = set()
for number in range(60):
    with socket.create_connection(("10.9.0.2", 7400), 20) as connection:
        connection.sendall(b"the same for all")
        answers.add(connection.recv(100))
print(answers)
"""


@app("stack-children", "python3-requests", "redis-server", "redis-tools", "curl", "iproute2", quick=True)
def children(lab):
    """A program with a connection on the stack, whose children and programs have their own."""
    body = lab.pattern_file("far/big", 20_000_000)
    with link(lab) as net:
        net.serve_at_peer("http", ["/usr/bin/python3", "-m", "http.server", "8081", "--bind", PEER, "-d", body.parent])
        net.serve_at_peer("redis", ["redis-server", "--bind", PEER, "--save", "", "--protected-mode", "no"])
        net.await_answer(["curl", "-sf", "-o", "/dev/null", f"http://{PEER}:8081/"])
        net.await_answer(["redis-cli", "-h", PEER, "ping"])
        parent = net.serve("parent", ["/usr/bin/python3", lab.write("parent.py", PARENT)])
        client = ["/usr/bin/python3", lab.write("client.py", CLIENT)]
        net.await_answer(client)
        lab.observe("listeners side by side", net.ask(client).out)
        lab.observe("parent", parent.stop())
        lab.observe("what it said", (lab.dir / "parent.err").read_text())
