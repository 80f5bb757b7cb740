"""Looks up known vulnerabilities of all installed dependencies.

A dependency that no service knows counts as not audited, never as clean. A known vulnerability always fails.
Dependencies that are not audited are reported, and fail with `--mode required`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field

SERVICES = ("pypi", "osv")
LOOKUP_SECONDS = 300


@dataclass
class Report:
    """The results of the services, by dependency."""

    vulnerable: dict[str, list[str]] = field(default_factory=dict)
    clean: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


def installed() -> list[str]:
    """The dependencies as `name==version`, without this project."""
    options = ["--format=freeze", "--exclude-editable", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "list", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def look_up(dependencies: list[str], service: str, ignored: list[str], report: Report) -> None:
    """Query one service about some dependencies, and add the results to the report."""
    options = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off", "--timeout=15"]
    options += [f"--ignore-vuln={name}" for name in ignored]
    command = [sys.executable, "-m", "pip_audit", f"--vulnerability-service={service}", *options]
    try:
        done = subprocess.run(
            [*command, "--requirement=/dev/stdin"],
            input="\n".join(dependencies),
            capture_output=True,
            text=True,
            timeout=LOOKUP_SECONDS,
            check=False,
        )
        answers = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        report.failures.append(f"{service}: no answer within {LOOKUP_SECONDS} s")
        return
    except ValueError:
        lines = done.stderr.strip().splitlines()
        report.failures.append(f"{service}: {lines[-1] if lines else f'exit status {done.returncode}'}")
        return
    for answer in answers:
        if "skip_reason" in answer:
            continue
        name = f"{answer['name']}=={answer['version']}"
        report.unknown.discard(name)
        if answer["vulns"]:
            report.vulnerable[name] = [vulnerability["id"] for vulnerability in answer["vulns"]]
        else:
            report.clean.add(name)


def audit(dependencies: list[str], ignored: list[str]) -> Report:
    """Query the services in turn, each about the dependencies that the earlier ones did not know."""
    report = Report(unknown={normal(dependency) for dependency in dependencies})
    for service in SERVICES:
        if report.unknown:
            look_up(sorted(report.unknown), service, ignored, report)
    return report


def normal(dependency: str) -> str:
    """`name==version` with the normalized name."""
    name, _, version = dependency.partition("==")
    return f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"


def main() -> int:
    """Audit, print the results, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["optional", "required"], default="optional")
    parser.add_argument("--ignore", action="append", default=[], metavar="ID", help="accept this vulnerability")
    arguments = parser.parse_args()

    report = audit(installed(), arguments.ignore)
    say = sys.stderr.write
    for name, identifiers in sorted(report.vulnerable.items()):
        say(f"VULNERABLE: {name}: {', '.join(identifiers)}\n")
    if report.unknown:
        total = len(report.unknown) + len(report.clean) + len(report.vulnerable)
        say("!" * 100 + "\n")
        say(f"NOT AUDITED: {len(report.unknown)} of {total} dependencies.\n")
        say("             No vulnerability service could be reached that knows them.\n")
        for failure in report.failures:
            say(f"             {failure[:200]}\n")
        say("             Run `make audit AUDIT=required` where one can, before a release.\n")
        say("!" * 100 + "\n")
    else:
        say(f"audited {len(report.clean) + len(report.vulnerable)} dependencies\n")
    return 1 if report.vulnerable or (report.unknown and arguments.mode == "required") else 0


if __name__ == "__main__":
    sys.exit(main())
