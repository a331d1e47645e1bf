"""The ack ledger never lets an LSN be confirmed before everything below it is stored."""

from hypothesis import given
from hypothesis import strategies as st

from actors.acker import AckLedger
from actors.messages import Batch, SentBatch
from actors.positions import START, Lsn, Position

batches = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=40)


def published(script):
    """Batches of so many messages; those with a transaction's end carry an LSN."""
    seq = lsn = 0
    for messages, ends in script:
        seq += messages
        lsn += 10
        position = Position(Lsn(lsn), 0) if messages else None
        yield SentBatch(Batch([], 0, {}, position, Lsn(lsn if ends else 0), 0, 0), seq, 0.0)


@given(batches, st.lists(st.integers(0, 250), max_size=60), st.randoms(use_true_random=False))
def test_the_durable_lsn_is_never_beyond_a_batch_that_is_not_stored(script, stored_seqs, random):
    ledger = AckLedger(0, START)
    waiting = list(published(script))
    sent, stored, seen = [], 0, 0
    for seq in [*sorted(stored_seqs), 10_000]:
        while waiting and random.random() < 0.7:
            sent.append(waiting.pop(0))
            ledger.published(sent[-1])
        stored = min(seq, sent[-1].last_seq) if sent else 0
        seen += len(ledger.stored(stored))
        whole = [p for p in sent if p.last_seq <= stored]
        assert seen == len(whole)
        assert ledger.durable.lsn == max([p.batch.end_lsn for p in whole], default=0)
        assert ledger.durable.seq == max([p.last_seq for p in whole], default=0)
        assert all(p.batch.end_lsn > ledger.durable.lsn for p in sent if p.last_seq > stored and p.batch.end_lsn)


@given(batches)
def test_everything_is_durable_once_everything_is_stored(script):
    ledger = AckLedger(0, START)
    sent = list(published(script))
    for batch in sent:
        ledger.published(batch)
    ledger.stored(10_000)
    assert ledger.open_batches == 0
    assert ledger.durable.lsn == max([p.batch.end_lsn for p in sent], default=0)
