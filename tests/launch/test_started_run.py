"""A benchmark's own `primezero train`, given up in the middle: a small launcher stands for it."""

import os
import sys
from pathlib import Path

from launch.bench.started_run import ROOT, StartedRun

LAUNCHER = """#!{python}
import os, subprocess, time
from pathlib import Path
from launch.private_folder import private_folder

segment = Path({segment!r})
with private_folder(Path({run_folder!r})) as private:
    mark = os.environ | {{"PRIMEZERO_PROCESS": f"{{private.path}}/sleeper"}}
    subprocess.Popen(["bash", "-c", f"exec 3>{{segment}}; sleep 1000"], env=mark, start_new_session=True)
    while not segment.exists():
        time.sleep(0.05)
    print("up", flush=True)
    time.sleep(1000)
"""


def test_of_a_run_that_is_killed_no_shared_memory_is_left(tmp_path, monkeypatch):
    run_folder, temporary, segment = tmp_path / "run", tmp_path / "t", Path(f"/dev/shm/psm_test{os.getpid()}_killed")
    (run_folder / "logs").mkdir(parents=True)
    temporary.mkdir()
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER.format(python=sys.executable, segment=str(segment), run_folder=str(run_folder)))
    launcher.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(launcher))
    run = StartedRun(run_folder, {}, temporary=temporary)
    try:
        assert run.process.stdout.readline() == "up\n"
        assert segment.exists()
        run.kill()
        assert run.processes() == []
        assert not segment.exists()
    finally:
        run.kill()
        segment.unlink(missing_ok=True)
