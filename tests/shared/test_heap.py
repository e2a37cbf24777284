import os
import resource
import subprocess
import sys

PROGRAM = """
import resource, sys
from shared.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def batch():
    return [bytes(bytearray(60_000)) for _ in range(200)]
batch()
before = faults()
batch()
print(faults() - before)
"""


def test_the_next_batch_uses_the_memory_of_the_last():
    # An engine that this process has started has set malloc's limits for its children.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    pages = 200 * 60_000 / resource.getpagesize()

    def faults(how: str) -> int:
        run = subprocess.run([sys.executable, "-c", PROGRAM, how], env=env, check=True, capture_output=True, text=True)
        return int(run.stdout)

    assert faults("given back") > 0.5 * pages
    assert faults("kept") < 0.1 * pages
