"""Weight sync over the stream: who fails leaves, who comes is brought up, what is wrong for all ends the run."""

import threading

import numpy as np
import pytest
from fake_worker import Clock, FourCalls, ObedientWorker, make_pool
from waiting import until

from learner.weight_client import StreamWeightSyncClient
from learner.weight_sender import SendStats
from learner.weight_sync import WeightSync
from learner.worker_pool import RECONNECT_S
from shared import messages as msg
from shared.errors import StreamTimeoutError, WeightSyncError, WorkerFailedError
from shared.weight_wire import LiveWeights

OURS = np.array([-1.0, -2.0], dtype=np.float32)
TIMEOUT_S = 50
CALLS = ["InitTransfer", "StartUpdate", "UpdateWeights", "FinishUpdate"]


class Setup:
    def __init__(self, endpoint: str, seeds, *, point_to_point: bool = True) -> None:
        self.endpoint = endpoint
        self.clock = Clock()
        self.pool = make_pool(endpoint, seeds, clock=self.clock)
        client = StreamWeightSyncClient(self.pool, [1, 2, 3], TIMEOUT_S)
        self.sender = FourCalls(client, point_to_point=point_to_point)
        self.sync = WeightSync(self.pool, client, self.sender, lambda: OURS, tolerance=1e-4, wait_s=TIMEOUT_S)
        self.workers: list[ObedientWorker] = []

    def join(self, **behaviour) -> ObedientWorker:
        name = f"rollout-{len(self.workers)}"
        self.workers.append(ObedientWorker(self.endpoint, name, **behaviour))
        until(lambda: name in {member.name for member in self.pool.members()})
        return self.workers[-1]

    def notice_the_death_of(self, worker: ObedientWorker) -> None:
        """As soon as it is dead, not after `stream.worker_timeout_s`: something is sent to it, and time passes."""
        (known,) = [known for known in self.pool._workers.values() if known.member.name == worker.name]

        def send() -> None:
            worker.join()
            until(lambda: self.pool._server.send(known.peer, msg.Ack((0,))) or known.gone is not None)
            self.clock.pass_by(RECONNECT_S, self.pool)
            self.pool._sweep()

        threading.Thread(target=send, daemon=True).start()

    def wait_in_vain_for(self, worker: ObedientWorker) -> None:
        """The time for a call is over when all others have answered."""

        def answered() -> bool:
            others = len(self.workers) - 1
            asked = worker.said[-1:] == [worker.silent_at]
            return asked and any(len(call.results) == others for call in list(self.pool._calls._calls.values()))

        def pass_by() -> None:
            until(answered)
            self.clock.pass_by(TIMEOUT_S + 1, self.pool)

        threading.Thread(target=pass_by, daemon=True).start()

    def ready(self) -> list[str]:
        return [member.name for member in self.pool.ready()]

    def close(self) -> None:
        self.pool.close()
        for worker in self.workers:
            worker.leave()


@pytest.fixture
def make_setup(tmp_path, seeds):
    made: list[Setup] = []

    def make(**options) -> Setup:
        made.append(Setup(f"ipc://{tmp_path}/s{len(made)}", seeds, **options))
        return made[-1]

    yield make
    for setup in made:
        setup.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("how", ["fails_at", "silent_at", "dies_at"])
def test_a_member_lost_at_any_of_the_four_calls_does_not_hold_the_others_up(make_setup, call, how):
    setup = make_setup()
    good, bad, better = setup.join(), setup.join(**{how: call}), setup.join()
    if how == "dies_at":
        setup.notice_the_death_of(bad)
    if how == "silent_at":
        setup.wait_in_vain_for(bad)
    record = setup.sync.everyone(3)
    assert record["pause_s"] == 0.01
    assert setup.ready() == ["rollout-0", "rollout-2"]
    for worker in (good, better):
        until(lambda worker=worker: worker.said == [*CALLS, "proven"])
    if how != "dies_at":
        until(lambda: bad.refused)
        assert call in bad.refused
    assert "proven" not in bad.said


def test_a_sync_goes_on_beside_whoever_began_it(make_setup):
    """With the learner's scores as they were: it may be training by now. Its end calls for attention."""
    setup = make_setup()
    worker = setup.join(late_at="FinishUpdate")
    setup.sync.begin(3)
    setup.sync._score = lambda: OURS + 1
    until(lambda: worker.late)
    assert not setup.sync.is_settled
    assert setup.ready() == []

    setup.pool._attention = False
    worker.answer_late()
    until(lambda: setup.pool._attention)
    assert setup.sync.is_settled
    assert setup.pool.ready(3) == setup.pool.members()
    record = setup.sync.finish()
    assert (record["calls"], record["pause_s"], record["probe_difference"]) == (3, 0.01, 0)
    assert record["probe_difference_first"] == 0
    until(lambda: worker.said == [*CALLS, "proven"])


def test_an_engine_with_other_weights_ends_the_run_though_the_probe_cannot_tell(make_setup):
    setup = make_setup()
    setup.join()
    bad = setup.join(live=(LiveWeights(("a", "b"), ((4, 7),)),))
    setup.sync.begin(0)
    with pytest.raises(WeightSyncError, match="rollout-1 with other weights than the learner at version 0: 1 of 1"):
        setup.sync.finish()
    assert setup.ready() == []
    assert "proven" not in bad.said


def test_what_goes_wrong_beside_comes_out_when_it_is_finished(make_setup):
    setup = make_setup()
    setup.join(probe=(-1.0, -2.5))
    setup.sync.begin(0)
    with pytest.raises(WeightSyncError, match="rollout-0 has the learner"):
        setup.sync.finish()
    assert setup.ready() == []


def test_a_sync_beside_that_loses_its_members_has_come_to_nothing(make_setup):
    setup = make_setup()
    setup.join(fails_at="UpdateWeights")
    setup.sync.begin(0)
    assert setup.sync.finish() is None
    assert setup.pool.members() == []
    setup.join()
    assert setup.sync.everyone(1)["calls"] == 3


def test_closing_does_not_wait_for_workers(make_setup):
    setup = make_setup()
    worker = setup.join(silent_at="StartUpdate")
    setup.sync.begin(0)
    until(lambda: "StartUpdate" in worker.said)
    setup.pool.close()
    setup.sync.close()
    with pytest.raises(WorkerFailedError, match="closed"):
        setup.sync.finish()


def test_every_member_has_a_rank_of_its_own(make_setup):
    setup = make_setup()
    workers = [setup.join() for _ in range(3)]
    setup.sync.everyone(0)
    assert [worker.requests[0].info["rank_offset"] for worker in workers] == [1, 2, 3]


def test_newcomers_alone_are_brought_up_where_the_transport_allows_it(make_setup):
    setup = make_setup()
    first = setup.join()
    setup.sync.everyone(0)
    second = setup.join()
    setup.sync.newcomers(1)
    assert setup.sender.connected == [["rollout-0"], ["rollout-1"]]
    assert (setup.pool.ready(0), setup.pool.ready(1)) == ([setup.pool.members()[0]], [setup.pool.members()[1]])
    until(lambda: second.said[-1:] == ["proven"])
    assert len(first.requests) == 4
    setup.sync.everyone(2)
    setup.sync.everyone(3)
    assert setup.sender.connected[2:] == [["rollout-0", "rollout-1"]]  # once, for the membership has not changed
    assert len(setup.pool.ready(3)) == 2


def test_everybody_takes_part_where_it_does_not(make_setup):
    setup = make_setup(point_to_point=False)
    setup.join()
    setup.sync.everyone(0)
    setup.join()
    setup.sync.newcomers(1)
    assert setup.sender.connected == [["rollout-0"], ["rollout-0", "rollout-1"]]
    assert len(setup.pool.ready(1)) == 2


def test_a_newcomer_that_fails_leaves_and_bringing_up_ends(make_setup):
    setup = make_setup()
    setup.join()
    setup.sync.everyone(0)
    setup.join(fails_at="FinishUpdate")
    setup.sync.newcomers(0)
    assert setup.ready() == ["rollout-0"]


def test_with_nobody_left_the_sync_waits_for_somebody_new(make_setup):
    setup = make_setup()
    setup.join(fails_at="UpdateWeights")
    joining = threading.Thread(target=lambda: (until(lambda: not setup.pool.members()), setup.join()))
    joining.start()
    setup.sync.everyone(4)
    joining.join()
    assert setup.ready() == ["rollout-1"]


def test_with_nobody_coming_the_sync_ends_with_the_last_failure(make_setup):
    setup = make_setup()
    setup.join(fails_at="UpdateWeights")
    setup.sync._wait_s = 0
    with pytest.raises(StreamTimeoutError, match=r"0 of 1 rollout workers.*rollout-0: UpdateWeights: it could not"):
        setup.sync.everyone(4)


@pytest.mark.parametrize("probe", [(-1.0, -2.5), (-1.0,), (-1.0, float("nan"))])
def test_a_probe_that_comes_out_differently_ends_the_run(make_setup, probe):
    setup = make_setup()
    setup.join()
    wrong = setup.join(probe=probe)
    with pytest.raises(WeightSyncError, match="rollout-1"):
        setup.sync.everyone(0)
    assert setup.ready() == []
    assert "proven" not in wrong.said


def test_a_fault_of_the_sender_itself_ends_the_run(make_setup):
    setup = make_setup()
    setup.join()
    setup.sender.fault = WeightSyncError("model.norm has weights that are not finite")
    with pytest.raises(WeightSyncError, match="not finite"):
        setup.sync.everyone(0)


def test_a_sender_that_gives_up_with_a_member_sends_again_to_the_others(make_setup):
    setup = make_setup(point_to_point=False)
    setup.join()
    setup.notice_the_death_of(setup.join(dies_at="UpdateWeights"))
    setup.sender.fault = WeightSyncError("the group is broken")
    send = setup.sender.send

    def then_mended(version: int) -> SendStats:
        try:
            return send(version)
        finally:
            setup.sender.fault = None

    setup.sender.send = then_mended
    setup.sync.everyone(0)
    assert setup.sender.connected == [["rollout-0", "rollout-1"], ["rollout-0"]]
    assert setup.ready() == ["rollout-0"]


def test_nobody_is_sent_an_older_version(make_setup):
    setup = make_setup()
    worker = setup.join()
    setup.sync.everyone(3)
    with pytest.raises(WeightSyncError, match="already has 3"):
        setup.sync.everyone(2)
    assert sum(isinstance(request, msg.StartUpdate) for request in worker.requests) == 1
