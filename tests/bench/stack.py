#!/usr/bin/env python3
"""ci/bench stack: programs on the stack in the process, beside the same programs on the kernel's stack.

Two pairs of network namespaces, each joined by a veth: in one the program's address is the kernel's, in the other the
library's. The peer is on the kernel's stack in both. Rounds alternate; figures are medians, ratios from one run.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import build

ROOT = Path(__file__).resolve().parents[2]
OWN, PEER, PORT = "10.9.0.2", "10.9.0.1", 7300
ROUNDS = 5
# From one second to the next the rate of connections differs by half, on either stack: by where the scheduler puts the
# two ends, and what it costs to wake the other processor.
ROUNDS_OF_MANY = 15
SECONDS = "1"


def run(*words, **more):
    return subprocess.run(words, check=True, capture_output=True, text=True, **more).stdout


class Pair:
    """A program's side and its peer's."""

    def __init__(self, kind, lib):
        self.kind, self.lib = kind, lib
        self.own, self.peer = f"kb{os.getpid()}{kind}o", f"kb{os.getpid()}{kind}p"
        for side in (self.own, self.peer):
            run("ip", "netns", "add", side)
            run("ip", "-n", side, "link", "set", "lo", "up")
        run("ip", "link", "add", "eth0", "netns", self.own, "type", "veth", "peer", "name", "eth0", "netns", self.peer)
        for side in (self.own, self.peer):
            run("ip", "-n", side, "link", "set", "eth0", "up")
        # Until both ends know of their carrier what is sent there is lost.
        for side in (self.own, self.peer):
            while "state UP" not in run("ip", "-n", side, "link", "show", "dev", "eth0"):
                time.sleep(0.01)
        run("ip", "-n", self.peer, "addr", "add", f"{PEER}/24", "dev", "eth0")
        if kind == "kernel":
            run("ip", "-n", self.own, "addr", "add", f"{OWN}/24", "dev", "eth0")

    @property
    def inside(self):
        return ["ip", "netns", "exec", self.own]

    def at_peer(self, *words):
        return ["ip", "netns", "exec", self.peer, *words]

    def here(self, *words):
        prefix = self.inside
        if self.kind == "kernel":
            return [*prefix, *words]
        settings = [f"LD_PRELOAD={self.lib}", f"KCMSHIM_STACK=packet:eth0 {OWN}/24"]
        if self.kind == "busy":
            settings.append("KCMSHIM_STACK_BUSY_POLL=100")
        return [*prefix, "env", *settings, *words]

    def drop(self):
        for side in (self.own, self.peer):
            subprocess.run(["ip", "netns", "del", side], check=False)


class Server:
    """A server, until the block ends."""

    def __init__(self, command):
        self.command = command

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.5)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def redis(pair, pipeline, requests):
    with Server(pair.here("redis-server", "--bind", OWN, "--save", "", "--protected-mode", "no")):
        text = run(*pair.at_peer("redis-benchmark", "-h", OWN, "-t", "get", "-c", "50", "-P", str(pipeline), "-n",
                                 str(requests), "--csv"))
    return float(re.search(r'"GET","([0-9.]+)"', text)[1])


def iperf(pair, *flags):
    with Server(pair.at_peer("iperf3", "-s", "-B", PEER)):
        report = json.loads(run(*pair.here("iperf3", "-c", PEER, "-t", SECONDS, "-J", *flags)))
    return report["end"]["sum_received"]["bits_per_second"] / 1e9


def small(pair, program, what, field):
    with Server(pair.at_peer(program, "serve", PEER, str(PORT))):
        return json.loads(run(*pair.here(program, what, PEER, str(PORT), SECONDS)))[field]


def kcm(pair, programs):
    """
    Messages of 64 bytes a second, a recvmsg each. The source and the receiver are processes with the library: over
    kernel loopback, or over stacks that share a memory device.
    """
    environment = {"LD_PRELOAD": str(pair.lib), **os.environ}
    if pair.kind == "kernel":
        return json.loads(run(programs / "rx_kcm", env=environment))["rate"]
    ours, theirs = "10.9.1.2", "10.9.1.1"
    name = f"mem:kb{os.getpid()}"
    environment |= {"KCMSHIM_STACK": f"{name} {ours}/24", "BENCH_ADDRESS": ours,
                    "BENCH_PEER_STACK": f"{name} {theirs}/24"}
    return json.loads(run(*pair.inside, programs / "rx_kcm", env=environment))["rate"]


def ring_rate():
    """Frames of 64 bytes a second, in millions, through rings of netmap's layout in memory, one thread."""
    report = run("cargo", "bench", "-q", "-p", "kcm-stack", "--bench", "device", "--", "netmap region", cwd=ROOT)
    line = next(line for line in report.splitlines() if re.match(r"netmap region +64 ", line))
    return float(re.search(r"64 +[0-9.]+ */ *([0-9.]+)", line)[1])


IDLE_SECONDS = 4


def idle_share(pair, program):
    """Processor time in percent of a program on the stack that has a connection on which nothing happens."""
    with Server(pair.here(program, "serve", OWN, str(PORT))) as server:
        with Server(pair.at_peer("bash", "-c", f"exec 3<>/dev/tcp/{OWN}/{PORT}; exec sleep 60")):
            tasks = f"/proc/{server.process.pid}/task"

            def nanoseconds():
                return sum(int(Path(tasks, task, "schedstat").read_text().split()[0]) for task in os.listdir(tasks))

            time.sleep(1)
            before = nanoseconds()
            time.sleep(IDLE_SECONDS)
            return (nanoseconds() - before) / IDLE_SECONDS / 1e7


def main():
    if os.geteuid() != 0:
        sys.exit("ci/bench stack: network namespaces need root")
    missing = [name for name in ("redis-server", "redis-benchmark", "iperf3") if not shutil.which(name)]
    if missing:
        run("apt-get", "-qq", "-y", "--no-install-recommends", "install", "redis-server", "redis-tools", "iperf3")
    lib = os.environ.get("KCMSHIM_LIB")
    if not lib:
        subprocess.run(["cargo", "build", "-q", "--release", "-p", "kcmshim"], cwd=ROOT, check=True)
        lib = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/libkcmshim.so"
    programs = build.compile_programs(with_zmq=False)
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/net_pair"
        run("cc", "-O2", "-Wall", "-Wextra", "-o", program, str(ROOT / "tests/bench/net_pair.c"))
        # Name, measurement, whether more is better, bar as a ratio to the kernel, and the lane measured.
        rows = [
            ("redis GET -c 50 -P 1, requests/s", lambda p: redis(p, 1, 60_000), True, 1.0, "shim"),
            ("redis GET -c 50 -P 16, requests/s", lambda p: redis(p, 16, 600_000), True, 1.0, "shim"),
            ("iperf3 sending, Gbit/s", iperf, True, 0.8, "shim"),
            ("iperf3 receiving, Gbit/s", lambda p: iperf(p, "-R"), True, 0.8, "shim"),
            ("64 B ping-pong p50, us", lambda p: small(p, program, "pingpong", "p50_us"), False, 1.0, "shim"),
            ("the same, busy-poll", lambda p: small(p, program, "pingpong", "p50_us"), False, 0.7, "busy"),
            ("connections/s", lambda p: small(p, program, "connect", "per_second"), True, 1.0, "shim"),
            ("KCM 64 B, recvmsg each, messages/s", lambda p: kcm(p, programs), True, 1.0, "shim"),
        ]
        # Figures that stand for themselves.
        alone = [
            ("idle with a connection, % of a CPU", lambda: idle_share(pairs["shim"], program), False, 0.1),
            ("netmap rings in memory, 64 B, M/s", ring_rate, True, 10.0),
        ]
        pairs = {}
        failed = False
        try:
            for kind in ("kernel", "shim", "busy"):
                pairs[kind] = Pair(kind, lib)
            print(f"{'work':36} {'kernel':>12} {'stack':>12} {'ratio':>7}  bar")
            for name, measure, more, bar, lane in rows:
                figures = {"kernel": [], lane: []}
                for _ in range(ROUNDS_OF_MANY if name == "connections/s" else ROUNDS):
                    for kind in figures:
                        figures[kind].append(measure(pairs[kind]))
                ratio = statistics.median(s / k for s, k in zip(figures[lane], figures["kernel"]))
                good = ratio >= bar if more else ratio <= bar
                failed |= not good
                print(f"{name:36} {statistics.median(figures['kernel']):12.2f} {statistics.median(figures[lane]):12.2f} "
                      f"{ratio:7.2f}  {'>=' if more else '<='} {bar} {'met' if good else 'MISSED'}", flush=True)
            for name, measure, more, bar in alone:
                figure = measure()
                good = figure >= bar if more else figure <= bar
                failed |= not good
                print(f"{name:36} {'':12} {figure:12.3f} {'':7}  {'>=' if more else '<='} {bar} {'met' if good else 'MISSED'}",
                      flush=True)
        finally:
            for pair in pairs.values():
                pair.drop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
