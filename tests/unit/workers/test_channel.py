from __future__ import annotations

import threading
from multiprocessing import Pipe

import numpy as np
import pytest
from tdb_server.domain.node import Dimension
from tdb_server.domain.results import LabelledArray
from tdb_server.errors import Internal
from tdb_server.workers.channel import receive_message, send_message
from tdb_server.workers.messages import BatchEnded


@pytest.mark.parametrize("shape", [(0, 3), (1,), (700, 1000)])
def test_arrays_come_through(shape):
    here, there = Pipe()
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    sender = threading.Thread(target=send_message, args=(here, LabelledArray(array, (Dimension.SINGLE,))))
    sender.start()
    received, n_bytes = receive_message(there)
    sender.join()
    np.testing.assert_array_equal(received.array, array)
    assert received.dimensions == (Dimension.SINGLE,)
    assert n_bytes > array.nbytes


def test_errors_come_through():
    here, there = Pipe()
    send_message(here, BatchEnded(3, Internal("abc")))
    received, _ = receive_message(there)
    assert received.failure.error_id == "abc"


def test_a_closed_end_is_noticed():
    here, there = Pipe()
    here.close()
    with pytest.raises(EOFError):
        receive_message(there)
