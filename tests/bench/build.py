"""What every benchmark needs before it can run: Debian packages, the library, the C programs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent

# program -> libraries; each is PROGRAM.c with harness.c.
PROGRAMS = {
    "peer": [], "rx_inplace": [], "rx_header_body": [], "rx_queue": [], "rx_kcm": [], "tx_raw": [], "tx_kcm": [],
    "pingpong": [], "memory_kcm": [], "idle_kcm": [], "hook_cost": ["-ldl"], "start_cost": [],
}
ZMQ_PROGRAMS = {"rx_zmq": ["-lzmq"], "tx_zmq": ["-lzmq"]}


def say(message):
    print(message, file=sys.stderr)


def is_installed(package):
    query = subprocess.run(["dpkg-query", "-W", "-f=${db:Status-Status}", package], capture_output=True, text=True)
    return query.stdout == "installed"


def install(*packages):
    """
    Installs the Debian packages that are missing; a failure ends the run with apt's own message. "command:package" asks
    for the package only where there is no such command.
    """
    missing = [
        package for command, _, package in (name.rpartition(":") for name in packages)
        if not (command and shutil.which(command)) and not is_installed(package)
    ]
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*prefix, "apt-get", *options, "-qq", "update"], check=True, env=env, stdout=sys.stderr)
    subprocess.run(
        [*prefix, "apt-get", *options, "-qq", "-y", "--no-install-recommends", "install", *missing],
        check=True, env=env, stdout=sys.stderr,
    )


def target_dir():
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def library(given=None):
    """The path of libkcmshim.so: the given one, else a release build."""
    if given:
        path = Path(given).resolve()
    else:
        subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "kcmshim"], check=True, cwd=ROOT)
        path = target_dir() / "release" / "libkcmshim.so"
    if not path.is_file():
        sys.exit(f"no library at {path}")
    return path


def compile_programs(with_zmq=True):
    """Compiles the C programs, as they are, with cc -O2. Returns the directory they are in."""
    # Not under /tmp: the VM keeps a file system of its own there.
    out = target_dir() / "bench"
    if str(out).startswith("/tmp/"):
        out = ROOT / "target" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    headers = max(path.stat().st_mtime for path in (*SOURCES.glob("*.h"), SOURCES / "harness.c"))
    for name, libraries in {**PROGRAMS, **(ZMQ_PROGRAMS if with_zmq else {})}.items():
        source, binary = SOURCES / f"{name}.c", out / name
        if binary.exists() and binary.stat().st_mtime > max(headers, source.stat().st_mtime):
            continue
        subprocess.run(
            [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-pthread", "-o", binary, source,
             SOURCES / "harness.c", *libraries],
            check=True,
        )
    return out

