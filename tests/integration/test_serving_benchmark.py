"""The serving benchmark's processes answer each other, and a wrong answer ends it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._serving.contestants import contest
from benchmarks.peers.loading import Checked
from benchmarks.peers.table import SETTINGS, Setting, hidden_states, look_up, output_head, question, table
from benchmarks.serving import BOUNDS, OWN


def test_our_service_and_the_limits_take_their_turns() -> None:
    with contest() as running:
        for contestant in (OWN[0], BOUNDS[1], BOUNDS[2]):
            running.start_server(contestant)
            for setting in SETTINGS:
                turn = running.start_client(contestant, setting).go(400)
                assert turn.seconds > 0
                assert min(turn.server_seconds, turn.client_seconds) > 0


def test_the_table_is_exact_in_whatever_order_it_is_added_up() -> None:
    exact = hidden_states().astype(np.float64) @ output_head()[:64].T.astype(np.float64)
    assert np.array_equal(table()[:, :64], exact)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_a_wrong_answer_is_found(setting: Setting) -> None:
    checked = Checked(setting)
    right = look_up(table(), question(setting, 1))
    checked.check(1, right.tobytes())
    checked.check(1, list(right))
    wrong = right.copy()
    wrong[-1, -1] += 1
    for answer in (wrong.tobytes(), list(wrong), right[:, 1:].tobytes()):
        with pytest.raises(AssertionError, match="question 1"):
            checked.check(1, answer)
