from genjax import distillation


def test_losses_and_files_are_names_of_the_package():
    assert distillation.mean_flow_loss is distillation.mean_flow.mean_flow_loss
    assert distillation.semigroup_loss is distillation.flow_map_matching.semigroup_loss
