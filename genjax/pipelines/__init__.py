"""Published systems for images, videos and sounds, and trained runs, as objects that sample.

A pipeline compiles and keeps its own programs; functions of the other packages do not.
"""

from genjax.pipelines.folders import load as load
from genjax.pipelines.folders import load_encoder as load_encoder
from genjax.pipelines.folders import save as save
from genjax.pipelines.generation import Pipeline as Pipeline
from genjax.pipelines.runs import Run as Run
from genjax.pipelines.sounds import SoundPipeline as SoundPipeline
from genjax.pipelines.sounds import TimedPrompt as TimedPrompt
from genjax.pipelines.videos_with_sound import VideoSoundPipeline as VideoSoundPipeline
from genjax.pipelines.videos_with_sound import VideoWithSound as VideoWithSound
