#!/usr/bin/env python3
"""ci/bench shim: what the library costs a program that uses none of what it offers."""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "apps"))

import build  # noqa: E402
import cli  # noqa: E402
import servers  # noqa: E402
from lab import Lab  # noqa: E402
from measure import Bar, Group, Program  # noqa: E402

CALLS = (
    "read", "write", "writev", "recv", "send", "recvmsg", "setsockopt", "poll", "epoll_wait", "fcntl", "ioctl", "fstat",
    "dup2", "close",
)
REDIS_REQUESTS = 300_000   # half a second or so a run
WRK_SECONDS = 1
RSS_SAMPLES = 5


def hook_group(bin_dir, lib):
    preload = {"LD_PRELOAD": str(lib)}
    names = [*CALLS, "read+kcm", "recvmsg+kcm", "epoll_wait+kcm"]
    programs = [
        Program(name.replace("+kcm", ", holding a KCM socket"), [str(bin_dir / "hook_cost"), "-m", name], "bare_ns", "ns",
                preload)
        for name in names
    ]
    return Group("a call on a foreign descriptor: bare, and what the hook adds", programs,
                 [Bar(program.name, "<=", 3, None, None, "ns", "over_ns") for program in programs])


def process_group(bin_dir, lib):
    def library_size():
        with tempfile.TemporaryDirectory() as directory:
            stripped = Path(directory) / "lib.so"
            shutil.copy(lib, stripped)
            subprocess.run(["strip", stripped], check=True)
            return {"bytes": stripped.stat().st_size}

    def resident(preload):
        """Resident kilobytes of a program that waits: cat on a pipe."""
        env = {**os.environ, **({"LD_PRELOAD": str(lib)} if preload else {})}
        figures = []
        for _ in range(RSS_SAMPLES):
            process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
            process.stdin.write(b"x")
            process.stdin.flush()
            process.stdout.read(1)  # it is past its start
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            figures.append({
                name: int(re.search(rf"^{name}:\s+(\d+) kB", rollup, re.M)[1]) * 1024 for name in ("Rss", "Private_Dirty")
            })
            process.communicate()
        return {name: statistics.median(figure[name] for figure in figures) for name in figures[0]}

    def added_memory():
        without, with_library = resident(False), resident(True)
        return {"bytes": with_library["Rss"] - without["Rss"],
                "private_dirty": with_library["Private_Dirty"] - without["Private_Dirty"]}

    return Group(
        "process",
        [
            Program("start of /bin/true, added", [str(bin_dir / "start_cost"), str(lib), "/bin/true"], "added_ms", "ms"),
            Program("library, stripped", library_size, "bytes", "B"),
            Program("resident memory added to cat", added_memory, "bytes", "B"),
        ],
        [
            Bar("start of /bin/true, added", "<=", 2, None, None, "ms"),
            Bar("library, stripped", "<=", 4 << 20, None, None, "B"),
            Bar("resident memory added to cat", "<=", 1 << 20, None, None, "B"),
            Bar("resident memory added to cat", "<=", 1 << 20, None, None, "B", "private_dirty"),
        ],
    )


def cpu_ns(pid):
    """Processor time of a process and its children so far, all threads."""
    return sum(
        int(task.read_text().split()[0])
        for process in (pid, *servers.children(pid))
        for task in Path(f"/proc/{process}/task").glob("*/schedstat")
    )


class Pair:
    """A server without and the same with the library, both running; the client is never preloaded."""

    def __init__(self, base, lib, start):
        self.labs = {name: Lab(base / name, path) for name, path in (("without", None), ("with", lib))}
        self.started = {name: start(lab) for name, lab in self.labs.items()}
        self.client = self.labs["without"]

    def measure(self, name, run):
        """`run(lab, port)` returns (requests, seconds); the rate and the server's processor time a request."""
        server, port = self.started[name]
        before = cpu_ns(server.pid)
        requests, seconds = run(self.client, port)
        return {"rate": requests / seconds, "cpu_ns": (cpu_ns(server.pid) - before) / requests}

    def close(self):
        for lab in self.labs.values():
            lab.clean_up()


def redis_benchmark(lab, port):
    done = lab.run(["redis-benchmark", "-p", port, "-P", "16", "-c", "50", "-n", REDIS_REQUESTS, "-t", "get", "--csv"])
    rate = float(re.findall(r'^"GET","([\d.]+)"', done.out, re.M)[0])
    return REDIS_REQUESTS, REDIS_REQUESTS / rate


def wrk(lab, port):
    done = lab.run(["wrk", "-t1", "-c32", f"-d{WRK_SECONDS}s", f"http://127.0.0.1:{port}/small.txt"])
    requests, seconds = re.findall(r"(\d+) requests in ([\d.]+)s", done.out)[0]
    return int(requests), float(seconds)


def server_group(title, pair, run):
    return Group(
        title,
        [
            Program("without", lambda: pair.measure("without", run)),
            Program("with the library", lambda: pair.measure("with", run)),
        ],
        [
            Bar("with the library", ">=", 0.99, None, "without"),
            Bar("with the library", "<=", 1.01, None, "without", value="cpu_ns"),
        ],
    )


def main():
    options = cli.parser("ci/bench shim", __doc__, rounds=7).parse_args()
    build.install("gcc", "libc6-dev", "binutils", "libzmq3-dev", "redis-server", "redis-tools", "nginx-light", "wrk", "curl")
    bin_dir = build.compile_programs()
    # Every user a server changes to must reach the library.
    base = Path(tempfile.mkdtemp(prefix="kcmshim-bench-"))
    base.chmod(0o755)
    lib = base / "libkcmshim.so"
    shutil.copy(build.library(options.lib), lib)
    lib.chmod(0o755)
    groups, pairs = [hook_group(bin_dir, lib), process_group(bin_dir, lib)], []
    try:
        for title, start, run in (("redis-benchmark -P 16, server", servers.start_redis, redis_benchmark),
                                  ("nginx + wrk, server", servers.start_nginx, wrk)):
            if options.only in title:
                pairs.append(Pair(base / title.split()[0], lib, start))
                groups.append(server_group(title, pairs[-1], run))
        groups = [group for group in groups if options.only in group.title]
        for group in groups:
            group.run(options.rounds, cli.progress)
    finally:
        for pair in pairs:
            pair.close()
        shutil.rmtree(base, ignore_errors=True)
    cli.finish(groups, options)


if __name__ == "__main__":
    main()
