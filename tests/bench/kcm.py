#!/usr/bin/env python3
"""ci/bench kcm: KCM under the library against what people write by hand, and against kernel KCM in a VM."""

import json
import os
import subprocess

import build
import cli
import vm
from measure import Bar, Group, Program

IDLE_COUNT = 10_000  # connections, and KCM sockets, of the memory figures
IDLE_MS = 5_000      # of the idle process
# A 99th percentile is at the mercy of whatever else runs: many short rounds, so that the two of a pair meet the same.
PING_PONG_ROUNDS, PING_PONG_MS = 25, 100
SMALL, LARGE = 64, 16384
KIB = 1024


def native_groups(bin_dir, lib, duration_ms):
    """The groups that run on this machine's kernel, KCM programs under the library."""
    preload = {"LD_PRELOAD": str(lib)}

    def rival(name, program, *options, **more):
        return Program(name, [str(bin_dir / program), "-d", str(duration_ms), *map(str, options)], **more)

    def kcm(name, program, *options, **more):
        return rival(name, program, *options, env=preload, **more)

    shared = ("-c", 4, "-k", 4, "-t", 2)
    return [
        Group(
            f"receive {SMALL} B",
            [
                rival("in-place framing", "rx_inplace"),
                rival("header then body", "rx_header_body"),
                rival("reader, queue, worker", "rx_queue"),
                rival("ZeroMQ PUSH/PULL", "rx_zmq"),
                kcm("KCM recvmsg", "rx_kcm"),
                kcm("KCM recvmmsg(64)", "rx_kcm", "-m", "recvmmsg"),
                kcm("KCM recvmsg, 4 x 4, 2 threads", "rx_kcm", *shared),
                kcm("KCM recvmmsg, 4 x 4, 2 threads", "rx_kcm", "-m", "recvmmsg", *shared),
            ],
            [
                Bar("KCM recvmsg", ">=", 0.35, 0.6, "in-place framing"),
                Bar("KCM recvmsg", ">=", 10, None, "header then body"),
                Bar("KCM recvmsg", ">=", 3, None, "ZeroMQ PUSH/PULL"),
                Bar("KCM recvmsg", ">=", 2, None, "reader, queue, worker"),
                Bar("KCM recvmmsg(64)", ">=", 0.5, 0.8, "in-place framing"),
                Bar("KCM recvmsg, 4 x 4, 2 threads", ">=", 0.9, None, "KCM recvmsg"),
                Bar("KCM recvmmsg, 4 x 4, 2 threads", ">=", 0.9, None, "KCM recvmmsg(64)"),
            ],
        ),
        Group(
            f"receive {LARGE // KIB} KiB",
            [
                rival("in-place framing", "rx_inplace", "-s", LARGE),
                kcm("KCM recvmsg", "rx_kcm", "-s", LARGE),
            ],
            [Bar("KCM recvmsg", ">=", 0.8, 0.95, "in-place framing")],
        ),
        Group(
            f"send {SMALL} B",
            [
                rival("raw write each", "tx_raw"),
                rival("64 gathered by hand, one write", "tx_raw", "-m", "gather"),
                kcm("KCM sendmsg each", "tx_kcm"),
                kcm("KCM MSG_BATCH, 64", "tx_kcm", "-m", "batch"),
                kcm("KCM sendmmsg(64)", "tx_kcm", "-m", "sendmmsg"),
            ],
            [
                Bar("KCM sendmsg each", ">=", 0.95, None, "raw write each"),
                Bar("KCM MSG_BATCH, 64", ">=", 15, 35, "raw write each"),
                Bar("KCM sendmmsg(64)", ">=", 15, 35, "raw write each"),
            ],
        ),
        Group(
            f"send {LARGE // KIB} KiB",
            [
                rival("raw write each", "tx_raw", "-s", LARGE),
                kcm("KCM sendmmsg(64)", "tx_kcm", "-s", LARGE, "-m", "sendmmsg"),
            ],
            [Bar("KCM sendmmsg(64)", ">=", 0.95, None, "raw write each")],
        ),
        Group(
            f"ping-pong {SMALL} B, blocking",
            [
                rival("raw TCP", "pingpong", "-m", "raw", "-d", PING_PONG_MS, value="p50_us", unit="us"),
                kcm("KCM", "pingpong", "-m", "kcm", "-d", PING_PONG_MS, value="p50_us", unit="us"),
            ],
            [
                Bar("KCM", "<=", 1.05, None, "raw TCP"),
                Bar("KCM", "<=", 1.05, None, "raw TCP", value="p99_us"),
            ],
            rounds=PING_PONG_ROUNDS,
        ),
        Group(
            f"memory in the process, each of {IDLE_COUNT}",
            [
                kcm("attached connection, idle", "memory_kcm", "-c", IDLE_COUNT, value="bytes_each", unit="B"),
                kcm("KCM socket, idle", "memory_kcm", "-m", "sockets", "-k", IDLE_COUNT, value="bytes_each", unit="B"),
            ],
            [
                Bar("attached connection, idle", "<=", 4096, None, None, "B"),
                Bar("attached connection, idle", "<=", 4096, None, None, "B", "bytes_each_used"),
                Bar("KCM socket, idle", "<=", 4096, None, None, "B"),
            ],
            rounds=3,
        ),
        Group(
            f"idle process, {IDLE_MS // 1000} s, 2 threads waiting",
            [
                Program(
                    "wake-ups", [str(bin_dir / "idle_kcm"), "-c", "4", "-d", str(IDLE_MS)], "wakeups", "", preload,
                ),
            ],
            [
                Bar("wake-ups", "<=", 0, None, None, ""),
                # Two looks at the clock cost this much; a timer or a spin costs far more in five seconds.
                Bar("wake-ups", "<=", 2, None, None, "ms", "cpu_ms"),
            ],
            rounds=1,
        ),
    ]


class ParserGroup(Group):
    """The parser VM against rbpf's interpreter, both called directly: the crate parser/ does the rounds."""

    KEYS = {
        "ours": "ours", "rbpf": "rbpf", "ours, interpreted": "ours_interpreted", "rbpf, the same": "rbpf_interpreted",
    }

    def __init__(self):
        super().__init__(
            "parser VM, clang's 4 instructions, and 5 that must be interpreted",
            [Program(name, [], "ns", "ns") for name in self.KEYS],
            [
                Bar("ours", "<=", 10, None, None, "ns"), Bar("ours", "<=", 0.25, None, "rbpf"),
                Bar("ours, interpreted", "<=", 10, None, None, "ns"),
                Bar("ours, interpreted", "<=", 0.25, None, "rbpf, the same"),
            ],
        )

    def run(self, rounds, progress):
        progress("parser VM: building and running tests/bench/parser")
        done = subprocess.run(
            ["cargo", "run", "--release", "--quiet", "--manifest-path", build.SOURCES / "parser" / "Cargo.toml", "--",
             str(rounds)],
            env={**os.environ, "CARGO_TARGET_DIR": str(build.target_dir())}, capture_output=True, text=True,
        )
        figures = json.loads(done.stdout) if done.returncode == 0 else {}
        for program in self.programs:
            program.results = [{"ns": nanos} for nanos in figures.get(self.KEYS[program.name], [])]
            if not figures:
                program.failure = f"exit {done.returncode}: {done.stderr.strip()[-200:]}"


def main():
    arguments = cli.parser("ci/bench kcm", __doc__, rounds=5)
    arguments.add_argument("--long", action="store_true", help="2 s a measurement instead of 0.3 s")
    arguments.add_argument("--vm", action="store_true", help="only kernel KCM against the library, inside the oracle VM")
    arguments.add_argument("--all", action="store_true", help="this machine and the VM in one table")
    options = arguments.parse_args()

    build.install("gcc", "libc6-dev", "linux-libc-dev", "libzmq3-dev")
    lib, bin_dir = build.library(options.lib), build.compile_programs()
    groups = []
    if not options.vm:
        groups += native_groups(bin_dir, lib, 2000 if options.long else 300)
        groups.append(ParserGroup())
    if options.vm or options.all:
        groups += vm.groups(bin_dir, lib)
    groups = [group for group in groups if options.only in group.title]
    for group in groups:
        group.run(options.rounds, cli.progress)
    cli.finish(groups, options)


if __name__ == "__main__":
    main()
