"""From prompts to pictures. Unlike functions of the other packages a pipeline compiles its programs itself, and keeps them."""

from genjax.pipelines.generation import Pipeline as Pipeline
from genjax.pipelines.published import load as load
from genjax.pipelines.published import load_encoder as load_encoder
from genjax.pipelines.runs import Run as Run
