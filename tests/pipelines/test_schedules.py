"""Which of diffusers' schedules are refused; tests/parity compares their results."""

import numpy as np
import pytest

from genjax.pipelines.schedules import (
    cosine_dpm,
    euler_flow,
    flow_matching,
    noise_prediction,
    unipc_flow,
)

FLOW = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
DDIM = dict(_class_name="DDIMScheduler", clip_sample=False)
DPM = dict(_class_name="DPMSolverMultistepScheduler")
UNIPC = dict(
    _class_name="UniPCMultistepScheduler", prediction_type="flow_prediction", use_flow_sigmas=True
)


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
        (DPM, dict(use_exponential_sigmas=True), "use_exponential_sigmas=True"),
        (DPM, dict(use_beta_sigmas=True), "use_beta_sigmas=True is not supported; only False"),
        (DPM, dict(lambda_min_clipped=-5.1), "lambda_min_clipped=-5.1 is not supported; only -inf"),
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


def test_ddim_clips_unless_the_schedule_says_no():
    """The authors' default is to clip, which suits pixels alone."""
    with pytest.raises(ValueError, match="clip_sample=True is not supported; only False"):
        noise_prediction(dict(_class_name="DDIMScheduler"))


LTX = dict(_class_name="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True) | dict(
    base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
)
LTX_TIMES = {  # of 8 steps, by the number of tokens
    1024: [1, 0.935474, 0.859263, 0.767879, 0.656289, 0.516957, 0.338071, 0.1, 0],
    4096: [1, 0.965712, 0.921875, 0.863856, 0.783445, 0.664579, 0.471003, 0.1, 0],
    6144: [1, 0.973913, 0.939833, 0.893422, 0.826507, 0.721651, 0.533815, 0.1, 0],
}


@pytest.mark.parametrize("tokens", LTX_TIMES)
def test_times_of_ltx_video_are_the_published_ones(tokens):
    times = euler_flow(LTX)["grid"](8, tokens)
    np.testing.assert_allclose(times, LTX_TIMES[tokens], rtol=0, atol=6e-7)  # six decimals
    np.testing.assert_array_equal(euler_flow(LTX)["grid"](1, tokens), [1, 0])


def test_times_of_qwen_image_are_the_published_ones():
    """At 4,096 tokens log(shift) is .693548; the last of the 8 steps starts at .02."""
    qwen = LTX | dict(base_shift=0.5, max_shift=0.9, shift_terminal=0.02)
    qwen |= dict(base_image_seq_len=256, max_image_seq_len=8192)
    published = [1, 0.916024, 0.820046, 0.709295, 0.580075, 0.427347, 0.244054, 0.02, 0]
    times = np.asarray(euler_flow(qwen)["grid"](8, 4096))
    np.testing.assert_allclose(times, published, rtol=0, atol=6e-7)  # six decimals
    # A time t = 7/8 before the stretch to .02, of which the first interval is 1 − .916024.
    shifted = lambda t: 1 / (1 + np.exp(-0.693548) * (1 / t - 1))
    stretch = (1 - times[1]) / (1 - 0.02)
    np.testing.assert_allclose(stretch, (1 - shifted(7 / 8)) / (1 - shifted(1 / 8)), atol=2e-6)


def test_a_schedules_last_time_is_between_0_and_1():
    with pytest.raises(ValueError, match="shift_terminal=1.5 is not supported; expected None, or"):
        euler_flow(LTX | dict(shift_terminal=1.5))


WAN_TIMES = {  # of 10 steps, by the shift
    3.0: [0.999999, 0.964324, 0.923166, 0.875156, 0.81843, 0.750375, 0.667222, 0.56332]
    + [0.429795, 0.251872, 0],
    5.0: [0.999999, 0.978284, 0.952438, 0.921156, 0.882526, 0.833611, 0.769674, 0.68254]
    + [0.556788, 0.359433, 0],
}


@pytest.mark.parametrize("shift", WAN_TIMES)
def test_times_of_wan_are_the_published_ones(shift):
    parts = unipc_flow(UNIPC | dict(flow_shift=shift))
    times = parts["grid"](10, 64)
    np.testing.assert_allclose(times, WAN_TIMES[shift], rtol=0, atol=6e-7)  # six decimals
    process = parts["process"]
    fed = process.preconditioning.network_time(process, times)
    np.testing.assert_allclose(fed, np.floor(1000 * np.array(WAN_TIMES[shift])) / 1000, rtol=1e-6)


# The `timesteps` of diffusers 0.42's UniPCMultistepScheduler at a shift of 1. Of 9 steps, the
# float64 times at 445, 334, 223 and 112 thousandths are just below them.
UNIPC_STEPS = {
    9: [999, 889, 778, 667, 556, 444, 333, 222, 111],
    37: [999, 973, 946, 919, 892, 865, 838, 811, 784, 757, 730, 703, 675, 649, 622, 595, 568, 540]
    + [514, 487, 459, 433, 406, 379, 352, 324, 298, 271, 244, 216, 190, 163, 136, 108, 81, 55, 28],
}


@pytest.mark.parametrize("num_steps", UNIPC_STEPS)
def test_times_of_unipc_are_cut_as_diffusers_cuts_them(num_steps):
    parts = unipc_flow(UNIPC)
    times = parts["grid"](num_steps, 64)
    fed = parts["process"].preconditioning.network_time(parts["process"], times[:-1])
    np.testing.assert_array_equal(np.rint(1000 * fed), UNIPC_STEPS[num_steps])
    # The times themselves move by at most a float32's rounding.
    expected = np.linspace(1, 0.001, num_steps + 1)[1:-1]
    np.testing.assert_allclose(times[1:-1], expected, rtol=0, atol=1.8e-7)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(_class_name="DDIMScheduler"), "_class_name='DDIMScheduler' is not supported"),
        (dict(use_flow_sigmas=False), "use_flow_sigmas=False is not supported; only True"),
        (dict(prediction_type="epsilon"), "prediction_type='epsilon'"),
        (dict(solver_order=3), "solver_order=3 is not supported; only 2"),
        (dict(solver_p={}), "solver_p={} is not supported; only None"),
        (dict(flow_shift=0), "flow_shift=0 is not supported; expected a number above 0"),
        (dict(shift_terminal=0.1), "shift_terminal=0.1"),
    ],
)
def test_other_unipc_schedules_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        unipc_flow(UNIPC | entries)


COSINE = dict(_class_name="CosineDPMSolverMultistepScheduler")


def test_levels_of_stable_audio_run_from_500_to_three_tenths():
    parts = cosine_dpm(COSINE)
    process, times = parts["process"], parts["grid"](5, 1)
    levels = process.sigma(times) / process.alpha(times)
    # float32 knows the first time's distance from 1 to 5e-5.
    expected = [*0.3 * (500 / 0.3) ** np.linspace(1, 0, 5), 0]
    np.testing.assert_allclose(levels, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict(_class_name="EDMDPMSolverMultistepScheduler"), "only 'CosineDPMSolverMultistep"),
        (dict(sigma_data=0.5), "sigma_data=0.5 is not supported; only 1.0"),
        (dict(prediction_type="epsilon"), "prediction_type='epsilon'"),
        (dict(sigma_schedule="linear"), "only 'exponential', 'karras'"),
        (dict(sigma_min=0), "sigma_min=0 is not supported; expected a number above 0"),
        (dict(final_sigmas_type="sigma_min"), "final_sigmas_type='sigma_min'"),
    ],
)
def test_other_cosine_schedules_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        cosine_dpm(COSINE | entries)
