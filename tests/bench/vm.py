"""Kernel KCM against the library on one kernel: the oracle VM, which has both AF_KCM and one CPU.

The CPU is emulated, so its rates mean nothing outside; the ratios are what counts. All programs of a group run inside one
boot, alternated there by a shell script.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import build
from measure import Bar, Group, Program

VM_TIMEOUT_SECONDS = 400
PROGRAM_TIMEOUT_SECONDS = 20


@dataclass
class VmGroup(Group):
    """A group whose programs run inside the VM, all rounds in one boot."""

    bin_dir: Path = None
    lib: Path = None

    def run(self, rounds, progress):
        progress(f"{self.title}: {rounds} rounds in one boot")
        path = self.bin_dir / "vm-rounds.sh"
        path.write_text(script(self, rounds))
        path.chmod(0o755)
        binaries = {program.argv[0] for program in self.programs} | {str(self.bin_dir / "peer"), str(self.lib)}
        env = {"VM_SMP": "1", "VM_TIMEOUT": str(VM_TIMEOUT_SECONDS), "EXTRA_FILES": " ".join(sorted(binaries))}
        done = subprocess.run(["bash", str(runner()), str(path)], env={**os.environ, **env}, capture_output=True, text=True)
        for row in done.stdout.splitlines():
            index, _, out = row.partition("\t")
            program = self.programs[int(index)]
            if out.startswith("!"):
                program.failure = f"exit {out[1:]}"
                program.results.append(None)
            else:
                program.results.append(json.loads(out))
        for program in self.programs:
            if not program.results:
                program.failure = program.failure or f"the VM gave no result (exit {done.returncode})"


def runner():
    """The script that runs a binary in the VM: $KCM_ORACLE_RUN, else the project's own in ci/oracle."""
    named = os.environ.get("KCM_ORACLE_RUN")
    for path in [Path(named)] if named else [build.ROOT / "ci" / "oracle" / "run-in-kcm-kernel.sh"]:
        if path.is_file():
            return path
    sys.exit("no oracle VM: set KCM_ORACLE_RUN to the script that runs a binary in it, and VM_DIR as it asks")


def groups(bin_dir, lib):
    def program(name, binary, *options, **more):
        return Program(name, [str(bin_dir / binary), *map(str, options)], **more)

    preload = {"LD_PRELOAD": str(lib)}
    # Kernel KCM parses at the start of each TCP buffer: -g makes every buffer start with a message.
    small, large = ("-g", 64), ("-s", 16384, "-g", 16384)
    mmsg = ("-m", "recvmmsg")
    return [
        VmGroup(
            "oracle VM, 1 CPU, receive 64 B",
            [
                program("kernel KCM recvmsg", "rx_kcm", *small),
                program("library recvmsg", "rx_kcm", *small, env=preload),
                program("kernel KCM recvmmsg(64)", "rx_kcm", *mmsg, *small),
                program("library recvmmsg(64)", "rx_kcm", *mmsg, *small, env=preload),
                program("in-place framing", "rx_inplace", *small),
            ],
            [
                Bar("library recvmsg", ">=", 5, 10, "kernel KCM recvmsg"),
                Bar("library recvmmsg(64)", ">=", 5, 10, "kernel KCM recvmmsg(64)"),
            ],
            bin_dir=bin_dir, lib=lib,
        ),
        VmGroup(
            "oracle VM, 1 CPU, send 16 KiB",
            [
                program("kernel KCM sendmmsg(64)", "tx_kcm", "-m", "sendmmsg", *large),
                program("library sendmmsg(64)", "tx_kcm", "-m", "sendmmsg", *large, env=preload),
                program("raw write each", "tx_raw", *large),
            ],
            [Bar("library sendmmsg(64)", ">=", 0.95, None, "raw write each")],
            bin_dir=bin_dir, lib=lib,
        ),
    ]


def script(group, rounds):
    """A shell script that runs the programs in alternated rounds; each prints its index, a tab and its JSON."""
    lines = ["#!/bin/sh"]
    for _ in range(rounds):
        for index, program in enumerate(group.programs):
            setting = "".join(f"{name}={value} " for name, value in program.env.items())
            command = f"timeout {PROGRAM_TIMEOUT_SECONDS} {' '.join(program.argv)}"
            lines.append(f'out=$({setting}{command} 2>/tmp/err) || out="!$? $(head -n 1 /tmp/err)"; echo "{index}\t$out"')
    return "\n".join(lines) + "\n"
