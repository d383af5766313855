"""From prompts to pictures, and from the folder of a run to the run.

Unlike functions of the other packages a pipeline compiles its programs itself, and keeps them.
"""

from genjax.pipelines.folders import load as load
from genjax.pipelines.folders import load_encoder as load_encoder
from genjax.pipelines.folders import save as save
from genjax.pipelines.generation import Pipeline as Pipeline
from genjax.pipelines.runs import Run as Run
