"""The task of variational autoencoders: its bounds, samples of its prior, and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from experiments.configuration.runs import build
from genjax.data import to_float
from genjax.training import Checkpoints
from tests.experiments.launching import ROOT, run
from tests.experiments.small_vae import batch, initial, small_config

KEY = jax.random.key(1)


def gaussian_config(choice, **bound):
    """Whose likelihood is a normal law of deviation ½."""
    config = small_config(choice)
    config.likelihood = dict(name="gaussian", deviation=0.5)
    config.bound.update(bound)
    return config


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def written_out(task, x, key, num_samples):
    """Return log p(x|z), log p(z) and log q(z|x) of draws of z, `[num_samples batch]`."""

    def densities(params):
        mean, log_variance = task.network.apply({"params": params}, x, method="encode")
        deviation = jnp.exp(log_variance / 2)
        shape = (num_samples, *mean.shape) if num_samples > 1 else mean.shape
        z = mean + deviation * jax.random.normal(key, shape)
        decode = lambda z: task.network.apply({"params": params}, z, method="decode")
        y = jax.vmap(decode)(z) if num_samples > 1 else decode(z)[None]
        z = z.reshape(num_samples, *mean.shape)
        return (
            norm.logpdf(x, y, 0.5).sum((2, 3, 4)),
            norm.logpdf(z).sum(-1),
            norm.logpdf(z, mean, deviation).sum(-1),
            (mean, log_variance),
        )

    return densities


def check(task, loss):
    """The task's loss, as an update logs it, and its gradient against those of `loss(params)`."""
    state, images = initial(task), batch(0)
    expected, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    after, metrics = jax.jit(task.update)(state, images, KEY)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)  # float32
    moments = jax.device_get(after.optimizer_state[0].mu)  # a tenth of the gradient, after one step
    for found, each in zip(jax.tree.leaves(moments), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(
            10 * found, each, rtol=1e-4, atol=1e-4 * np.abs(each).max()
        )  # float32
    return metrics


X = to_float(jnp.asarray(batch(0)["image"]))


def kl(moments):
    """Of each latent value, from its definition with the variance."""
    mean, log_variance = moments
    variance = jnp.exp(log_variance)
    return (mean**2 + variance - jnp.log(variance) - 1) / 2


def test_the_elbo_and_its_gradient():
    task = build(gaussian_config("elbo", beta=4.0))
    densities = written_out(task, X, KEY, 1)

    def loss(params):
        log_likelihood, _, _, moments = densities(params)
        return -log_likelihood.mean() + 4 * kl(moments).sum(-1).mean()

    metrics = check(task, loss)
    parts = metrics["nats/reconstruction"] + 4 * metrics["nats/divergence"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_free_nats():
    """Between the least and the largest divergence of a latent, so that some are free."""
    least = 0.1
    task = build(gaussian_config("elbo", free_nats=least, beta=2.0))
    densities = written_out(task, X, KEY, 1)

    def loss(params):
        log_likelihood, _, _, moments = densities(params)
        divergence = sum(jnp.maximum(each, least) for each in kl(moments).mean(0))
        return -log_likelihood.mean() + 2 * divergence

    nats = jax.jit(lambda params: kl(densities(params)[3]).mean(0))(initial(task).params)
    assert min(nats) < least < max(nats)
    check(task, loss)


def test_the_importance_weighted_bound_and_its_gradient():
    """The mean of three weights p(x|z)·p(z)/q(z|x), as it is defined."""
    task = build(gaussian_config("iwae"))
    densities = written_out(task, X, KEY, 3)

    def loss(params):
        log_likelihood, prior, posterior, _ = densities(params)
        log_weights = log_likelihood + prior - posterior
        top = log_weights.max(0)
        return -(top + jnp.log(jnp.exp(log_weights - top).mean(0))).mean()

    check(task, loss)


@pytest.mark.parametrize("choice", ["elbo", "iwae"])
def test_resumed_in_the_middle_it_is_bitwise_the_same(tmp_path, choice):
    task = build(small_config(choice))
    update = jax.jit(task.update)

    def after(state, steps):
        history = []
        for step in steps:
            state, metrics = update(state, batch(step), KEY)
            history.append(metrics)
        return state, history

    middle, _ = after(initial(task), range(2))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(2, middle)
        checkpoints.wait()
        resumed = jax.device_get(checkpoints.restore(2, jax.eval_shape(task.init, KEY)))
    (end, history), (resumed, again) = after(middle, range(2, 4)), after(resumed, range(2, 4))
    assert same(history, again) and same(end, resumed) and int(end.step) == 4


def test_samples_of_the_prior_depend_on_their_own_index_and_a_walk_ends_in_them():
    task = build(small_config("elbo"))
    state = initial(task)
    generate = jax.jit(task.generate, static_argnames=("weights", "trajectory"))
    made_of = lambda indices, **options: np.asarray(
        generate(
            state, jax.random.key(3), np.zeros(6, int), np.array(indices), weights="ema", **options
        )
    )
    together = made_of(range(6))
    assert together.shape == (6, 8, 8, 1) and np.abs(together).max() <= 1
    assert len(np.unique(together.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(made_of([4, 9, 8, 7, 6, 5])[0], together[4])
    frames = made_of(range(6), trajectory=True)
    assert frames.shape == (25, 6, 8, 8, 1)
    np.testing.assert_allclose(frames[-1], together, rtol=1e-5, atol=1e-6)  # float32
    assert np.abs(frames[0] - together).max() > 0.3 * np.abs(together).max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model__name="VEA"), "config.model.name is 'VEA'.*VAE"),
        (dict(model__size=3), "config.model.size is set, which VAE does not take; .*latent_size"),
        (
            dict(likelihood__name="poisson"),
            "likelihood.name is 'poisson'.*bernoulli.*discretized_logistic",
        ),
        (
            dict(bound__num_samples=5, bound__beta=2.0),
            "bound.beta 2.0 .*num_samples 5 let them be 1 and 0",
        ),
        (dict(bound__num_samples=5, bound__free_nats=0.1), "free_nats 0.1 are of the ELBO"),
        (dict(bound__num_samples=0), "bound.num_samples is 0; it is 1 or more"),
        (dict(sampling__weights="emma"), "is 'emma'; there are params, ema"),
    ],
)
def test_mistakes_are_named(changes, words):
    config = small_config("elbo")
    for name, value in changes.items():
        part, _, field = name.rpartition("__")
        config[part][field] = value
    with pytest.raises(ValueError, match=words):
        build(config)


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path):
    workdir = tmp_path / "run"
    every = [
        f"--config.{name}=10"
        for name in ("log_every", "checkpoint.every", "sampling.every", "evaluation.every")
    ]
    result = run(
        "train", f"--config={ROOT}/configs/digits_vae.py:iwae", f"--workdir={workdir}",
        "--config.num_steps=20", "--config.optimizer.warmup=5", "--config.snapshot_every=20",
        "--config.model.width=32", "--config.evaluation.num_samples=360",
        "--config.evaluation.measures.bounds.num_importance_samples=3", *every,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((workdir / "report.json").read_text())
    assert {
        "elbo",
        "importance_weighted_bound",
        "bits_per_dimension",
        "frechet_distance",
    } <= report.keys()
    assert "class_accuracy" not in report
    for name in (
        "samples.png",
        "latent_walk.gif",
        "curves.png",
        "report.html",
        "reconstructions/step_000020.png",
    ):
        assert (workdir / name).exists(), name
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {"nats/divergence", "elbo", "bits_per_dimension", "norm/gradient/total"} <= set().union(
        *rows
    )
