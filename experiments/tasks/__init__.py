"""Tasks: a network, an algorithm, data and metrics, with numbers from a config.

Beside `init`, `update` and `generate` (`genjax.training.Task`) the programs here ask of a task

- `sampling_inputs(sampling)`: the arrays, of `config.sampling`, that `generate` takes after labels and indices, and
  `describe_sampling(sampling)`: what a report says of them;
- `as_data(samples)`: samples in the form of the data set, and `picture(samples, columns)` of them;
- `animation`: the name of the picture that `generate(…, trajectory=True)` makes;
- `reference(config)`: what samples are measured against, `evaluate(state, config, reference)`: the measures;
- `alarms(metrics)`: what is going wrong by these, a sentence each.
"""

from experiments.tasks.adversarial import ImageGAN as ImageGAN
from experiments.tasks.adversarial import PlaneGAN as PlaneGAN
from experiments.tasks.autoencoding import Autoencoder as Autoencoder
from experiments.tasks.diffusion import ImageDiffusion as ImageDiffusion
from experiments.tasks.variational import VariationalAutoencoder as VariationalAutoencoder
