"""Wan 2.1 and 2.2 (Wan team 2025): text to video, and image to video."""

import html
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from genjax.nn import Text
from genjax.pipelines.experts import Experts
from genjax.pipelines.folders import Folder, System
from genjax.pipelines.frames import CleanFrame, FrameChannels
from genjax.pipelines.generation import Pipeline
from genjax.pipelines.schedules import unipc_flow
from genjax.pretrained.configuration import expect, expect_kind

LENGTH = 512  # tokens
# Fullwidth and halfwidth forms, as Chinese and Japanese texts have, and ligatures.
_FORMS = [*map(chr, range(0xFF01, 0xFFF0)), *"ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ"]
_PLAIN = str.maketrans({form: unicodedata.normalize("NFKC", form) for form in _FORMS})
_QUOTES = str.maketrans(dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))


def _clean(prompt: str) -> str:
    """Return a prompt without HTML entities and repeated spaces, in plain characters.

    It is so in training. Curly quotes, forms of other widths, ligatures and letters whose accents
    are characters of their own become plain. The authors' ftfy also repairs wrongly decoded
    characters, which are left here.
    """
    text = html.unescape(html.unescape(prompt)).translate(_PLAIN).translate(_QUOTES)
    return " ".join(unicodedata.normalize("NFC", text).split())


def _encoder(folder: Folder) -> Callable[[Sequence[str]], Text]:
    """Return UMT5's states, zero at padding and not masked, as a function of prompts."""

    def take(module: nn.Module, variables: Any, ids: Any, mask: Any) -> Text:
        return Text(module.apply(variables, ids, mask) * mask[..., None])

    umt5 = folder.encoder("", LENGTH, take)
    return lambda prompts: umt5([_clean(prompt) for prompt in prompts])


def _entries(folder: Folder) -> tuple[float | None, bool]:
    """Return the experts' boundary, None for one network, and whether tokens have own times.

    Raises:
        ValueError: an entry of `model_index.json` is not supported.
    """
    entries = dict(boundary_ratio=None, expand_timesteps=False) | folder.index
    boundary, second = entries["boundary_ratio"], folder.class_of("transformer_2")
    if (boundary is None) != (second is None):
        raise ValueError(
            f"{folder.path / 'model_index.json'} has boundary_ratio={boundary} and transformer_2="
            f"{second}: a pair of experts needs both, and one network neither"
        )
    if boundary is not None:
        expect_kind(entries, "boundary_ratio", float)
        if not 0 < boundary < 1:
            raise ValueError(f"boundary_ratio={boundary} is not supported; expected 0 to 1")
    expect(entries, "expand_timesteps", *((False, True) if boundary is None else (False,)))
    return boundary, entries["expand_timesteps"]


def _network(folder: Folder) -> tuple[nn.Module | Experts, Any]:
    """Return Wan 2.1's network, Wan 2.2's of 5 billion parameters, or its pair of experts."""
    boundary, _ = _entries(folder)
    network, variables = folder.part("transformer")
    if boundary is None:
        return network, variables
    low, low_variables = folder.part("transformer_2")
    if low != network:
        raise ValueError(f"{folder.path} has a transformer and a transformer_2 of other sizes")
    return Experts(network, low, boundary), dict(high=variables, low=low_variables)


def _settings(
    folder: Folder,
    network: nn.Module | Experts,
    autoencoder: nn.Module,
    experts_scales: tuple[float, float] = (4.0, 3.0),
) -> dict[str, Any]:
    """Return the settings; the folder's schedule has the shift, 3 for 480p and 5 for 720p."""
    boundary, own_times = _entries(folder)
    settings = dict(size=(480, 832), frames=81, num_steps=50, guidance_scale=5.0)
    if own_times:
        settings |= dict(size=(704, 1280), frames=121, given_frames=CleanFrame(autoencoder))
    elif boundary is not None:
        settings |= dict(size=(720, 1280), num_steps=40, guidance_scale=experts_scales)
    return settings | dict(empty="", **folder.config("scheduler", unipc_flow))


def _image_settings(
    folder: Folder, network: nn.Module | Experts, autoencoder: nn.Module
) -> dict[str, Any]:
    """Return the settings of image to video; networks with CLIP's tokens may need two frames."""
    settings = _settings(folder, network, autoencoder, (3.5, 3.5))
    if "given_frames" in settings:
        return settings
    one = network.high if isinstance(network, Experts) else network
    encode = folder.image_encoder() if one.takes_image else None
    between = one.image_positions is not None
    takes_last = between or not one.takes_image
    frames = FrameChannels(autoencoder, encode, takes_last, needs_last=between)
    return settings | dict(given_frames=frames)


def _index(pipeline: Pipeline) -> dict[str, Any]:
    experts = isinstance(pipeline.network, Experts)
    return dict(
        boundary_ratio=pipeline.network.boundary if experts else None,
        expand_timesteps=isinstance(pipeline.given_frames, CleanFrame),
    )


_TEXT, _IMAGE = ("text_encoder", "tokenizer"), ("image_encoder", "image_processor")
_SHARED = dict(network=_network, entries=_index)
SYSTEMS = (
    System("WanPipeline", _encoder, _settings, _TEXT, **_SHARED),
    System(
        "WanImageToVideoPipeline",
        _encoder,
        _image_settings,
        (*_TEXT, *_IMAGE),
        optional=_IMAGE,
        **_SHARED,
    ),
)
