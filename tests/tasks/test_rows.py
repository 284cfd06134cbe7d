import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtclib.tasks.glue import Split
from xtclib.tasks.rows import LengthGroupedSampler, Rows, collate


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=300),
    batch=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3),
)  # fmt: skip
def test_the_sampler_visits_every_row_once(lengths, batch, seed, epoch):
    sampler = LengthGroupedSampler(np.array(lengths), batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(order)


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.arange(100) % 7 + 1

    def order(seed, epoch):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        torch.manual_seed(torch.initial_seed() + 1)
        np.random.seed(None)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def test_batches_hold_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    order = list(LengthGroupedSampler(lengths, 8, 0))
    spread = [np.ptp(lengths[order[i : i + 8]]) for i in range(0, 400, 8)]
    assert np.mean(spread) < 5  # 77 if shuffled


def test_collating_pads_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1], "labels": 1},
            {"input_ids": [8], "token_type_ids": [1], "labels": 0}]  # fmt: skip
    batch = collate(rows, 99)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 0]
    assert collate(rows, 99, torch.float32)["labels"].dtype == torch.float32


def test_rows_are_truncated_and_pairs_typed(tokenizer):
    single = Rows.tokenize(Split(["w0 w1 w2 w3"], None, [0]), tokenizer, 4)
    assert single[0] == {"input_ids": [2, 5, 6, 3], "labels": 0}
    pair = Rows.tokenize(Split(["w0"], ["w1 w2"], [1]), tokenizer, 16)
    assert pair[0]["input_ids"] == [2, 5, 3, 6, 7, 3]
    assert pair[0]["token_type_ids"] == [0, 0, 0, 1, 1, 1]
