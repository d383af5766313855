"""The one training loop, with checkpoints, optimizers, averages and logs."""

from genjax.training.accumulation import value_and_gradient as value_and_gradient
from genjax.training.checkpoints import Checkpoints as Checkpoints
from genjax.training.checkpoints import NoWholeCheckpoint as NoWholeCheckpoint
from genjax.training.checkpoints import OtherState as OtherState
from genjax.training.checkpoints import check_space as check_space
from genjax.training.ema import HalfLife as HalfLife
from genjax.training.ema import PowerFunction as PowerFunction
from genjax.training.ema import update_average as update_average
from genjax.training.log import Mean as Mean
from genjax.training.loop import Plugin as Plugin
from genjax.training.loop import train as train
from genjax.training.meter import NonFiniteError as NonFiniteError
from genjax.training.norms import group_norms as group_norms
from genjax.training.optimizers import make_optimizer as make_optimizer
from genjax.training.placement import abstract_state as abstract_state
from genjax.training.placement import init_state as init_state
from genjax.training.placement import place_frozen as place_frozen
from genjax.training.posthoc import Snapshots as Snapshots
from genjax.training.precision import at_rounded as at_rounded
from genjax.training.signals import Interrupted as Interrupted
from genjax.training.skipping import Explosions as Explosions
from genjax.training.task import Task as Task
from genjax.training.workdir import make_workdir as make_workdir
from genjax.training.workdir import new_workdir as new_workdir
from genjax.training.workdir import record_config as record_config
