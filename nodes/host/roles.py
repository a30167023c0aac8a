"""Which rows of a model's batch follow which prompt, and show which picture.

ComfyUI calls the model with several conditionings in one batch, and every guider orders them in a way of its own. So
each is named by its identity while the guider still knows it, and its rows are found by that name.
"""

import torch

CONDITIONINGS, ROLES = "saeuron_conditionings", "saeuron_roles"
APPLIES_TO = ("both", "positive", "negative")


def tell_conditionings(executor, x, timestep, model_options=None, seed=None):
    """PREDICT_NOISE: which list of conditionings is called what is known here, and asked for in `tell_roles`."""
    options = _options(model_options or {})
    # In a tuple: ComfyUI merges dictionaries and lists of these options into others.
    options["transformer_options"][CONDITIONINGS] = tuple(executor.class_obj.conds.items())
    return executor(x, timestep, options, seed)


def tell_roles(executor, model, conds, x_in, timestep, model_options):
    """CALC_COND_BATCH: name each conditioning by its identity, since its index means something else in every guider."""
    options = _options(model_options)
    named = options["transformer_options"].pop(CONDITIONINGS, ())
    roles = [next((name for name, cond in named if cond is given), None) for given in conds]
    options["transformer_options"][ROLES] = tuple(roles)
    return executor(model, conds, x_in, timestep, options)


def rows_of(count: int, options: dict, applies_to: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of ``count`` rows are meant, ``[count]`` booleans, and the number of the picture each shows, ``[count]``.

    Rows come chunk by chunk, one chunk a conditioning; ``cond_or_uncond`` says which conditioning each chunk is.
    """
    pictures = len(options["sigmas"]) if "sigmas" in options else count
    which = options.get("cond_or_uncond") or [0]
    roles = options.get(ROLES) or ()
    row = torch.arange(count)
    chunk = (row // pictures) % len(which)
    names = [(roles[i] if i < len(roles) else None) or ("positive", "negative")[min(i, 1)] for i in which]
    meant = torch.tensor([applies_to == "both" or ("negative" in name) == (applies_to == "negative") for name in names])
    return meant[chunk], row % pictures


def _options(model_options: dict) -> dict:
    return {**model_options, "transformer_options": dict(model_options.get("transformer_options", {}))}
