"""The launcher's HTTP endpoint: /metrics as Prometheus reads it, /healthz for whoever watches the run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from launch.records import Record, Records, flat
from launch.supervisor import Restart
from launch.vitals import Vitals
from shared.config_records import MonitorConfig
from shared.errors import PlacementError

PREFIX = "primezero"
# What stands in a path before the name of a number, by its first part.
_LABELS = {"tasks": ("task",), "held_out": ("task",), "cells": ("role", "task")}
# Beside what is held out of each task stands the mean of the tasks, held_out_accuracy.
_NAMES = {"held_out": "held_out_tasks"}
CLIENT_S = 10.0


class Monitor(Collector):
    """Serves the last step's and evaluation's numbers, and whether every process of the run is well.

    Use as a context manager. Raises PlacementError where it cannot listen.
    """

    def __init__(self, config: MonitorConfig, vitals: Vitals) -> None:
        assert config.port is not None
        self._config = config
        self._vitals = vitals
        self._step: dict[str, float] = {}
        self._evaluation: dict[str, float] = {}
        self._restarts = dict.fromkeys(("learner", *(name for name in vitals.signs if "learner" not in name)), 0)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            timeout = CLIENT_S

            def do_GET(self) -> None:
                status, kind, body = monitor.answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Not on the run's screen."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is no matter of the run's."""

        if ":" in config.host:
            Server.address_family = AF_INET6
        try:
            self._server = Server((config.host, config.port), Handler)
        except OSError as error:
            raise PlacementError(
                f"nothing can listen at {config.host}:{config.port} ({error.strerror or error}): choose another "
                "monitor.port, or an address of this machine as monitor.host"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def catch_up(self, records: Records) -> None:
        """Begin with the last numbers that were recorded before this start."""
        for record in records.past_steps[-1:]:
            self.step(record)
        for record in records.past_evaluations[-1:]:
            self.evaluation(record)

    def step(self, record: Record) -> None:
        self._step = flat(record)

    def evaluation(self, record: Record) -> None:
        self._evaluation = flat(record)

    def restart(self, restart: Restart) -> None:
        self._restarts[restart.unit] = self._restarts.get(restart.unit, 0) + 1

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        if path == "/healthz":
            complaints = self._vitals.complaints(self._config.quiet_s)
            return (503 if complaints else 200), "text/plain", ("\n".join(complaints or ["ok"]) + "\n").encode()
        return 404, "text/plain", b"/metrics or /healthz\n"

    def collect(self) -> Iterator[Metric]:
        """The numbers, as Prometheus' client asks for them."""
        yield from _families(self._step, PREFIX)
        yield from _families(self._evaluation, f"{PREFIX}_evaluation")
        up = GaugeMetricFamily(f"{PREFIX}_process_up", "1 while the process runs", labels=["process"])
        quiet = GaugeMetricFamily(
            f"{PREFIX}_process_quiet_seconds", "since the process's last sign of life", labels=["process"]
        )
        memory = GaugeMetricFamily(
            f"{PREFIX}_process_resident_bytes", "of the process and all that it has started", labels=["process"]
        )
        for name, resident in self._vitals.resident_bytes.items():
            memory.add_metric([name], resident)
        for name, sign in self._vitals.signs.items():
            up.add_metric([name], float(sign.runs))
            quiet.add_metric([name], self._vitals.quiet_s(name))
        restarts = GaugeMetricFamily(f"{PREFIX}_restarts", "times started again since the launch", labels=["process"])
        for name, count in self._restarts.items():
            restarts.add_metric([name], count)
        yield from (up, quiet, memory, restarts)


def _families(numbers: dict[str, float], prefix: str) -> Iterator[GaugeMetricFamily]:
    families: dict[str, GaugeMetricFamily] = {}
    for path, value in numbers.items():
        first, *rest = path.split("/")
        labels = _LABELS.get(first, ()) if len(rest) > len(_LABELS.get(first, ())) else ()
        values, parts = rest[: len(labels)], rest[len(labels) :]
        name = "_".join([prefix, _NAMES.get(first, first), *parts])
        family = families.setdefault(name, GaugeMetricFamily(name, f"{first} {' '.join(parts)}", labels=labels))
        family.add_metric(values, value)
    yield from families.values()
