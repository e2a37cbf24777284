import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("ending", "said"),
    [("pass", "before\nafter\n"), ("raise SystemExit('failed')", "before\nfrom python\nfrom a process\nfailed\n")],
)
def test_noise_is_shown_only_when_the_start_fails(ending, said):
    code = f"""
import subprocess, sys
from launch.quiet_start import quiet_start
print("before", file=sys.stderr)
with quiet_start():
    print("from python", file=sys.stderr)
    subprocess.run(["sh", "-c", "echo from a process >&2"])
    {ending}
print("after", file=sys.stderr)
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.stderr == said
