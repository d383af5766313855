"""Heat maps of a sweep over EMA width, guidance scale and guidance interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from experiments.evaluation.sampling_sweep import distance_name
from genjax.training.pictures import rendered


def draw_heat_maps(records: Sequence[dict[str, Any]]) -> Image.Image:
    """Draw the distances of a sweep over widths and scales, a map for each interval.

    All maps share the colours, on a logarithmic scale. A frame marks the lowest distance.

    Args:
        records: of `experiments.evaluation.sampling_sweep.sweep_guidance`.
    """
    from matplotlib.colors import LogNorm  # here, since most programs draw nothing
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    swept = [record for record in records if "verdict" not in record]
    distances = {
        (tuple(r["guidance_interval"]), r["weights"], r["guidance_scale"]): r[distance_name(r)]
        for r in swept
    }
    intervals, weights, scales = (
        list(dict.fromkeys(values)) for values in zip(*distances, strict=True)
    )
    best = min(distances, key=distances.get)
    size = 0.9 + 0.75 * len(scales) * len(intervals), 1.3 + 0.45 * len(weights)
    figure = Figure(figsize=size, layout="constrained")
    colours = LogNorm(min(distances.values()), max(distances.values()))
    panels = figure.subplots(1, len(intervals), sharey=True, squeeze=False)[0]
    for axes, interval in zip(panels, intervals, strict=True):
        values = [[distances[interval, w, s] for s in scales] for w in weights]
        axes.imshow(np.array(values), cmap="viridis_r", norm=colours, aspect="auto")
        for row, column in np.ndindex(len(weights), len(scales)):
            value, middle = values[row][column], dict(ha="center", va="center", fontsize=8)
            colour = "black" if colours(value) < 0.5 else "white"  # low distances are yellow
            axes.text(column, row, f"{value:.3g}", color=colour, **middle)
        axes.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        axes.set(xlabel="guidance scale", title="t in ({:g}, {:g}]".format(*interval))
        if interval == best[0]:
            corner = scales.index(best[2]) - 0.5, weights.index(best[1]) - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    panels[0].set_yticks(range(len(weights)), [name.partition("_")[2] for name in weights])
    panels[0].set_ylabel("EMA width")
    return rendered(figure)
