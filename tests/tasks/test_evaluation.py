import numpy as np

from xtclib.tasks.evaluation import predict


def test_predictions_come_in_the_order_of_the_rows(bert, tokenizer, data):
    found = predict(bert, tokenizer, data.train, 16, batch_size=6)
    assert found.shape == (40, 2) and found.dtype == np.float32
    for i in (0, 7, 25, 39):
        alone = predict(bert, tokenizer, data.train.select([i]), 16)
        np.testing.assert_allclose(found[i], alone[0], rtol=1e-4, atol=1e-5)
    assert np.ptp(found[:, 0]) > 0.01  # rows do differ


def test_predicting_keeps_the_mode(bert, tokenizer, data):
    for mode in (True, False):
        bert.train(mode)
        predict(bert, tokenizer, data.train.select([0, 1]))
        assert bert.training is mode
