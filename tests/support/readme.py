"""The commands that the README shows."""

import re
import shlex

from tests.support.hosts import ROOT


def commands(start: str) -> list[list[str]]:
    """The words of each command in the README's blocks of shell that starts as given, lines that are continued joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith(start)]
    assert found, f"the README shows no command that starts with '{start}'"
    return found
