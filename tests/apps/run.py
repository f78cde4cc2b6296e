#!/usr/bin/env python3
"""ci/apps: real programs with and without the library preloaded. Any difference fails. Nothing is routed but in the
programs named stack-…, whose servers are on the stack.

Each program's scenario runs twice at the same time, in directories and on ports of its own, and what it observed is
compared: exit statuses, outputs, checksums, counts.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))

import build  # noqa: E402
import lab as labs  # noqa: E402
import loading, runtimes, servers, stack_both, stack_forking, stack_guests, stack_servers, tools  # noqa: E402,E401,F401  (they register their programs)
from registry import APPS  # noqa: E402

# Both runs share the machine, so only a stall is told from noise: a lost wake-up costs some program's whole timeout.
SLOWER_TIMES, SLOWER_SECONDS = 2, 15

LINE = "{:<16} {:<22} {:<22} {}"


def run_in_lab(app, directory, lib):
    """(what was observed, why the scenario stopped or None, seconds)"""
    start = time.monotonic()
    lab = labs.Lab(directory, lib)
    stopped = None
    try:
        app.scenario(lab)
    except (labs.Failure, OSError, ValueError, IndexError) as error:
        stopped = f"{type(error).__name__}: {error}"
    finally:
        lab.clean_up()
    return lab.observed, stopped, time.monotonic() - start


def differences(without, with_library):
    """Labels whose observations differ or stand on one side only, each with both values."""
    labels = dict.fromkeys((*without, *with_library))
    return [
        (label, without.get(label, "not reached"), with_library.get(label, "not reached"))
        for label in labels
        if without.get(label, "not reached") != with_library.get(label, "not reached")
    ]


def run_app(app, base, lib, show):
    """Runs one program both ways, prints its line, and returns whether both agree."""
    places = {"without": None, "with": lib}
    with ThreadPoolExecutor(2) as pool:
        futures = {
            name: pool.submit(run_in_lab, app, base / app.name / name, path) for name, path in places.items()
        }
        results = {name: future.result() for name, future in futures.items()}
    (bare, bare_stopped, bare_seconds), (hooked, hooked_stopped, hooked_seconds) = results["without"], results["with"]
    found = differences(bare, hooked)
    if bare_stopped or labs.HANG_STATUS in bare.values():
        verdict = "cannot run here"
    elif hooked_stopped or found:
        verdict = "DIFFERS"
    elif hooked_seconds > SLOWER_TIMES * bare_seconds + SLOWER_SECONDS:
        verdict = "STALLS"
    else:
        verdict = "same"
    print(LINE.format(app.name, f"{len(bare)} observed, {bare_seconds:.1f} s",
                      f"{len(hooked)} observed, {hooked_seconds:.1f} s", verdict), flush=True)
    for name, stopped in (("without", bare_stopped), ("with", hooked_stopped)):
        if stopped:
            print(f"    {name}: {stopped}")
    for label, value in bare.items() if show else ():
        print(f"    {label}: {str(value)[:200]}")
    for label, before, after in found:
        print(f"    {label}\n        without: {str(before)[:400]}\n        with:    {str(after)[:400]}")
    sys.stdout.flush()
    return verdict == "same"


def main():
    arguments = argparse.ArgumentParser(prog="ci/apps", description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="the subset of the test run, under three minutes")
    arguments.add_argument("--only", metavar="NAME", action="append", help="this program; may be given again")
    arguments.add_argument("--list", action="store_true", help="print the names")
    arguments.add_argument("--lib", help="a libkcmshim.so to use instead of a release build")
    arguments.add_argument("--show", action="store_true", help="print every observation")
    arguments.add_argument("--keep", action="store_true", help="leave logs and files where they are")
    options = arguments.parse_args()
    # Started in the background this process ignores SIGINT, and so would everything it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    if options.list:
        print("\n".join(f"{app.name}{' (quick)' if app.quick else ''}" for app in APPS))
        return
    chosen = [app for app in APPS if (app.name in options.only if options.only else app.quick or not options.quick)]
    unknown = set(options.only or ()) - {app.name for app in APPS}
    if unknown:
        sys.exit(f"no such program: {', '.join(sorted(unknown))}")
    build.install(*sorted({package for app in chosen for package in app.packages}))
    lib = build.library(options.lib)

    # Every user a server changes to must reach the files and the library.
    base = Path(tempfile.mkdtemp(prefix="kcmshim-apps-"))
    base.chmod(0o755)
    copy = base / "libkcmshim.so"
    shutil.copy(lib, copy)
    copy.chmod(0o755)
    print(LINE.format("program", "without", "with", "verdict"))
    same = [run_app(app, base, copy, options.show) for app in chosen]
    print(f"\n{sum(same)} of {len(same)} programs behave the same")
    if options.keep or not all(same):
        print(f"logs: {base}")
    else:
        shutil.rmtree(base, ignore_errors=True)
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
