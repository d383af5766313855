"""25 Gaussians by R3GAN."""

import pytest
from plane_games import assert_all_modes_are_covered


@pytest.mark.slow
def test_r3gan_covers_all_modes():
    assert_all_modes_are_covered("r3gan")
