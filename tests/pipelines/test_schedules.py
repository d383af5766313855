"""Which of diffusers' schedules are refused; tests/parity compares their results."""

import pytest

from genjax.pipelines.schedules import flow_matching, noise_prediction

FLOW = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
DDIM = dict(_class_name="DDIMScheduler", clip_sample=False)
DPM = dict(_class_name="DPMSolverMultistepScheduler")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(_class_name="EulerDiscreteScheduler"), "_class_name='EulerDiscreteScheduler'"),
        (dict(use_karras_sigmas=True), "use_karras_sigmas=True is not supported; only False"),
        (dict(use_dynamic_shifting=True), "use_dynamic_shifting=True is not supported; only False"),
        (dict(_class_name=["x"]), r"_class_name=\['x'\] is not supported; only 'FlowMatch"),
        (dict(shift="3"), "shift='3' is not supported; expected a finite number"),
        (dict(shift=0), "shift=0 is not supported; expected a number above 0"),
        (
            dict(max_image_seq_len=4.5),
            "max_image_seq_len=4.5 is not supported; expected an integer from 1 on",
        ),
        (dict(base_image_seq_len=4096), "base_image_seq_len and max_image_seq_len are equal"),
    ],
)
def test_other_flows_are_refused(entries, message):
    flow_matching(FLOW, False)
    with pytest.raises(ValueError, match=message):
        flow_matching(FLOW | entries, False)


def test_entries_that_a_schedule_leaves_out_have_the_authors_defaults():
    schedule = flow_matching(dict(_class_name="FlowMatchEulerDiscreteScheduler"), False)
    assert schedule["shift"] == 1.0 and schedule["max_image_seq_len"] == 4096


@pytest.mark.parametrize(
    ("schedule", "entries", "message"),
    [
        (DDIM, dict(_class_name="PNDMScheduler"), "_class_name='PNDMScheduler' is not supported"),
        (DDIM, dict(prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        (DDIM, dict(beta_schedule="squaredcos_cap_v2"), "only 'linear', 'scaled_linear'"),
        (DDIM, dict(clip_sample=True), "clip_sample=True"),
        (DDIM, dict(timestep_spacing="trailing"), "timestep_spacing='trailing'"),
        (DPM, dict(solver_order=3), "solver_order=3 is not supported; only 2"),
        (DPM, dict(variance_type="fixed"), "variance_type='fixed'"),
        (DPM, dict(_class_name=None), "_class_name=None is not supported; only 'DDIMScheduler'"),
        (DDIM, dict(beta_end=None), "beta_end=None is not supported; expected a finite number"),
        (
            DDIM,
            dict(steps_offset="1"),
            "steps_offset='1' is not supported; expected an integer from 0 on",
        ),
    ],
)
def test_other_schedules_are_refused(schedule, entries, message):
    noise_prediction(schedule)
    with pytest.raises(ValueError, match=message):
        noise_prediction(schedule | entries)
