import pytest
from recorded_runs import WrittenJournal, text_ticket, write_records

from launch.recorded_episodes import RecordedRun
from launch.run_records import known_config, read_run
from shared.episodes import Role, Verdict
from shared.errors import JournalError


def recorded(folder) -> RecordedRun:
    return RecordedRun(folder, known_config(read_run(folder)))


@pytest.fixture
def folder(tmp_path):
    return write_records(tmp_path / "mine")


def test_episodes_come_by_step_with_their_rewards_and_reasons(folder):
    journal = WrittenJournal(folder)
    journal.train(
        0, text_ticket(0, 0, answers=("5", "4", "4", "4")), text_ticket(0, 1, proposal="?", verdict=Verdict.UNPARSABLE)
    )
    journal.train(1, text_ticket(1, 0, answers=("5", "5")))
    run = recorded(folder)
    assert run.steps == [1, 2]
    proposal, *attempts = run.trained(1)[:5]
    assert (proposal.role, proposal.attempt, proposal.episode.reward) == (Role.PROPOSER, None, 0.75)
    assert proposal.reason == "valid, with a solve rate of 0.25: learnability 1 − 0.25"
    assert proposal.name == "step 1, ticket 0, proposal"
    assert [each.attempt for each in attempts] == [0, 1, 2, 3]
    assert [each.reason for each in attempts[:2]] == [
        "an accepted answer",
        "well formed, but not accepted; 5 would have been",
    ]
    assert run.trained(1)[5].reason == "no problem in the asked format"
    assert run.trained(2)[0].reason == "valid, but always solved: nothing to learn"
    assert run.trained(3) == []
    assert [each.step for each in run.all()] == [1] * 8 + [2] * 3
    assert [each.step for each in run.all({2})] == [2] * 3


def test_repeats_are_judged_as_they_were_for_training(folder):
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0), text_ticket(0, 1))
    first, second = (each for each in recorded(folder).trained(1) if each.role is Role.PROPOSER)
    assert (first.episode.verdict, first.episode.reward) == (Verdict.VALID, 0.5)
    assert (second.episode.verdict, second.episode.reward) == (Verdict.REPEAT, -0.5)
    assert second.reason == "proposed before in the same batch"


def test_what_a_later_lineage_went_back_behind_is_not_trained(folder):
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0, proposal="first"))
    journal.train(1, text_ticket(1, 0, proposal="undone"))
    journal.begin(1, 1)
    journal.train(1, text_ticket(1, 0, proposal="done again"), lineage=1)
    dropped, _ = journal.take(text_ticket(2, 0, proposal="dropped"), text_ticket(2, 1, proposal="open"))
    journal.drop(dropped, "rolled_back")
    run = recorded(folder)
    assert run.steps == [1, 2]
    assert {each.fate for each in run.all()} == {"trained"}
    proposals = {
        "".join(map(chr, e.episode.response_ids[:-1])): e.fate for e in run.all(untrained=True) if e.attempt is None
    }
    assert proposals == {
        "first": "trained",
        "done again": "trained",
        "undone": "open",
        "dropped": "dropped: rolled_back",
        "open": "open",
    }


def test_a_torn_tail_ends_the_journal(folder):
    journal = WrittenJournal(folder)
    journal.train(0, text_ticket(0, 0))
    journal.train(1, text_ticket(1, 0))
    path = folder / "journal"
    path.write_bytes(path.read_bytes()[:-3])
    assert recorded(folder).steps == [1]


def test_a_run_without_a_journal_is_refused(folder):
    with pytest.raises(JournalError, match="has no journal: it never came to"):
        recorded(folder)


def test_a_journal_of_which_nothing_can_be_read_is_damaged(folder):
    (folder / "journal").touch()
    assert not recorded(folder).damaged
    (folder / "journal").write_bytes(b"no record")
    assert recorded(folder).damaged
    WrittenJournal(folder).train(0, text_ticket(0, 0))
    assert not recorded(folder).damaged
