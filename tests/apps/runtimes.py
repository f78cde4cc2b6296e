"""Language run-times with network and process libraries of their own."""

import os
import re
import shutil
from pathlib import Path

from lab import Failure
from registry import app

PROGRAMS = Path(__file__).resolve().parent / "programs"


@app("node", quick=True)
def node(lab):
    if not shutil.which("node"):
        raise Failure("no node on this machine")
    lab.check("http, fetch, children, workers, cluster", ["node", PROGRAMS / "node_http.js"])


@app("jvm", "javac:default-jdk-headless")
def jvm(lab):
    lab.check("HttpServer, HttpClient, NIO, children", ["java", "-Xmx256m", PROGRAMS / "HttpCheck.java"])


@app("go", "golang-go", loads_library=False)
def go(lab):
    """cgo off gives a static program, which no preload reaches; with cgo libc is only used to resolve names."""
    # Both labs build into one cache; go locks it.
    for cgo in "01":
        env = {"CGO_ENABLED": cgo, "GOCACHE": str(lab.dir.parent / "cache"), "GOPATH": str(lab.dir / "path"), "GO111MODULE": "off",
               "GOFLAGS": "-p=1"}
        binary = lab.dir / f"httpcheck{cgo}"
        lab.observe(f"build, cgo {cgo}", lab.run(["go", "build", "-o", binary, PROGRAMS / "httpcheck.go"], env=env).status)
        lab.check(f"http server, cgo {cgo}", [binary])


# CPython's own tests; a name with a dot-less module runs whole. The first ones are the quick subset.
CPYTHON_QUICK = ("test_select", "test_epoll", "test_poll", "test_selectors", "test_socketserver")
CPYTHON = CPYTHON_QUICK + (
    "test_socket", "test_ssl", "test_asyncore", "test_subprocess", "test_signal", "test_multiprocessing_fork",
    "test_multiprocessing_spawn", "test_fcntl", "test_ioctl", "test_posix", "test_os", "test_pty", "test_popen",
    "test_httpservers", "test_mailbox", "test_eintr", "test_threadsignals",
)
CPYTHON_ASYNCIO = (
    "test_base_events", "test_selector_events", "test_unix_events", "test_streams", "test_subprocess", "test_sock_lowlevel",
    "test_events", "test_server", "test_sendfile", "test_sslproto", "test_pep492",
)
CPYTHON_SECONDS = 900
# "test_x (test.test_socket.Class.test_x)" and, perhaps after the test's docstring, " ... ok"
CPYTHON_LINE = re.compile(r"^(\w+) \(([\w.]+)\)(?:\n[^\n]*?)? \.\.\. .*?(ok|FAIL|ERROR|skipped '[^\n]*'|expected failure)$", re.M)


def python_outcomes(lab, module, only=()):
    """test -> outcome, from unittest's verbose log, how the run ended, and unittest's own counts of tests run and skipped."""
    # Without a VSOCK device in a VM's kernel these wait for ever, with or without the library.
    argv = ["/usr/bin/python3.11", "-m", "test", "-v", "-u", "network,-urlfetch", "-i", "*VSOCK*", "--tempdir", lab.dir]
    for name in only:
        argv += ["-m", name]
    result = lab.run([*argv, module], timeout=CPYTHON_SECONDS, env={"HOME": "/root" if os.geteuid() == 0 else str(lab.dir)})
    text = result.out + result.err
    outcomes = {f"{match[2]}.{match[1]}" if not match[2].endswith(match[1]) else match[2]: match[3].split(" ")[0]
                for match in CPYTHON_LINE.finditer(text)}
    ended = "ok" if result.status == 0 else f"exit {result.status}"
    return outcomes, ended, re.findall(r"^Ran \d+ tests?|skipped=\d+", text, re.M)


def python_tests(lab, modules):
    for module in modules:
        outcomes, ended, counts = python_outcomes(lab, module)
        bad = sorted(test for test, outcome in outcomes.items() if outcome in ("FAIL", "ERROR"))
        # A few of these tests depend on timing: what fails twice in a row fails.
        if bad:
            again, _, _ = python_outcomes(lab, module, [test.rsplit(".", 1)[1] for test in bad])
            bad = [test for test in bad if again.get(test) in ("FAIL", "ERROR")]
            ended = "ok" if not bad and ended == "exit 2" else ended
        lab.observe(f"{module}: ended", ended)
        lab.observe(f"{module}: counts", counts)
        lab.observe(f"{module}: failed", bad)


@app("cpython-quick", "libpython3.11-testsuite", "python3.11", quick=True)
def cpython_quick(lab):
    python_tests(lab, CPYTHON_QUICK)


@app("cpython", "libpython3.11-testsuite", "python3.11")
def cpython(lab):
    python_tests(lab, [name for name in CPYTHON if name not in CPYTHON_QUICK])


@app("cpython-asyncio", "libpython3.11-testsuite", "python3.11")
def cpython_asyncio(lab):
    python_tests(lab, [f"test.test_asyncio.{name}" for name in CPYTHON_ASYNCIO])
