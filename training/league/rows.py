"""How each row of the league is made."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from saeuron import Hookpoint, read_assignment
from saeuron.checkpoints import Bundle

from ..diffusion.hook import Edit, editing
from ..diffusion.load import variant
from ..diffusion.sampling import generate
from ..evaluation.attack import How, attack
from ..evaluation.measures import Verdicts, measures
from .commands import CONDITIONS, KINDS
from .contest import Contest
from .probes import Outside


def of_target(contest: Contest, method: str, target: str) -> dict:
    """One method, one target: UA, IRA, CRA as ``[hits, total]``, and what else the pictures and activations tell."""
    kind = contest.kinds[target]
    before, ranges = contest.unedited
    setting, cost, outside = None, 0, []
    if method == "none":
        seen = before
    else:
        pipeline, edits = contest.pipeline, {Hookpoint(contest.block(kind)): []}
        if method == "oracle":
            pipeline = contest.oracle([target])
        else:
            setting, cost = contest.setting(method, target)
            edits = contest.edits(method, [target])
        outside = [Outside(ranges[hookpoint]) for hookpoint in edits]
        probed = {hookpoint: [*chain, probe] for (hookpoint, chain), probe in zip(edits.items(), outside, strict=True)}
        seen = dataclasses.replace(contest.protocol, pipeline=pipeline).look(probed)
    verdicts = contest.verdicts(seen)
    bystander = torch.tensor([name != target for name in contest.protocol.asked[kind]])
    shares = outside[0].shares if outside else {"outside_dimensions": 0.0, "outside_norm": 0.0}
    return {
        "method": method,
        "target": target,
        "kind": kind,
        "hits": {name: [rate.hits, rate.total] for name, rate in measures(verdicts, target, kind).items()},
        "collateral": float((seen.features - before.features).norm(dim=1)[bystander].mean()),
        "confidence": float(seen.confidence.mean()),
        **shares,
        "others": others(
            verdicts, kind, [name for name, own in contest.kinds.items() if own == kind and name != target]
        ),
        "setting": dataclasses.asdict(setting) if setting else None,
        "search_images": cost,
    }


def others(verdicts: Verdicts, kind: str, names: Sequence[str]) -> dict[str, float]:
    """How often each of ``names`` is found where it was asked for."""
    found: dict[str, list[bool]] = {name: [] for name in names}
    for asked, right in zip(verdicts.asked[kind], verdicts.right(kind), strict=True):
        if asked in found:
            found[asked].append(right)
    return {name: sum(own) / len(own) for name, own in found.items() if own}


def of_several(contest: Contest, method: str, removed: Sequence[str]) -> dict:
    """Several concepts removed at once: how often they are gone, and the others of each kind still there."""
    if method == "none":
        verdicts = contest.verdicts(contest.unedited[0])
    else:
        verdicts = contest.protocol.verdicts(contest.edits(method, removed))
    return {"method": method, "removed": list(removed)} | gone_and_kept(verdicts, removed)


def gone_and_kept(verdicts: Verdicts, removed: Sequence[str]) -> dict[str, list[int]]:
    """``[hits, total]``: removed concepts that are not found where asked for, and others of each kind that are."""
    counts = {"ua": [0, 0]} | {f"kept_{kind}": [0, 0] for kind in KINDS}
    for kind in KINDS:
        for asked, right in zip(verdicts.asked[kind], verdicts.right(kind), strict=True):
            count = counts["ua"] if asked in removed else counts[f"kept_{kind}"]
            count[0] += right != (asked in removed)
            count[1] += 1
    return counts


def of_condition(contest: Contest, method: str, target: str, name: str) -> dict:
    """One target removed under another sampler, number of steps or size, or from a fine-tuned copy of the model.

    SAE, table and setting stay those of the main table.
    """
    if method != "none":
        verdicts = under_condition(contest, name, contest.edits(method, [target]))
    else:
        contest.bare[name] = verdicts = contest.bare.get(name) or under_condition(contest, name, {})
    rates = measures(verdicts, target, contest.kinds[target])
    hits = {key: [rate.hits, rate.total] for key, rate in rates.items()}
    return {"method": method, "condition": name, "target": target, "hits": hits}


def under_condition(contest: Contest, name: str, edits: Mapping[Hookpoint, Sequence[Edit]]) -> Verdicts:
    """What is found in a picture of each evaluation prompt, drawn as `CONDITIONS` says."""
    wanted = CONDITIONS[name]
    pipeline = contest.oracle([]) if wanted.get("finetuned") else contest.pipeline
    if "sampler" in wanted:
        pipeline = variant(pipeline, sampler=wanted["sampler"])
    changed = {key: value for key, value in wanted.items() if key in ("steps", "height", "width")}
    sampling = dataclasses.replace(contest.protocol.sampling, **changed)
    protocol = dataclasses.replace(contest.protocol.of(*contest.pictures(1)), pipeline=pipeline, sampling=sampling)
    return protocol.verdicts(edits)


def of_attack(contest: Contest, method: str, target: str) -> dict:
    protocol = contest.protocol.of(*contest.pictures(contest.config.attack_seeds))
    how = How(iterations=contest.config.attack_iterations, seed=contest.config.seed)
    return {"method": method} | attack(protocol, contest.edits(method, [target]), target, contest.kinds[target], how)


def of_time(contest: Contest, method: str, target: str, steps: int = 10, repeats: int = 7) -> dict:
    """Milliseconds a denoising step takes with the edit and without, for two guided pictures; medians, in turns."""
    edits = {} if method in ("none", "oracle") else contest.edits(method, [target])
    prompts = [row["prompt"] for row in contest.protocol.rows if row[contest.kinds[target]] == target][:2]
    taken: dict[str, list[float]] = {"unedited": [], "edited": []}
    for _ in range(repeats):
        for name, chain in (("unedited", {}), ("edited", edits)):
            began = time.perf_counter()
            generate(contest.pipeline, prompts, [1, 2], steps=steps, guidance=3.0, taps=editing(chain))
            taken[name].append(1000 * (time.perf_counter() - began) / steps)
    unedited, edited = (statistics.median(values) for values in taken.values())
    return {"method": method, "ms_per_step": edited, "ms_per_step_unedited": unedited}


def about_sae(name: str, reader: Bundle) -> dict:
    """How well an SAE reconstructs, and how many of its assigned latents are their concept's strongest.

    The strongest is told by the table's scores, from anchor pictures that no SAE was trained on.
    """
    metrics = reader.sae.config.get("metrics", {})
    told = metrics.get("concepts", {}).values()
    found = {"sae": name, "block": reader.sae.hookpoint.name} | {key: metrics.get(key) for key in ("fvu", "dead", "l0")}
    scores = [own["auroc"] for own in told if own["auroc"] is not None]
    if told:
        strongest = {name: int(reader.table.scores(name).mean(0).argmax()) for name in reader.table.concepts}
        assignment = read_assignment(reader.sae)
        found["centralised"] = sum(assignment[name] == own for name, own in strongest.items()) / len(strongest)
        found["auroc"] = statistics.mean(scores) if scores else None
    return found
