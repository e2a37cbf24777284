import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def ended(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nfrom launch.entry import main\nsys.exit(main())", "config"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_it_runs_the_command_line():
    done = ended("")
    assert done.returncode == 0
    assert "--learner.lr" in done.stdout


def test_ctrl_c_before_the_commands_are_there_ends_it_without_a_traceback():
    done = ended(
        "class Importing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'launch.report':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Importing())"
    )
    assert (done.returncode, done.stderr) == (130, "primezero: interrupted\n")
