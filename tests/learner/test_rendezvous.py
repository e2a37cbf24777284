"""Where the learner's ranks can be reached while they find each other and afterwards."""

import os
import subprocess
import sys

import pytest

from launch.processes import free_port

pytestmark = pytest.mark.integration

SCRIPT = """
import psutil, torch.distributed
from learner.rendezvous import AT_MASTER_ADDRESS
torch.distributed.init_process_group("gloo", init_method=AT_MASTER_ADDRESS)
torch.distributed.barrier()
listening = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}
print(torch.distributed.get_rank(), *listening)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def listening(address: str) -> list[set[str]]:
    """Where each of two ranks listens that meet at this address, and speak over the loopback interface."""
    env = os.environ | {"MASTER_ADDR": address, "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=env | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=250)[0].split() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [number for number, *_ in said] == ["0", "1"]
    return [set(where) for _, *where in said]


def test_ranks_listen_on_loopback_alone():
    assert listening("127.0.0.1") == [{"127.0.0.1"}, {"127.0.0.1"}]


def test_ranks_meet_at_the_address_that_is_configured_and_at_no_other():
    assert listening("127.0.0.2") == [{"127.0.0.2", "127.0.0.1"}, {"127.0.0.1"}]
