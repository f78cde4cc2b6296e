"""Ways a library gets into a process, or does not: other preloads, sanitizers, the loader, setuid, static, daemons."""

import os
import shutil
import subprocess
from pathlib import Path

from lab import LIBRARY_NAME, Failure
from registry import app
from tools import compile_c

JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
EATMYDATA = "/usr/lib/x86_64-linux-gnu/libeatmydata.so"


def multiarch(path):
    return path.replace("x86_64-linux-gnu", os.uname().machine + "-linux-gnu")


@app("preloads", "libjemalloc2", "libeatmydata1", "redis-server", "redis-tools", quick=True)
def preloads(lab):
    """Before and after other preloaded libraries, with a threaded server that forks and syncs."""
    for name, path in (("jemalloc", multiarch(JEMALLOC)), ("eatmydata", multiarch(EATMYDATA))):
        for place, value in (("before", lab.preload(after=[path])), ("after", lab.preload(path))):
            env = {"LD_PRELOAD": value}
            lab.check(f"{name} {place}: python", ["/usr/bin/python3", "-c", PYTHON_WORK], env=env)
            port, directory = lab.port(), lab.dir / f"{name}-{place}"
            directory.mkdir()
            server = lab.start(["redis-server", "--port", port, "--dir", directory, "--save", "", "--appendonly", "yes",
                                "--appendfsync", "always"], f"redis-{name}-{place}", port, env=env)
            bench = lab.run(["redis-benchmark", "-p", port, "-n", "3000", "-P", "8", "-q", "-t", "set,get"], env=env)
            lab.observe(f"{name} {place}: redis-benchmark", bench.status)
            lab.observe(f"{name} {place}: SIGTERM", server.stop())


PYTHON_WORK = """
import socket, threading, subprocess, hashlib
a, b = socket.socketpair()
thread = threading.Thread(target=lambda: (b.sendall(bytes(range(256)) * 4000), b.close()))
thread.start()
data = b"".join(iter(lambda: a.recv(65536), b""))
thread.join()
print(hashlib.sha256(data).hexdigest(), subprocess.run(["cat"], input=b"child", capture_output=True).stdout)
"""


@app("sanitizers", "gcc", quick=True)
def sanitizers(lab):
    """ASan's run-time has to come first where it is a shared library; TSan's and UBSan's likewise."""
    for name in ("address", "thread", "undefined"):
        runtime = {"address": "libasan.so", "thread": "libtsan.so", "undefined": "libubsan.so"}[name]
        path = subprocess.run(["gcc", f"-print-file-name={runtime}"], capture_output=True, text=True).stdout.strip()
        shared = compile_c(lab, "traced", f"-fsanitize={name}", "-g")
        lab.check(f"{name}, shared run-time", [shared], env={"LD_PRELOAD": lab.preload(os.path.realpath(path))})
    static = compile_c(lab, "traced", "-fsanitize=address", "-static-libasan", "-g")
    lab.check("address, static run-time", [static])


@app("loader", "gcc", quick=True)
def loader(lab):
    """The dynamic loader's own option, opened late by dlopen, and a program that sweeps its descriptors."""
    interpreter = next(path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if os.path.exists(path))
    binary = compile_c(lab, "traced")
    option = ["--preload", lab.lib] if lab.lib else []
    lab.check("ld.so --preload", [interpreter, *option, binary], env={"LD_PRELOAD": ""})
    late = compile_c(lab, "late")
    lab.check("opened by dlopen", [late, lab.lib or "libm.so.6"], env={"LD_PRELOAD": ""})
    preload_file(lab, binary)
    lab.check("empty environment", ["/usr/bin/env", "-i", *([f"LD_PRELOAD={lab.lib}"] if lab.lib else []), binary])
    lab.check("no descriptors at all", ["sh", "-c", f"{binary} 0<&- 1>&- 2>&-; echo $?"])
    lab.check("ldd, ld.so --verify", ["sh", "-c", f"ldd {binary} | grep -c libc.so; {interpreter} --verify {binary}; echo $?"])
    lab.check("many threads start and end", ["/usr/bin/python3", "-c", MANY_THREADS])


def preload_file(lab, binary):
    """/etc/ld.so.preload, in a mount namespace of its own with a copy of /etc."""
    etc = lab.dir / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=unreadable)
    (etc / "ld.so.preload").write_text(f"{lab.lib}\n" if lab.lib else "\n")

    def inside(command):
        own_root = [] if os.geteuid() == 0 else ["-r"]
        return ["unshare", *own_root, "-m", "sh", "-c", f"mount --bind {etc} /etc && {command}"]

    lab.check("/etc/ld.so.preload", inside(binary), env={"LD_PRELOAD": ""})
    maps = lab.run(inside("cat /proc/self/maps"), env={"LD_PRELOAD": ""})
    if lab.lib and LIBRARY_NAME not in maps.out:
        raise Failure(f"/etc/ld.so.preload does not load the library: {maps.err.strip()[-200:]}")


def unreadable(directory, names):
    """What an ordinary user cannot copy."""
    return [name for name in names if not os.access(os.path.join(directory, name), os.R_OK)]


MANY_THREADS = """
import threading
total = []
for _ in range(20):
    threads = [threading.Thread(target=total.append, args=(1,)) for _ in range(100)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(len(total))
"""


@app("daemon", "gcc", quick=True)
def daemon(lab):
    """A classic daemon (double fork, every descriptor swept) and one that systemd would hand its listener to."""
    binary, port = compile_c(lab, "daemon"), lab.port()
    for sweep in ("close", "close_range", "closefrom"):
        pid_file = lab.dir / f"{sweep}.pid"
        lab.observe(f"{sweep}: parent", lab.run([binary, sweep, port, pid_file]).status)
        lab.wait_until("pid file", lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        lab.wait_port(port)
        pid = int(pid_file.read_text())
        lab.check(f"{sweep}: request", ["curl", "-sS", "--http0.9", f"http://127.0.0.1:{port}/"])
        os.kill(pid, 15)
        lab.wait_until("its end", lambda: not Path(f"/proc/{pid}").exists())
    lab.check("socket activation", ["/usr/bin/python3", "-c", ACTIVATE, binary])


ACTIVATE = """
import os, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
start = ["sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" activated', sys.argv[1]]
child = subprocess.Popen(start, pass_fds=(3,))
client = socket.create_connection(listener.getsockname())
client.settimeout(10)
print(client.makefile().read(), end="")
child.terminate()
print(child.wait())
"""


@app("setuid", "gcc", loads_library=False)
def setuid(lab):
    """The loader ignores LD_PRELOAD with a path in a setuid program: it runs as ever, without the library."""
    binary = compile_c(lab, "whoami_maps")
    if os.geteuid() == 0:
        binary.chmod(0o4755)
        lab.check("setuid root, run by nobody", [binary], user="nobody")
    else:
        lab.check("an installed setuid program", ["/bin/su", "--version"])


@app("static", "gcc", "libc6-dev", quick=True, loads_library=False)
def static(lab):
    binary = compile_c(lab, "traced", "-static")
    lab.check("static program", [binary])
