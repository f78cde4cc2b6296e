"""The command line and the output that both benchmark tables share."""

import argparse
import json
import os
import sys

from measure import as_json, print_table, summary


def parser(prog, description, rounds):
    arguments = argparse.ArgumentParser(prog=prog, description=description)
    arguments.add_argument("--rounds", type=int, default=rounds, help=f"alternated rounds a group ({rounds})")
    arguments.add_argument("--lib", help="a libkcmshim.so to use instead of a release build")
    arguments.add_argument("--only", metavar="TEXT", default="", help="only groups whose title contains TEXT")
    arguments.add_argument("--json", action="store_true", help="the same as JSON on standard output")
    arguments.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    return arguments


def progress(message):
    """What is being measured, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


def finish(groups, options):
    """Prints the table or the JSON and ends: 1 when a program failed, or a bar is missed under --check."""
    progress("")
    met, missed, failed = summary(groups)
    if options.json:
        json.dump({**as_json(groups), "cpus": os.cpu_count(), "rounds": options.rounds}, sys.stdout, indent=1)
        print()
    else:
        print_table(groups, sys.stdout)
        print(f"\n{met} bars met, {missed} missed, {failed} failed; {options.rounds} alternated rounds, "
              f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    sys.exit(1 if failed or (options.check and missed) else 0)
