import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("while_it_starts", "later", "said"),
    [
        ("pass", "pass", "before\nanswers\n"),
        ("raise ValueError('failed')", "pass", "before\nfrom python\nfrom a process\nValueError: failed\n"),
        ("pass", "raise ValueError('died')", "before\nanswers\nfrom python\nfrom a process\nValueError: died\n"),
        ("raise KeyboardInterrupt", "pass", "before\nKeyboardInterrupt\n"),
        ("pass", "raise BrokenPipeError", "before\nanswers\nBrokenPipeError\n"),
    ],
)
def test_noise_is_shown_only_when_an_engine_fails(while_it_starts, later, said):
    code = f"""
import subprocess, sys
from launch.engine_noise import engine_noise
sys.tracebacklimit = 0
print("before", file=sys.stderr)
with engine_noise() as noise:
    with noise.kept():
        print("from python", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a process >&2"])
        {while_it_starts}
    print("answers", file=sys.stderr)
    {later}
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.stderr == said
