"""`primezero bench wire`: what bringing closed tickets from a worker to the learner costs, against raw ZeroMQ."""

from __future__ import annotations

import contextlib
import socket
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.bench.benchmark import Benchmark, faultless
from launch.bench.raw_zmq import RawSender
from launch.bench.report import Report, Result, machine
from launch.bench.rounds import in_turn, median_ratio
from launch.bench.settings import setting
from launch.bench.wire_ends import VOCABULARY, Sizes, Streamed, StreamedRun
from launch.bench.wire_parts import frames_of, in_messages, parts
from shared.errors import ConfigError
from shared.transport import make_keys

TRANSPORTS = ("ipc", "tcp")
TINY = {"attempts": 8, "prompt_tokens": 64, "response_tokens": 12}
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class WireSettings:
    """Sizes of the benchmark, which are its arguments; each explained for `--help`."""

    tickets: int = setting(384, "closed tickets in a round")
    attempts: int = setting(8, "of each ticket")
    prompt_tokens: int = setting(512, "most of a prompt; lengths are drawn from half of it up")
    response_tokens: int = setting(1024, "most of a response; lengths are drawn from half of it up")
    tiny_tickets: int = setting(1536, "tickets in a round of those of the CPU demo's sizes; 0: none")
    transports: tuple[str, ...] = setting(TRANSPORTS, "ipc; tcp, with CURVE; the first is the headline")
    port: int = setting(5799, "of tcp, on loopback, and the one after it")
    rounds: int = setting(5, "rounds measured, after one that warms up")
    batch_kib: int = setting(1024, "stream.batch_kib")
    batch_ms: float = setting(2.0, "stream.batch_ms")


@dataclass(frozen=True, slots=True)
class _Measured:
    """rounds, raw_s, unbatched_s: of the stream; seconds of raw ZeroMQ with the same messages, and with one a ticket"""

    tickets: int
    rounds: Sequence[Streamed]
    raw_s: Sequence[float]
    unbatched_s: Sequence[float]
    raw_messages: int
    bytes: int


def bench_wire(settings: WireSettings, say: Say = lambda _: None) -> Report:
    """Run the benchmark; `say` is told what is being done. Raises ConfigError for impossible settings."""
    _check(settings)
    real = Sizes(
        tickets=settings.tickets,
        attempts=settings.attempts,
        prompt_tokens=settings.prompt_tokens,
        response_tokens=settings.response_tokens,
        batch_kib=settings.batch_kib,
        batch_ms=settings.batch_ms,
    )
    results: list[Result] = []
    # Beside where runs are, not in /tmp, which may be memory: the journal is written to a disk.
    with tempfile.TemporaryDirectory(prefix=".bench-wire-", dir=Path.cwd()) as name:
        folder = Path(name)
        for transport in settings.transports:
            prefix = "" if transport == settings.transports[0] else f"{transport}."
            results += _named(prefix, _stream_results(_measure(settings, real, transport, folder, say)))
        results += _part_results("", real, folder, say)
        if settings.tiny_tickets:
            tiny = replace(real, tickets=settings.tiny_tickets, **TINY)
            results += _named("tiny.", _stream_results(_measure(settings, tiny, settings.transports[0], folder, say)))
            results += _part_results("tiny.", tiny, folder, say)
    return Report(
        benchmark="wire",
        machine=machine(),
        model={"name": "none: random tokens", "vocabulary": VOCABULARY},
        settings=asdict(settings) | {"transports": ",".join(settings.transports)},
        results=tuple(results),
    )


def _check(settings: WireSettings) -> None:
    if not settings.transports or (unknown := set(settings.transports) - set(TRANSPORTS)):
        wrong = ",".join(sorted(unknown)) if settings.transports else "is empty"
        raise ConfigError(f"--transports {wrong}: there is {', '.join(TRANSPORTS)}")
    for key in ("tickets", "attempts", "prompt_tokens", "response_tokens", "rounds", "batch_kib"):
        if getattr(settings, key) < 1:
            raise ConfigError(f"--{key.replace('_', '-')} must be at least 1")
    for port in (settings.port, settings.port + 1) if "tcp" in settings.transports else ():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--port: nothing can listen at port {port} of loopback ({error}); name another"
            ) from error


def _measure(settings: WireSettings, sizes: Sizes, transport: str, folder: Path, say: Say) -> _Measured:
    say(f"{transport}: {sizes.tickets} tickets of {sizes.attempts} attempts of up to {sizes.response_tokens} tokens")
    frames = frames_of(sizes)
    batched = in_messages(frames, sizes.batch_kib * 2**10)
    rounds: list[Streamed] = []
    with contextlib.ExitStack() as closing, tempfile.TemporaryDirectory(prefix="pz-wire-") as sockets:

        def endpoint(number: int) -> str:
            if transport == "tcp":
                return f"tcp://127.0.0.1:{settings.port + number}"
            return f"ipc://{sockets}/{number}"

        keys = make_keys() if transport == "tcp" else None
        run = StreamedRun(endpoint(0), sizes, folder / f"run {len(list(folder.iterdir()))}", keys)
        closing.callback(run.close)
        raw = RawSender(endpoint(1), [batched, [[frame] for frame in frames]], keys)
        closing.callback(raw.close)

        def stream() -> float:
            rounds.append(run.round())
            return rounds[-1].seconds

        arms = {"stream": stream, "raw": lambda: raw.round(0), "raw, one a ticket": lambda: raw.round(1)}
        found = in_turn(arms, settings.rounds, say)
    size = sum(map(len, frames))
    _, *measured = rounds
    return _Measured(len(frames), measured, found["raw"], found["raw, one a ticket"], len(batched), size)


def _stream_results(measured: _Measured) -> list[Result]:
    tickets, rounds = measured.tickets, measured.rounds

    def median(of: Callable[[Streamed], float]) -> float:
        return statistics.median(map(of, rounds))

    def per_ticket(of: Callable[[Streamed], float]) -> float:
        return 1e6 * median(of) / tickets

    ours = [each.seconds for each in rounds]
    fastest = [min(pair) for pair in zip(measured.raw_s, measured.unbatched_s, strict=True)]
    ratios = [raw / stream for raw, stream in zip(fastest, ours, strict=True)]
    seconds, raw_s = statistics.median(ours), statistics.median(fastest)
    raw = "raw ZeroMQ"
    return [
        Result("vs_raw_zmq", statistics.median(ratios), "of its rate"),
        Result("vs_raw_zmq_min", min(ratios), "of its rate"),
        Result("vs_raw_zmq_max", max(ratios), "of its rate"),
        Result("vs_raw_zmq_same_messages", median_ratio(measured.raw_s, ours), "of its rate"),
        Result("vs_raw_zmq_message_per_ticket", median_ratio(measured.unbatched_s, ours), "of its rate"),
        Result("tickets_per_s", tickets / seconds, "tickets/s", tickets / raw_s, raw),
        Result("mb_per_s", measured.bytes / seconds / 1e6, "MB/s", measured.bytes / raw_s / 1e6, raw),
        Result("ticket_bytes", median(lambda r: r.bytes) / tickets, "bytes", measured.bytes / tickets, raw),
        Result("messages", median(lambda r: r.messages), "messages", measured.raw_messages, raw),
        Result("worker_cpu", per_ticket(lambda r: r.worker_cpu_s), "us a ticket"),
        Result("learner_cpu", per_ticket(lambda r: r.learner_cpu_s), "us a ticket"),
        Result("learner_stream_thread", per_ticket(lambda r: r.stream_cpu_s), "us a ticket"),
    ]


def _part_results(prefix: str, sizes: Sizes, folder: Path, say: Say) -> list[Result]:
    say("each part by itself")
    return [Result(f"{prefix}{part}", 1e6 * cost, "us a ticket") for part, cost in parts(sizes, folder).items()]


def _named(prefix: str, results: Sequence[Result]) -> list[Result]:
    return [replace(result, name=prefix + result.name) for result in results]


BENCHMARK = Benchmark(
    "wire",
    "the stream of closed tickets",
    WireSettings,
    faultless(bench_wire),
    description="""\
What the stream costs: closed tickets from a worker's process to the learner's, with encoding,
checks, journal and acknowledgement as in a run, against raw ZeroMQ moving the same bytes.
""",
    examples="""\
examples:
  primezero bench wire --json wire.json
  primezero bench wire --transports tcp --response-tokens 4096
""",
)
