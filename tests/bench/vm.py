"""
Kernel KCM against the library on one kernel: a small machine whose Debian kernel has AF_KCM, with one emulated CPU.

Its rates mean nothing outside; the ratios are what counts. All programs of a group run inside one boot, alternated there
by a shell script. The kernel is the one ci/oracle keeps (ORACLE_DIR, KERNEL_SERIES, KERNEL_IMAGE and KCM_MODULE as there);
what differs is that these programs are dynamic, bring libraries along and run as one job.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import build
from measure import Bar, Group, Program

VM_TIMEOUT_SECONDS = 400
PROGRAM_TIMEOUT_SECONDS = 20
MEMORY_MIB = 512

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
ip link set lo up
insmod /kcm.ko
stty -F /dev/ttyS1 raw
{job} </dev/null >/dev/ttyS1 2>&1
poweroff -f
"""


def kernel():
    """The kernel image and kcm.ko, fetched by ci/oracle on first use."""
    store = Path(os.environ.get("ORACLE_DIR", build.ROOT / "target" / "oracle"))
    series = os.environ.get("KERNEL_SERIES", "6.12")
    image = Path(os.environ.get("KERNEL_IMAGE", store / series / "vmlinuz"))
    module = Path(os.environ.get("KCM_MODULE", store / series / "kcm.ko"))
    if not (image.is_file() and module.is_file()):
        # Any static program will do: what counts is that the kernel is there afterwards.
        subprocess.run([build.ROOT / "ci" / "oracle", "run", shutil.which("busybox")], stdout=subprocess.DEVNULL)
    if not (image.is_file() and module.is_file()):
        sys.exit("no kernel with AF_KCM: ci/oracle could not fetch one")
    return image, module


def with_libraries(path):
    """A program or library and every file its dynamic loader opens for it."""
    listing = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return {str(path), *re.findall(r"(/\S+) \(0x", listing)}


def boot(job, files):
    """Runs the script `job` in the machine, `files` at the same paths as here. Returns what it prints."""
    build.install("qemu-system-x86", "busybox-static", "cpio", "gzip")
    image, module = kernel()
    with tempfile.TemporaryDirectory() as work:
        tree, initrd, out = Path(work, "tree"), Path(work, "initrd"), Path(work, "out")
        for name in ("bin", "proc", "sys", "dev", "tmp"):
            (tree / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), tree / "bin" / "busybox")
        shutil.copy(module, tree / "kcm.ko")
        for file in set().union(*map(with_libraries, files)):
            to = tree / file.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
        for name, text in (("job", job), ("init", INIT.format(job="/job"))):
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        subprocess.run(f"find . | cpio -o -H newc --quiet | gzip -1 > {initrd}", shell=True, check=True, cwd=tree)
        done = subprocess.run(
            ["timeout", str(VM_TIMEOUT_SECONDS), "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1",
             "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot", "-display", "none", "-kernel", image, "-initrd", initrd,
             "-append", "console=ttyS0 quiet panic=-1 mitigations=off", "-serial", f"file:{work}/console",
             "-serial", f"file:{out}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )
        if done.returncode != 0:
            print(done.stderr, Path(work, "console").read_text("latin-1")[-2000:], file=sys.stderr)
        return out.read_text("latin-1").replace("\r", "") if out.exists() else ""


@dataclass
class VmGroup(Group):
    """A group whose programs run inside the VM, all rounds in one boot."""

    lib: Path = None

    def run(self, rounds, progress):
        progress(f"{self.title}: {rounds} rounds in one boot")
        binaries = {program.argv[0] for program in self.programs}
        peer = Path(self.programs[0].argv[0]).with_name("peer")
        for row in boot(script(self, rounds), [*binaries, peer, self.lib]).splitlines():
            index, _, out = row.partition("\t")
            if not index.isdigit():
                continue
            program = self.programs[int(index)]
            if out.startswith("!"):
                program.failure = f"exit {out[1:]}"
                program.results.append(None)
            else:
                program.results.append(json.loads(out))
        for program in self.programs:
            if len(program.results) < rounds:
                program.failure = program.failure or f"the VM gave {len(program.results)} of {rounds} results"


def groups(bin_dir, lib):
    def program(name, binary, *options, **more):
        return Program(name, [str(bin_dir / binary), *map(str, options)], **more)

    preload = {"LD_PRELOAD": str(lib)}
    # Kernel KCM parses at the start of each TCP buffer: -g makes every buffer received start with a message.
    small, large = ("-g", 64), ("-s", 16384)
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
            lib=lib,
        ),
        VmGroup(
            "oracle VM, 1 CPU, send 16 KiB",
            [
                program("kernel KCM sendmmsg(64)", "tx_kcm", "-m", "sendmmsg", *large),
                program("library sendmmsg(64)", "tx_kcm", "-m", "sendmmsg", *large, env=preload),
                program("raw write each", "tx_raw", *large),
            ],
            lib=lib,
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
