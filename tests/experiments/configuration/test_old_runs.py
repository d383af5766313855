"""Records of older versions, in today's form."""

from experiments.configuration.old_runs import upgrade
from genjax.training.workdir import Config


def test_the_first_blocks_of_mmdit_with_a_second_attention_are_named():
    recorded = Config(space=Config(), model=Config(name="mmdit.MMDiT", depth=4, dual_depth=2))
    model = upgrade(recorded).model
    assert model == dict(name="mmdit.MMDiT", depth=4, dual_layers=(0, 1))
    assert upgrade(Config(space=Config(), model=model)).model == model
