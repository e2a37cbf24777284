"""The rollout worker's process: an engine, the stream, and what arrives on it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from typing import Any

from rollout.chat import ChatTokenizer
from rollout.engine import Engine
from rollout.environment import make_environment
from rollout.evaluation import evaluate
from rollout.selfplay import SelfPlay
from shared import messages as msg
from shared.config import Config
from shared.episodes import Ticket
from shared.errors import PrimezeroError, WorkerFailedError
from shared.model_folder import model_fingerprint, tokenizer_fingerprint
from shared.transport import StreamClient

LIVENESS_INTERVAL_S = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the launcher tells a worker: its name, and where the learner's stream is."""

    name: str
    endpoint: str


def run_worker(config: Config, spec: WorkerSpec) -> None:
    """One rollout worker, from start to end; returns when the learner says so."""
    asyncio.run(_run(config, spec))


async def _run(config: Config, spec: WorkerSpec) -> None:
    engine = await Engine.start(
        config.model.path,
        dtype=config.model.dtype,
        seed=config.run.seed,
        rollout=config.rollout,
        max_model_len=config.sampling.max_prompt_tokens + config.sampling.max_response_tokens,
        sync=config.sync,
        transport=config.transport,
    )
    client = StreamClient(spec.endpoint, max_message_bytes=config.stream.max_message_mib * 2**20)
    try:
        await RolloutWorker(config, spec, engine, client).run()
    finally:
        client.close()
        await engine.shutdown()


class RolloutWorker:
    """Greets the learner, works through tickets, answers calls, until told to leave."""

    def __init__(self, config: Config, spec: WorkerSpec, engine: Engine, client: StreamClient) -> None:
        self._config = config
        self._spec = spec
        self._engine = engine
        self._client = client
        self._environment = make_environment(config.environment)
        self._chat = ChatTokenizer.from_folder(config.model.path)
        self._selfplay = SelfPlay(config, engine, self._environment, self._chat)
        self._sequence = 0
        # Cleared from the moment new weights go live until the learner has seen them pass the probe.
        self._weights_proven = asyncio.Event()
        self._weights_proven.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Until the learner says Bye. A failure in any part is reported to the learner, and raised."""
        await self._greet()
        self._start(self._watch_engine())
        receiving = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({receiving, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            receiving.result()
        except Exception as error:
            reason = str(error) if isinstance(error, PrimezeroError) else repr(error)
            await self._client.send(msg.encode(msg.Failed(reason)))
            raise
        finally:
            for task in {receiving, *self._tasks}:
                task.cancel()
            await asyncio.gather(receiving, *self._tasks, return_exceptions=True)

    async def _greet(self) -> None:
        hello = msg.Hello(
            protocol=msg.PROTOCOL_VERSION,
            worker=self._spec.name,
            incarnation=secrets.randbits(63),
            model=model_fingerprint(self._config.model.path),
            tokenizer=tokenizer_fingerprint(self._config.model.path),
            environment=self._environment.fingerprint,
        )
        await self._client.send(msg.encode(hello))
        # The learner may still be loading its model.
        answer = await self._client.receive(self._config.rollout.start_timeout_s)
        if isinstance(answer, msg.Refused):
            raise WorkerFailedError(f"the learner refused this worker: {answer.reason}")
        if not isinstance(answer, msg.Welcome):
            raise WorkerFailedError(f"the learner answered a greeting with {type(answer).__name__}")

    async def _receive(self) -> None:
        while True:
            match await self._client.receive():
                case msg.Work(tickets):
                    for ticket in tickets:
                        self._start(self._work(ticket))
                case msg.Call(id, request):
                    self._start(self._answer(id, request))
                case msg.Ack():
                    pass
                case msg.ProbePassed():
                    self._weights_proven.set()
                case msg.Refused(reason):
                    raise WorkerFailedError(f"the learner refused a message: {reason}")
                case msg.Bye():
                    return
                case message:
                    raise WorkerFailedError(f"the learner may not send {type(message).__name__}")

    def _start(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _watch_engine(self) -> None:
        while True:
            await asyncio.sleep(LIVENESS_INTERVAL_S)
            await self._engine.check_alive()

    async def _work(self, ticket: Ticket) -> None:
        closed = await self._selfplay.play(ticket)
        await self._weights_proven.wait()
        sequence, self._sequence = self._sequence, self._sequence + 1
        await self._client.send(msg.encode_closed(sequence, closed))

    async def _answer(self, id: int, request: msg.Request) -> None:
        try:
            result = await self._do(request)
        except Exception as error:
            log.exception("a call failed: %s", type(request).__name__)
            reason = str(error) if isinstance(error, PrimezeroError) else repr(error)
            result = msg.CallFailed(reason)
        await self._client.send(msg.encode(msg.Reply(id, result)))

    async def _do(self, request: msg.Request) -> msg.Result:
        match request:
            case msg.InitTransfer(info):
                await self._engine.init_weight_transfer(info)
            case msg.StartUpdate():
                await self._engine.start_weight_update()
            case msg.UpdateWeights(info):
                await self._engine.update_weights(info)
            case msg.FinishUpdate(version, probe):
                self._weights_proven.clear()
                timings = await self._engine.finish_weight_update(version)
                scores = await self._engine.score(probe, f"probe-{version}")
                return msg.UpdateFinished(tuple(scores.tolist()), timings.pause_s)
            case msg.Evaluate(version):
                evaluation = await evaluate(
                    self._engine,
                    self._environment,
                    self._chat,
                    version=version,
                    problems_per_task=self._config.environment.evaluation_problems_per_task,
                    max_response_tokens=self._config.sampling.max_response_tokens,
                    # Time in the engine's queue would count against rollout.request_timeout_s.
                    at_once=self._config.rollout.max_sequences,
                )
                return msg.Evaluated(evaluation)
        return msg.Done()
