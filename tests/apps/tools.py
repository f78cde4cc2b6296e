"""Command line tools, and programs that look closely at processes and descriptors."""

import re
import signal
from pathlib import Path

from lab import sha
from registry import app
from servers import fetch, start_nginx

PROGRAMS = Path(__file__).resolve().parent / "programs"

TLS_SERVER = """server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {dir}/tls.crt;
        ssl_certificate_key {dir}/tls.key;
        root {dir}/www;
    }}"""


@app("curl", "curl", "nginx-light", "openssl", quick=True)
def curl(lab):
    tls_port = lab.port()
    lab.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-keyout", lab.dir / "tls.key", "-out", lab.dir / "tls.crt"])
    server, port = start_nginx(lab, more=TLS_SERVER.format(port=tls_port, dir=lab.dir))
    base, tls = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{tls_port}"
    fetch(lab, "plain", f"{base}/big.bin")
    fetch(lab, "HTTP/2 over TLS", f"{tls}/big.bin", "-k", "--http2", "-w", "%{http_version} %{size_download}")
    fetch(lab, "untrusted certificate", f"{tls}/one.bin")
    fetch(lab, "by name", f"http://localhost:{port}/one.bin", "-4")
    for protocol, url in (("http1", base), ("http2", tls)):
        out = lab.dir / protocol
        out.mkdir()
        done = lab.run(["curl", "-sSk", "-Z", "--parallel-max", "10", "-o", f"{out}/#1", f"{url}/one.bin?[1-30]"])
        lab.observe(f"{protocol}: 30 in parallel", (done.status, sorted({sha(path.read_bytes()) for path in out.iterdir()}),
                                                    len(list(out.iterdir()))))
    (lab.dir / "part").write_bytes((lab.dir / "www/big.bin").read_bytes()[:7_000_000])
    lab.observe("resumed", lab.run(["curl", "-sS", "-C", "-", "-o", lab.dir / "part", f"{base}/big.bin"]).status)
    lab.observe("resumed content", sha((lab.dir / "part").read_bytes()))
    fetch(lab, "refused", f"http://127.0.0.1:{lab.port()}/")
    fetch(lab, "no such name", "http://no-such-host.invalid/")
    fetch(lab, "rate and time limit", f"{base}/big.bin", "--limit-rate", "1000", "-m", "1", "-w", "", keep_body=False)
    lab.observe("SIGTERM", server.stop())


CGI = """#!/bin/sh
export GIT_PROJECT_ROOT="{root}" GIT_HTTP_EXPORT_ALL=1
exec git http-backend
"""


@app("git", "git", "python3", quick=True)
def git(lab):
    """Clone, push and fetch over smart HTTP (git http-backend as CGI) and over git's own daemon."""
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
                "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}

    def do(label, *words, cwd=None):
        result = lab.run(["git", *words], env=identity, cwd=cwd)
        lab.observe(f"{label}: status", result.status)
        return result

    origin, seed = lab.dir / "root" / "origin.git", lab.dir / "seed"
    do("init", "init", "-q", "-b", "main", seed)
    for number in range(40):
        lab.pattern_file(f"seed/file{number}", 1000 + 7000 * number)
    do("add", "add", ".", cwd=seed)
    do("commit", "commit", "-q", "-m", "first", cwd=seed)
    do("bare clone", "clone", "-q", "--bare", seed, origin)
    do("allow push", "config", "http.receivepack", "true", cwd=origin)
    lab.write("root/cgi-bin/git", CGI.format(root=lab.dir / "root"), 0o755)
    http, daemon = lab.port(), lab.port()
    web = lab.start(["/usr/bin/python3", "-m", "http.server", "--cgi", "--bind", "127.0.0.1", "-d", lab.dir / "root", http],
                    "http", http, cwd=lab.dir / "root")
    own = lab.start(["git", "daemon", "--reuseaddr", "--export-all", "--enable=receive-pack", f"--base-path={lab.dir}/root",
                     "--listen=127.0.0.1", f"--port={daemon}"], "daemon", daemon, env=identity)
    for name, url in (("http", f"http://127.0.0.1:{http}/cgi-bin/git/origin.git"),
                      ("daemon", f"git://127.0.0.1:{daemon}/origin.git")):
        work = lab.dir / f"work-{name}"
        do(f"{name}: clone", "clone", "-q", url, work)
        lab.check(f"{name}: head", ["git", "rev-parse", "HEAD"], env=identity, cwd=work)
        lab.check(f"{name}: fsck", ["git", "fsck", "--full"], env=identity, cwd=work)
        lab.pattern_file(f"work-{name}/added-{name}", 300_000)
        do(f"{name}: add", "add", ".", cwd=work)
        do(f"{name}: commit", "commit", "-q", "-m", name, cwd=work)
        do(f"{name}: push", "push", "-q", "origin", "main", cwd=work)
        do(f"{name}: fetch", "pull", "-q", "--ff-only", url, "main", cwd=seed)
        lab.check(f"{name}: fetched", ["git", "rev-parse", "HEAD"], env=identity, cwd=seed)
    lab.observe("missing repository", lab.run(["git", "clone", "-q", f"http://127.0.0.1:{http}/none.git", lab.dir / "none"],
                                              env=identity).status)
    lab.observe("http ends", web.stop())
    lab.observe("daemon ends", own.stop())


@app("iperf3", "iperf3")
def iperf3(lab):
    port = lab.port()
    server = lab.start(["iperf3", "-s", "-B", "127.0.0.1", "-p", port], "iperf3", port)
    size = 64_000_000
    for label, options in (("tcp", ["-n", size]), ("reverse", ["-n", size, "-R"]), ("4 streams", ["-n", size, "-P", "4"]),
                           ("zero copy", ["-n", size, "-Z"]), ("udp", ["-u", "-b", "50M", "-n", 2_000_000])):
        done = lab.run(["iperf3", "-c", "127.0.0.1", "-p", port, "-J", *options])
        sent = max([int(number) for number in re.findall(r'"sum(?:_sent)?":\s*\{[^}]*?"bytes":\s*(\d+)', done.out)] or [0])
        lab.observe(label, (done.status, sent >= 2_000_000, re.findall(r'"error":.*', done.out)))
    lab.observe("SIGTERM", server.stop())


# stressor -> operations; each is a second or two.
STRESSORS = {
    "sock": 300, "sockpair": 20000, "sockfd": 20000, "sockdiag": 100, "udp": 20000, "epoll": 2000, "poll": 2000, "pipe": 20000,
    "sigpipe": 200, "eventfd": 20000, "dup": 2000, "close": 2000, "fork": 400, "vfork": 400, "spawn": 100, "clone": 200, "exec": 50,
    "sendfile": 500, "splice": 5000, "tee": 500, "vm-splice": 5000, "fcntl": 2000, "open": 500, "dev-shm": 10, "signal": 20000,
}


@app("stress-ng", "stress-ng")
def stress_ng(lab):
    for name, operations in STRESSORS.items():
        port = [f"--{name}-port", lab.port()] if name in ("sock", "udp") else []
        done = lab.run(["stress-ng", "--no-rand-seed", "--verify", f"--{name}", "2", f"--{name}-ops", operations, *port,
                        "--timeout", "20", "--temp-path", lab.dir], timeout=60)
        complaints = sorted(set(re.findall(r"stress-ng: fail: \[\d+\] (.*)", done.out + done.err)))
        lab.observe(f"{name}: status and complaints", (done.status, complaints[:3]))


@app("bash", "bash", quick=True)
def bash(lab):
    lab.check("descriptors, pipes, jobs, coprocess, /dev/tcp", ["bash", PROGRAMS / "descriptors.sh"], timeout=60)
    lab.check("dash", ["sh", "-c", "exec 7>&1; (echo in; echo err >&2) 2>&1 | sort | tee /dev/fd/7 | wc -l; exec 7>&-; ulimit -n"])
    lab.check("xargs, find", ["sh", "-c", "find /etc/alternatives 2>/dev/null | sort | xargs -P4 -n50 echo | wc -w"])


@app("strace", "strace", quick=True)
def strace(lab):
    """strace and what it traces both have the library in them."""
    binary = compile_c(lab, "traced")
    log = lab.dir / "strace.log"
    lab.check("traced program", ["strace", "-f", "-o", log, "-e", "trace=socket,connect,accept4,sendto,recvfrom", binary])
    calls = re.findall(r"^\d+ +(socket|connect|accept4|sendto|recvfrom)\(([^,)]*)", log.read_text(), re.M)
    # Two threads: only how often each call was made is determined.
    lab.observe("system calls seen", sorted(name for name, first in calls if "AF_UNIX" not in first))
    lab.check("count", ["sh", "-c", f"strace -c -o /dev/null {binary} && echo ended"])
    lab.check("injected failure", ["strace", "-f", "-o", "/dev/null", "-e", "inject=connect:error=ETIMEDOUT", binary])


@app("gdb", "gdb", quick=True)
def gdb(lab):
    binary = compile_c(lab, "traced", "-g", "-O0")
    script = lab.write("script.gdb", """set pagination off
set confirm off
set startup-with-shell off
set print thread-events off
set env GDB_RUN=1
break answer
run
backtrace 2
print request
finish
continue
""")
    result = lab.run(["gdb", "-nx", "-batch", "-x", script, binary])
    kept = [re.sub(r"0x[0-9a-f]+|\(process \d+\)|LWP \d+|process \d+", "X", row) for row in result.out.splitlines()
            if re.match(r"(#\d|\$\d|Breakpoint|Value|\[Inferior|echoed|Run till|main|answer)", row)]
    lab.observe("session", (result.status, kept))
    server = lab.start(["sh", "-c", f"exec {binary} wait"], "waiting")
    lab.wait_until("program", lambda: Path(f"/proc/{server.pid}/comm").read_text().strip() == "traced")
    attached = lab.run(["gdb", "-nx", "-batch", "-p", server.pid, "-ex", "info threads", "-ex", "print (int)getpid() > 0", "-ex", "detach"])
    lab.observe("attach", (attached.status, re.findall(r"^\$1 = .*", attached.out, re.M), attached.out.count("Thread ")))
    lab.observe("still alive, then SIGTERM", server.stop(signal.SIGTERM))


@app("valgrind", "valgrind", "gcc", "libc6-dbg")
def valgrind(lab):
    binary = compile_c(lab, "traced", "-g")
    for tool in ("memcheck", "helgrind"):
        leaks = ["--leak-check=full"] if tool == "memcheck" else []
        lab.check(tool, ["valgrind", "-q", f"--tool={tool}", *leaks, "--error-exitcode=9", binary])


def compile_c(lab, name, *options, compiler="gcc"):
    binary = lab.dir / name
    made = lab.run([compiler, "-O1", *options, "-pthread", "-o", binary, PROGRAMS / f"{name}.c", "-ldl"])
    lab.observe(f"compile {name} {' '.join(map(str, options))}", made.status)
    return binary
