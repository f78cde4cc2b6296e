"""Runs benchmark programs in alternated rounds and prints one table of rates, ratios and bars.

A ratio is only worth something inside one run on one machine: every group of programs is run A, B, C, A, B, C, ...
and a ratio is the median of the ratios of the rounds, so that drift and other load hit both sides alike.
"""

import json
import os
import signal
import statistics
import subprocess
from dataclasses import dataclass, field

RUN_TIMEOUT_SECONDS = 60


@dataclass
class Program:
    """
    One line of the table: a command that prints one JSON object (or a function that returns one), and which of its fields
    is meant. A field `cpu_ns`, the processor time an operation took, gets a column of its own.
    """

    name: str
    argv: list
    value: str = "rate"
    unit: str = "/s"
    env: dict = field(default_factory=dict)
    results: list = field(default_factory=list)  # one a round; None where the program failed
    failure: str = ""


@dataclass
class Bar:
    """
    What a program must reach: `program`'s value over `against`'s (or alone), compared by `relation` with `bar`. A ratio of
    rates is also given by processor time a message, which does not decide but is steady where other load is not.
    """

    program: str
    relation: str  # ">=" or "<="
    bar: float
    goal: float | None = None
    against: str | None = None
    unit: str = "x"
    value: str | None = None  # another field than the program's own


@dataclass
class Group:
    """Programs that alternate, under one heading, and the bars over them."""

    title: str
    programs: list
    bars: list = field(default_factory=list)
    rounds: int | None = None  # where the usual number does not fit

    def run(self, rounds, progress):
        """Fills in the programs' results, `rounds` alternated ones."""
        for number in range(self.rounds or rounds):
            for program in self.programs:
                progress(f"{self.title}: round {number + 1}, {program.name}")
                program.results.append(run_once(program))


def run_once(program):
    """Runs the program (or the function in its place) to its end and returns its JSON, or None and the reason in program.failure."""
    if callable(program.argv):
        return program.argv()
    process = subprocess.Popen(
        program.argv,
        env={**os.environ, **program.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=RUN_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it and its peer
        process.communicate()
        program.failure = f"no end within {RUN_TIMEOUT_SECONDS} s"
        return None
    if process.returncode != 0:
        program.failure = f"exit {process.returncode}: {(err.strip().splitlines() or ['no message'])[0]}"
        return None
    return json.loads(out)


def values(program, name=None):
    """The value of each round that succeeded, in the order of the rounds; None where one failed."""
    key = name or program.value
    return [None if result is None or key not in result else float(result[key]) for result in program.results]


def has(program, name):
    return any(result and name in result for result in program.results)


def spread(numbers):
    """min, median, max of the numbers that are there."""
    there = [number for number in numbers if number is not None]
    if not there:
        return None
    return min(there), statistics.median(there), max(there)


def judge(group, bar):
    """The bar's figure and verdict: a dict of ratio or value, bar, goal and `verdict` met | missed | failed."""
    programs = {program.name: program for program in group.programs}
    mine = values(programs[bar.program], bar.value)
    if bar.against is None:
        figures = mine
    else:
        theirs = values(programs[bar.against], bar.value)
        figures = [a / b if a is not None and b else None for a, b in zip(mine, theirs)]
    of_rounds = spread(figures)
    failed = any(
        programs[name].failure for name in (bar.program, bar.against) if name is not None
    )
    if of_rounds is None or failed:
        verdict, figure = "failed", of_rounds[1] if of_rounds else None
    else:
        figure = of_rounds[1]
        reached = figure >= bar.bar if bar.relation == ">=" else figure <= bar.bar
        verdict = "met" if reached else "missed"
        if reached and bar.goal is not None:
            beyond = figure >= bar.goal if bar.relation == ">=" else figure <= bar.goal
            verdict = "met, goal" if beyond else "met"
    by_cpu = None
    if bar.against and (bar.value or programs[bar.program].value) == "rate":
        mine, theirs = values(programs[bar.program], "cpu_ns"), values(programs[bar.against], "cpu_ns")
        by_cpu = spread([b / a if a and b else None for a, b in zip(mine, theirs)])
    return {
        "work": group.title, "program": bar.program, "value": bar.value or programs[bar.program].value,
        "against": bar.against, "figure": figure, "spread": of_rounds, "by_cpu": by_cpu, "relation": bar.relation,
        "bar": bar.bar, "goal": bar.goal, "unit": bar.unit, "verdict": verdict,
    }


def human(number, unit):
    if number is None:
        return "-"
    if unit == "/s":
        for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if number >= scale:
                return f"{number / scale:.3g} {letter}/s"
        return f"{number:.3g} /s"
    if unit == "B":
        for scale, letter in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if abs(number) >= scale:
                return f"{number / scale:.3g} {letter}"
        return f"{number:.0f} B"
    if unit == "ns":
        for scale, letter in ((1e6, "ms"), (1e3, "us")):
            if number >= 10 * scale:
                return f"{number / scale:.4g} {letter}"
        return f"{number:.0f} ns" if number >= 100 else f"{number:.3g} ns"
    if unit == "x":
        return f"{number:.1f} x" if number >= 10 else f"{number:.3g} x" if number >= 2 else f"{number:.3f} x"
    return f"{number:.4g} {unit}".rstrip()


COLUMNS = (
    ("work", 32), ("min", 10), ("median", 10), ("max", 10), ("CPU", 9), ("against", 27), ("result", 10), ("by CPU", 8), ("bar", 11),
    ("goal", 9), ("verdict", 9),
)


def line(*cells):
    return "  ".join(f"{cell:<{width}}" for cell, (_, width) in zip(cells, COLUMNS)).rstrip()


def print_table(groups, out):
    """The whole table: programs with min, median, max; beside or under each the bars it has to reach."""
    print(line(*(name for name, _ in COLUMNS)), file=out)
    for group in groups:
        print(f"\n{group.title}", file=out)
        for program in group.programs:
            rows = []
            for bar in (bar for bar in group.bars if bar.program == program.name):
                verdict = judge(group, bar)
                sign = "≥" if bar.relation == ">=" else "≤"
                what = bar.against or ""
                if bar.value and bar.value != program.value:
                    what = f"{what} ({bar.value})" if what else bar.value
                rows.append((
                    what, human(verdict["figure"], bar.unit),
                    human(verdict["by_cpu"][1], "x") if verdict["by_cpu"] else "", f"{sign} {human(bar.bar, bar.unit)}",
                    human(bar.goal, bar.unit) if bar.goal is not None else "", verdict["verdict"],
                ))
            measured = spread(values(program))
            left = [f"  {program.name}"] + [
                human(number, program.unit) for number in measured or (None, None, None)
            ] + [human(spread(values(program, "cpu_ns"))[1], "ns") if measured and has(program, "cpu_ns") else ""]
            for row in rows or [()]:
                print(line(*left, *row), file=out)
                left = [""] * len(left)
            if program.failure:
                print(f"    failed: {program.failure}", file=out)


def as_json(groups):
    return {
        "groups": [
            {
                "title": group.title,
                "programs": [
                    {
                        "name": program.name, "unit": program.unit, "value": program.value,
                        "min_median_max": spread(values(program)), "rounds": program.results,
                        "failure": program.failure or None,
                    }
                    for program in group.programs
                ],
                "bars": [judge(group, bar) for bar in group.bars],
            }
            for group in groups
        ]
    }


def summary(groups):
    """(met, missed, failed) over all bars."""
    verdicts = [judge(group, bar)["verdict"] for group in groups for bar in group.bars]
    return (
        sum(verdict.startswith("met") for verdict in verdicts),
        verdicts.count("missed"),
        verdicts.count("failed"),
    )
