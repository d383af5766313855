"""25 Gaussians: who covers them, who does not, and that the alarms say so."""

import pytest
from plane_games import assert_all_modes_are_covered, train

from genjax import adversarial


@pytest.mark.slow
def test_with_r1_the_non_saturating_game_covers_all_modes():
    assert_all_modes_are_covered("non_saturating")


@pytest.mark.slow
def test_the_unregularized_saturating_loss_does_not_and_alarms_say_so():
    """It loses at once, so a sixth of the steps shows it."""
    for found in train("saturating", seeds=2, num_steps=2000):
        assert found["modes_covered"] < 13 and found["high_quality"] < 0.5
        sentences = adversarial.alarms(found)
        assert any(sentence.startswith("Mode collapse: samples cover") for sentence in sentences)
        assert any(sentence.startswith("Vanishing generator gradient") for sentence in sentences)
