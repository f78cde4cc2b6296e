"""The list of programs. A scenario is a function from a Lab to observations, with what it needs from Debian."""

from dataclasses import dataclass


@dataclass
class App:
    name: str
    scenario: object
    packages: tuple     # Debian packages; "command:package" where any command of that name will do
    quick: bool         # in the subset that the test run takes
    loads_library: bool # False: nothing in the scenario may load it (static, setuid)


APPS = []


def app(name, *packages, quick=False, loads_library=True):
    def add(scenario):
        APPS.append(App(name, scenario, packages, quick, loads_library))
        return scenario
    return add
