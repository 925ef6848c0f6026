"""Print the lowest version that pyproject.toml admits of each dependency, one `name==version` a line.

python .ci/lowest.py test    # of the core and of the extra `test`, with the extras that it names
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_LINE = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w, -]+)\])?(?:>=(?P<version>[\w.]+))?")


def lowest(project: dict, extras: list[str]) -> dict[str, str]:
    """Return name -> version, of the core and of extras; of two bounds of one name, the higher one.

    Raises: ValueError for a requirement that has no lower bound, or anything besides one.
    """
    found: dict[str, str] = {}
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    for line in lines:
        match = _LINE.fullmatch(line.replace(" ", ""))
        if match is None:
            raise ValueError(f"{line!r} in pyproject.toml: expected NAME>=VERSION, or this project's extras")
        if match["name"] == project["name"]:
            of_extras = lowest(project, match["extras"].split(","))
        elif match["version"] is None:
            raise ValueError(f"{line!r} in pyproject.toml: expected a lower bound, NAME>=VERSION")
        else:
            of_extras = {match["name"]: match["version"]}
        for name, version in of_extras.items():
            found[name] = max(found.get(name, version), version, key=_parts)
    return found


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    for name, version in sorted(lowest(tomllib.loads(text)["project"], sys.argv[1:]).items()):
        print(f"{name}=={version}")
