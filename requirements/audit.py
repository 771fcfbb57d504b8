"""Ask whether a pinned package has a known vulnerability: make audit

It prints a line for each, and exits with 1 if there is one. Where no vulnerabilities can be looked
up, such as without a network or from a mirror of the index, it says so and exits with 0.
"""

import json
import subprocess
import sys
from pathlib import Path

LIMIT_S = 60
PINS = Path(__file__).with_name("constraints.txt")
OPTIONS = ["--no-deps", "--disable-pip", "--format=json", "--progress-spinner=off", "--timeout=5"]


def ask(pins: Path) -> str:
    """Return the report of pip-audit, as JSON; empty if it could not be had."""
    command = [str(Path(sys.executable).with_name("uvx")), "--quiet", "pip-audit"]
    try:
        done = subprocess.run(
            [*command, f"--requirement={pins}", *OPTIONS],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def describe(report: str) -> tuple[list[str], int]:
    """Return a line for each vulnerability, and how many packages were looked up."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return [], 0
    known = [package for package in packages if "skip_reason" not in package]
    lines = [
        f"{package['name']} {package['version']}: {entry['id']};"
        f" {'fixed in ' + ', '.join(entry['fix_versions']) if entry['fix_versions'] else 'open'}"
        for package in known
        for entry in package["vulns"]
    ]
    return lines, len(known)


def main() -> None:
    """Print what is known of the pinned packages."""
    lines, known = describe(ask(PINS))
    if not known:
        print("audit: skipped, no list of vulnerabilities can be reached")
        return
    print(*lines, f"audit: {len(lines)} vulnerabilities in {known} pinned packages", sep="\n")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main()
