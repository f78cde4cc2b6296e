"""One run of one program's scenario: its directory, its processes, and what was observed.

A scenario is run twice, in two labs that differ in one thing: whether the library is preloaded. Everything a scenario
observes must be the same in both, so observations hold what is determined (statuses, checksums, counts, answers) and never
times, addresses or process ids.
"""

import hashlib
import itertools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

READY_SECONDS = 30   # for a server to accept connections
STOP_SECONDS = 20    # for a server to end once asked
RUN_SECONDS = 120    # for a command
HANG_STATUS = "no end"  # of a server that had to be killed
TCP_LISTEN = "0A"    # in /proc/net/tcp
LIBRARY_NAME = "libkcmshim"
LIBRARY_LINE = re.compile(r"^\[?kcmshim\b", re.M | re.I)

# Below the kernel's ephemeral range, so that no outgoing connection takes a port between choice and bind; in steps, since
# some programs use the next few as well.
_PORTS = itertools.cycle(range(20000 + os.getpid() % 5000, 32000, 8))
_PORTS_LOCK = threading.Lock()


class Failure(Exception):
    """The scenario could not go on; says what happened."""


@dataclass
class Result:
    """How a command ended. `status` is the exit status, or -N for signal N."""

    status: object
    out: str
    err: str

    def digest(self):
        return hashlib.sha256(self.out.encode("latin-1", "replace")).hexdigest()[:16]


class Server:
    """A started process that is stopped by its own pid."""

    def __init__(self, lab, process, name):
        self.lab, self.process, self.name = lab, process, name

    @property
    def pid(self):
        return self.process.pid

    def stop(self, sig=signal.SIGTERM):
        """Sends the signal and returns the exit status; a server that does not end is killed and that is the status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.lab.kill_group(self.process)
            return HANG_STATUS

    def tail(self):
        text = (self.lab.dir / f"{self.name}.err").read_text("utf-8", "replace")
        return " | ".join(text.strip().splitlines()[-3:])


class Lab:
    """Where one scenario runs, with (`lib` set) or without the library."""

    def __init__(self, directory, lib):
        self.dir, self.lib = Path(directory), lib
        self.observed, self.loaded = {}, 0
        self._processes, self._count = [], itertools.count()
        self.dir.mkdir(parents=True)
        self.dir.chmod(0o755)

    def observe(self, label, value):
        self.observed[label] = value

    def preload(self, *before, after=()):
        """LD_PRELOAD's value for this lab, the library between the given other ones."""
        return ":".join([*map(str, before), *([str(self.lib)] if self.lib else []), *map(str, after)])

    def env(self, extra=None):
        env = {**os.environ, "HOME": str(self.dir), "LC_ALL": "C.UTF-8", "TMPDIR": str(self.dir)}
        env["LD_PRELOAD"] = self.preload()
        env.update(extra or {})
        if not env["LD_PRELOAD"]:
            del env["LD_PRELOAD"]
        return env

    def port(self):
        with _PORTS_LOCK:
            for port in itertools.islice(_PORTS, 12000):
                with socket.socket() as probe:
                    try:
                        probe.bind(("127.0.0.1", port))
                        return port
                    except OSError:
                        continue
        raise Failure("no free port")

    def write(self, name, content, mode=0o644):
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return path

    def pattern_file(self, name, size):
        """A file of `size` bytes that are the same in every run and compress badly."""
        block = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(2048))
        return self.write(name, (block * (size // len(block) + 1))[:size])

    def _popen(self, argv, stdin, stdout, stderr, env, user, cwd):
        more = {}
        if user and os.geteuid() == 0:
            entry = pwd.getpwnam(user)
            more = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        process = subprocess.Popen(
            [str(part) for part in argv], stdin=stdin, stdout=stdout, stderr=stderr, env=self.env(env),
            cwd=cwd or self.dir, start_new_session=True, **more,
        )
        self._processes.append(process)
        return process

    def run(self, argv, stdin=None, timeout=RUN_SECONDS, env=None, user=None, cwd=None):
        """Runs a command to its end. Output is kept byte for byte (latin-1)."""
        number = next(self._count)
        err_path = self.dir / f"run-{number}-{Path(str(argv[0])).name}.err"
        with open(err_path, "wb") as err:
            process = self._popen(
                argv, subprocess.PIPE if stdin is not None else subprocess.DEVNULL, subprocess.PIPE, err, env, user, cwd
            )
            try:
                out, _ = process.communicate(stdin.encode() if isinstance(stdin, str) else stdin, timeout)
            except subprocess.TimeoutExpired:
                self.kill_group(process)
                process.communicate()
                raise Failure(f"{' '.join(map(str, argv))[:200]}: did not end within {timeout} s") from None
        return Result(process.returncode, out.decode("latin-1"), err_path.read_text("latin-1"))

    def check(self, label, argv, **options):
        """Runs a command and observes its status and output. Returns the result."""
        result = self.run(argv, **options)
        self.observe(f"{label}: status", result.status)
        self.observe(f"{label}: output", result.out if len(result.out) < 2000 else result.digest())
        return result

    def start(self, argv, name, port=None, env=None, user=None, cwd=None, loads_library=True):
        """Starts a server and waits until it accepts on `port`. Sees to it that the library really is in it."""
        with open(self.dir / f"{name}.err", "ab") as log:
            process = self._popen(argv, subprocess.DEVNULL, log, log, env, user, cwd)
        server = Server(self, process, name)
        if port:
            self.wait_port(port, server)
            if self.lib and loads_library:
                self.expect_loaded(process.pid)
        return server

    def wait_port(self, port, server=None):
        """Waits until somebody listens. Looks only: a trial connection would be a client, and iperf3 serves one at a time."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if listening(port):
                return
            if server and server.process.poll() is not None:
                raise Failure(f"{server.name} ended with {server.process.returncode}: {server.tail()}")
            time.sleep(0.02)
        raise Failure(f"nothing listens on port {port}" + (f": {server.tail()}" if server else ""))

    def wait_until(self, what, condition, seconds=READY_SECONDS):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.02)
        raise Failure(f"{what}: not within {seconds} s")

    def expect_loaded(self, pid):
        if LIBRARY_NAME not in Path(f"/proc/{pid}/maps").read_text():
            raise Failure(f"the library is not loaded in {Path(f'/proc/{pid}/comm').read_text().strip()}")
        self.loaded += 1

    def kill_group(self, process):
        """The process and what it started in its session."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def clean_up(self):
        """Ends whatever is left and observes whether the library wrote a line to anybody's standard error."""
        for process in self._processes:
            if process.poll() is None:
                self.kill_group(process)
        lines = [
            match.string[match.start():match.string.find("\n", match.start())]
            for path in sorted(self.dir.glob("*.err"))
            for match in LIBRARY_LINE.finditer(path.read_text("latin-1"))
        ]
        self.observe("lines written by the library", lines[:5])

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def listening(port):
    """Whether an IPv4 socket of this machine listens on `port`."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[1].endswith(f":{port:04X}") and row[3] == TCP_LISTEN for row in rows)


def sha(data):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode("latin-1")).hexdigest()[:16]
