"""What processes do to keep to their place on a machine."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import psutil
import pytest

from launch import processes
from launch.processes import free_port, listen_towards, logged
from shared.config_placement import is_loopback
from shared.errors import PlacementError


@pytest.fixture
def interfaces(monkeypatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "another")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_where_ranks_are_on_one_machine_they_listen_on_loopback(interfaces, host):
    listen_towards(host)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=lo"


def test_towards_an_outer_address_of_this_machine_the_interface_that_has_it_is_used(interfaces):
    outer = [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family.name == "AF_INET" and not is_loopback(each.address)
    ]
    if not outer:
        pytest.skip("this machine has no address but loopback")
    name, address = outer[0]
    listen_towards(address)
    assert os.environ["GLOO_SOCKET_IFNAME"] == name
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={name}"


def test_where_no_interface_has_the_address_that_leads_there_it_says_so_and_names_those_that_are(
    interfaces, monkeypatch
):
    """As in a container whose addresses psutil cannot see."""
    monkeypatch.setattr(processes.psutil, "net_if_addrs", dict)
    with pytest.raises(PlacementError, match=r"reaches 127\.0\.0\.1 from its address 127\.0\.0\.1.*placement\.host"):
        listen_towards("127.0.0.1")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "::ffff:0:0:1%none"])
def test_where_no_way_leads_to_the_first_rank_it_says_so(interfaces, host):
    with pytest.raises(PlacementError, match=r"no way leads to .*placement\.host"):
        listen_towards(host)


def test_a_port_is_free_at_the_address_asked_for():
    assert 0 < free_port("127.0.0.2") < 2**16
    with pytest.raises(PlacementError, match=r"listen at 203\.0\.113\.7 .*placement\.host"):
        free_port("203.0.113.7")


def test_a_port_to_listen_at_later_is_none_that_the_kernel_gives_away_meanwhile(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as given:
        passing = given.getsockname()[1]
    assert processes._first_passing_port() <= passing
    ports = [free_port() for _ in range(20)]
    assert max(ports) < processes._first_passing_port()
    assert len(set(ports)) > 1
    with socket.create_server(("127.0.0.1", ports[0])):
        monkeypatch.setattr(processes, "LOWEST_PORT", ports[0])
        monkeypatch.setattr(processes, "_first_passing_port", lambda: ports[0] + 1)
        assert free_port() != ports[0]
    monkeypatch.setattr(processes, "_first_passing_port", lambda: 1024)
    assert free_port() >= 1024


def test_every_thread_and_child_keeps_to_its_cores():
    core = min(os.sched_getaffinity(0))
    code = (
        "import os, subprocess, sys, threading\n"
        "from launch.processes import keep_to\n"
        "go, said = threading.Event(), []\n"
        "other = threading.Thread(target=lambda: (go.wait(), said.append(os.sched_getaffinity(0))))\n"
        "other.start()\n"
        f"keep_to([{core}])\n"
        "go.set(); other.join()\n"
        "ask = [sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))']\n"
        "child = subprocess.check_output(ask, text=True)\n"
        "print(os.sched_getaffinity(0), *said, child.strip())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.split() == [f"{{{core}}}"] * 3


def test_what_a_process_dies_of_is_in_its_log_with_its_traceback(caplog):
    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR), logged():
        1 / 0  # noqa: B018
    [record] = caplog.records
    assert record.exc_info is not None
    assert "test_processes.py" in caplog.text
