"""Configs that older versions of genjax recorded, in today's form."""

from typing import Any

from genjax.training.workdir import Config, read_record

# Processes that had the data's deviation as an argument of their own.
PRECONDITIONINGS = {"EDM": "EDMPreconditioning", "TrigFlow": "TrigFlowPreconditioning"}
# Methods that had another name.
METHODS = {
    "Halving": "ProgressiveDistillation",
    "GuidedHalving": "GuidedProgressiveDistillation",
}
# Methods whose range of guidance scales was `least` to `largest`.
WITH_GUIDANCE_SCALES = (
    "Drift",
    "GuidanceDistillation",
    "GuidedMeanFlow",
    "GuidedProgressiveDistillation",
    "LatentConsistency",
    "PixelMeanFlow",
    "TrajectoryConsistency",
)
# Methods of few-step students that had a guidance scale, a distribution of times, or a rate of
# dropped conditions, without effect.
NEVER_GUIDED = ("LADD", "LatentConsistency", "TrajectoryConsistency")
WITHOUT_TIMES = ("Shortcut", "ProgressiveDistillation", "DistilledReflow", "Drift")
WITHOUT_DROPOUT = (
    "LatentConsistency",
    "TrajectoryConsistency",
    "GuidanceDistillation",
    "GuidedProgressiveDistillation",
    "Drift",
)
TASKS = {"ImageDiffusion": "Diffusion", "ImageGAN": "GAN", "PlaneGAN": "GAN"}


def upgrade(config: Config) -> Config:
    """Return a recorded config in today's form; one that has it already is returned as it is."""
    new = config if "space" in config else _before_spaces(config)
    new = _sound_of_data(_dual_layers(_with_preconditioning(new)))
    return _method_as_read(_renamed(new))


def _renamed(config: Config) -> Config:
    """Return the config with today's names of methods and of their numbers."""
    new = _plain(config)
    method, schedule = new.get("method", {}), new.get("process", {}).get("schedule")
    if "name" in method:
        method["name"] = METHODS.get(method["name"], method["name"])
    if method.get("name") in WITH_GUIDANCE_SCALES:
        _rename(method, least="min_guidance_scale", largest="max_guidance_scale")
    if isinstance(schedule, dict) and schedule["name"] == "Geometric":
        _rename(schedule, least="sigma_min", most="sigma_max")
    return config if new == config else _config(new)


def _rename(fields: dict, **names: str) -> None:
    for old, new in names.items():
        if old in fields:
            fields[new] = fields.pop(old)


def _with_preconditioning(config: Config) -> Config:
    """Return the config with a process' data deviation in its preconditioning.

    Target and weighting did not follow that deviation, so they get the 0.5 that they had.

    Raises:
        ValueError: target or weighting `edm` of `VarianceExploding` may be of either version.
    """
    new = _plain(config)
    process, is_todays = new.get("process", {}), "preconditioning" in new.get("process", {})
    while "base" in process:
        process = process["base"]
        is_todays |= "preconditioning" in process
    if process.get("name") == "VarianceExploding" and not is_todays:
        _check_deviations(new)
    if "data_deviation" not in process:
        return config
    deviation = process.pop("data_deviation")
    process["preconditioning"] = {
        "name": PRECONDITIONINGS[process["name"]],
        "data_deviation": deviation,
    }
    for part in (new["target"], new["weighting"]):
        if part["name"] == "edm":
            part.setdefault("data_deviation", 0.5)
    return _config(new)


def _check_deviations(new: dict) -> None:
    """Raise ValueError if `edm` has no deviation, because the record does not say which it was."""
    for field in ("target", "weighting"):
        if new[field]["name"] == "edm" and "data_deviation" not in new[field]:
            raise ValueError(
                f"config.{field} is edm of VarianceExploding and has no data_deviation: add it in "
                "config.json, 0.5 if the run was trained before processes had a preconditioning, "
                "and 1.0 if after"
            )


def _before_spaces(config: Config) -> Config:
    """Return today's form of a config from the time when images were the only data."""
    new, points = _plain(config), config.task == "PlaneGAN"
    old_task, data = config.task, new["data"]
    new["task"] = TASKS.get(old_task, old_task)
    num_classes = data.pop("num_classes", 1)
    data.setdefault("feature", "image")
    data.setdefault("resize", False)
    new["condition"] = _condition(new, old_task, num_classes)
    new["space"] = {"name": "Points" if points else "Pixels"}
    autoencoder = new.pop("autoencoder", {})
    if autoencoder.get("run") or autoencoder.get("published"):
        new["space"] = _latents(new, autoencoder)
    _model(new, old_task)
    optimizers = new["optimizer"]
    for optimizer in [optimizers] if "name" in optimizers else optimizers.values():
        for name in ("warmup", "decay"):
            if f"{name}_steps" in optimizer:
                optimizer[name] = optimizer.pop(f"{name}_steps")
    new["evaluation"] = _evaluation(new, old_task)
    return _config(new)


def _dual_layers(config: Config) -> Config:
    """Return a config that lists the MMDiT blocks with a second attention, which are the first."""
    if "dual_depth" not in config.get("model", {}):
        return config
    new = _plain(config)
    new["model"]["dual_layers"] = tuple(range(new["model"].pop("dual_depth")))
    return _config(new)


def _sound_of_data(config: Config) -> Config:
    """Return a config whose condition takes the shape of sounds from the data."""
    if "sound_shape" not in config.get("condition", {}):
        return config
    new = _plain(config)
    del new["condition"]["sound_shape"]
    return _config(new)


def _method_as_read(config: Config) -> Config:
    """Return a config of a few-step student without what its method never read."""
    name, new = config.get("method", {}).get("name"), _plain(config)
    if name in NEVER_GUIDED:
        new["method"].pop("guidance_scale", None)
    if name in WITHOUT_TIMES:
        new["times"] = {"name": "uniform"}
    if name in WITHOUT_DROPOUT:
        new["conditioning_dropout"] = 0.0
    return config if new == config else _config(new)


def _plain(config: Any) -> Any:
    return {n: _plain(v) for n, v in config.items()} if isinstance(config, dict) else config


def _config(value: Any) -> Any:
    return Config({n: _config(v) for n, v in value.items()}) if isinstance(value, dict) else value


def _condition(new: dict, task: str, num_classes: int) -> dict[str, Any]:
    """Return the condition: of text, of classes, or none."""
    if text := new.pop("text", None):
        return {"name": "Prompts", **text, "prompts": new["sampling"].pop("prompts")}
    if new.pop("conditional", task == "ImageDiffusion"):
        return {"name": "Classes", "num_classes": num_classes}
    return {"name": "Unconditional", "num_rows": num_classes}


def _latents(new: dict, autoencoder: dict) -> dict[str, Any]:
    """Return the space of a run on latents, whose data become the images that were encoded."""
    fields = ("run", "weights", "published")
    space = {"name": "Latents", **{name: autoencoder.get(name) for name in fields}}
    encoding = new.pop("encoding", None)
    if new["data"]["name"] == "latents":
        latents, size = new["data"], encoding.pop("size", None)
        space |= {"directory": latents["directory"], "shape": latents["image_shape"]}
        space["batch_size"] = encoding.pop("batch_size", 64)
        new["data"] = {"feature": "image", "resize": bool(size), **encoding}
        decoded = read_record(space["run"]).config.data.image_shape if not size else [size, size, 3]
        new["data"]["image_shape"] = decoded
    return space


def _model(new: dict, task: str) -> None:
    """Rename a network to its class's own name, by which modules are found."""
    model = new["model"]
    if task in ("ImageGAN", "PlaneGAN"):
        module = model.pop("name")
        for player in ("generator", "discriminator"):
            model[player] = {"name": f"{module}.{player.capitalize()}", **model[player]}
    elif module := model.pop("module", None):
        model["name"] = f"{module}.{model['name']}"


def _evaluation(new: dict, task: str) -> dict[str, Any]:
    """Return the evaluation with its measures by name."""
    old, measures = new["evaluation"], {}
    kept = {name: old[name] for name in ("every", "num_samples", "labels") if name in old}
    if task == "Autoencoder":
        measures["reconstructions"] = {"name": "Reconstructions"}
    elif new["condition"]["name"] == "Prompts":
        measures["prompts"] = {"name": "PromptMatch"}
    elif task == "PlaneGAN":
        measures["modes"] = {"name": "PlaneModes"}
    else:
        measures["samples"] = {"name": "Samples"}
    if task in ("ImageGAN", "PlaneGAN"):
        measures["discriminator"] = {"name": "Discriminator"}
    if task == "VariationalAutoencoder":
        count = old["num_importance_samples"]
        measures["bounds"] = {"name": "Bounds", "num_importance_samples": count}
    if old.get("vgg16") and new["condition"]["name"] != "Prompts":
        measures["vgg16"] = {"name": "VGG16Distance"}
    if weights := {name: path for name, path in (old.get("features") or {}).items() if path}:
        measures["features"] = {"name": "PretrainedFeatures", **weights}
        if reference := {name: path for name, path in (old.get("reference") or {}).items() if path}:
            measures["features"]["reference"] = reference
    return {"every": 0, "labels": "balanced", **kept, "measures": measures}
