"""Every reader of files and of what users write, each with a good example of its files.

A reader does with what it has read what its users do next: what is accepted must also work.
"""

import importlib
import io
import json
import pickle
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save

from saeuron import (
    ConceptStatistics,
    ConceptTable,
    Hookpoint,
    Recording,
    RecordingWriter,
    Setting,
    SparseAutoencoder,
    build_edits,
    choose_settings,
    load_sae,
    read_settings,
    save_sae,
    write_settings,
)
from saeuron.atlas import Atlas, Survey, labels
from saeuron.atlas.cards import curve_of, read_cards
from saeuron.atlas.sheets import heated, to_image, window
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.concept_table import WholeTable
from saeuron.files import read_json
from saeuron.learning import Learner, Lesson
from saeuron.recording import Tokens
from training.common.config import read_config
from training.common.prompts import concepts, read_prompts
from training.common.resume import claim
from training.evaluation.vit import _read as read_weights
from training.sae import checkpoint
from training.sae.commands import Train
from training.sharing.convert import read_class_params, read_pickled_table
from training.sharing.hub import choose

ROOT = Path(__file__).parents[2]
D, N = 8, 24
PLACE = Hookpoint("unet.up_blocks.1.attentions.1")
CONCEPTS = {"cat": "object", "dog": "object", "neon": "style", "oil": "style"}


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_sae(activation: str = "topk", **options) -> SparseAutoencoder:
    sae = SparseAutoencoder(D, N, 4, activation, hookpoint=PLACE, **options).requires_grad_(False)
    sae.W_enc.copy_(random_tensor(N, D))
    sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_enc, dim=1))
    return sae


def make_table(sae: SparseAutoencoder) -> WholeTable:
    statistics = ConceptStatistics(CONCEPTS, [1, 501], N, sae.fingerprint, sae.origin)
    for timestep in (1, 501):
        for number, names in enumerate((["cat", "neon"], ["dog", "oil"], ["cat", "oil"], ["dog", "neon"])):
            statistics.observe(sae, [names], timestep, random_tensor(1, 4, D, seed=number + timestep))
    return WholeTable(statistics)


def use_sae(sae: SparseAutoencoder) -> None:
    sae(torch.ones(2, sae.d_in, dtype=sae.W_enc.dtype))


def use_bundle(bundle: Bundle) -> None:
    use_sae(bundle.sae)
    if bundle.table is not None:
        name = next(iter(bundle.table.concepts), None)
        if name is not None:
            bundle.table.means(name), bundle.table.kind_mean(name)
            for known in (bundle.settings, {}):
                settings = choose_settings(bundle.sae, bundle.table, [name], known)
                for edit in build_edits(bundle.sae, bundle.table, settings):
                    edit(torch.ones(1, 3, bundle.sae.d_in), 400)


def make_atlas(sae: SparseAutoencoder, folder: Path) -> None:
    atlas = Atlas.create(folder, sae, (2, 3), {"steps": 2})
    for number in range(2):
        survey = Survey(sae, 3, 2, 3)
        survey.see(random_tensor(3, 6, D, seed=number), 501)
        images = [to_image(random_tensor(3, 8, 12, seed=9 * number + one)) for one in range(3)]
        atlas.add(survey.finish(), images, ["a red cat", "a dog", "an oil cat"], [f"{number} {one}" for one in "abc"])
    atlas.save()
    read_cards(folder)
    labels.write(folder, {"3": {"text": "cat", "by": "CLIP", "faithfulness": 0.8}})


def use_atlas(folder: Path) -> None:
    atlas, cards = Atlas.load(folder), read_cards(folder)
    sum(cards["frequency"]), [cards["words"][latent] for latent in cards["dead"]]
    labels.join(labels.read(folder))
    atlas.codes(), curve_of(atlas, 3)
    for picture, heat in zip(atlas.strongest.pictures[3].tolist(), atlas.strongest.heat[3], strict=True):
        if picture >= 0:
            image, heat = atlas.picture(picture), heat.float().view(atlas.grid) / 255
            heated(image, heat, 96, window(heat, image.size))


def use_recording(folder: Path) -> None:
    recording = Recording(folder)
    recording.prompts  # noqa: B018
    for _ in recording.batches(4, 0, 0):
        pass
    RecordingWriter(folder, recording.hookpoint, recording.d_in, None, recording.settings)


def pack(name: str) -> types.ModuleType:
    """A module of ``nodes/`` without ComfyUI around it."""
    for part, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes"), ("pack.nodes.host", ROOT / "nodes" / "host")):
        if part not in sys.modules:
            sys.modules[part] = types.ModuleType(part)
            sys.modules[part].__path__ = [str(folder)]
    known = types.ModuleType("folder_paths")
    known.get_full_path = lambda _sort, name: name
    known.get_filename_list = lambda _sort: []
    sys.modules.setdefault("folder_paths", known)
    return importlib.import_module(f"pack.nodes.{name}")


def bytes_of(write: Callable[[Path], object], folder: Path) -> dict[str, bytes]:
    """The files that ``write`` leaves in ``folder``, which is then empty."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shutil.rmtree(folder)
    return found


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def examples(folder: Path) -> dict[str, tuple[dict[str, bytes], Callable[[Path], object]]]:
    """Name → the files of a good example, and what reads the folder that they lie in."""
    sae, found = make_sae(), {}
    table, own = make_table(sae), lambda name, read: lambda place: read(place / name)
    settings = {"cat": Setting(2, -3.0), "neon": Setting(1, -1.0, edit="shift")}

    def layout(place: Path) -> None:
        save_sae(sae, place)
        table.save(place / "table.safetensors")
        write_settings(place / "settings.json", settings)

    found["saeuron"] = bytes_of(layout, folder), lambda place: use_bundle(load_bundle(place))
    jump = make_sae("jumprelu", threshold=torch.full((N,), 0.1))
    found["jumprelu"] = bytes_of(lambda place: save_sae(jump, place), folder), lambda place: use_sae(load_sae(place))
    read_layout = lambda place: use_sae(load_sae(place))  # noqa: E731
    weights = {
        "W_enc": random_tensor(D, N),
        "b_enc": torch.zeros(N),
        "W_dec": random_tensor(N, D),
        "b_dec": torch.zeros(D),
    }
    config = {"architecture": "topk", "d_in": D, "d_sae": N, "k": 4, "metadata": {"hook_name": PLACE.name}}
    found["saelens"] = {"cfg.json": json.dumps(config).encode(), "sae_weights.safetensors": save(weights)}, read_layout
    unboxed = {"encoder.weight": random_tensor(N, D), "decoder.weight": random_tensor(D, N)}
    unboxed |= {"pre_bias": torch.zeros(D), "latent_bias": torch.zeros(N)}
    config = {"d_model": D, "n_dirs_local": N, "k": 4}
    found["sdxl_unbox"] = (
        {
            "config.json": json.dumps(config).encode(),
            "state_dict.pth": saved({"state_dict": unboxed}),
        },
        read_layout,
    )
    linear = {"encoder.weight": random_tensor(N, D), "encoder.bias": torch.zeros(N)}
    linear |= {"decoder.weight": random_tensor(D, N), "b_dec": torch.zeros(D)}
    linear |= {"k": torch.tensor(4), "threshold": torch.tensor(0.1)}
    config = {"trainer": {"dict_class": "BatchTopKSAE", "activation_dim": D, "dict_size": N, "k": 4}}
    found["dictionary_learning"] = (
        {
            "config.json": json.dumps(config).encode(),
            "ae.pt": saved({"ae": linear, "norm_factor": 2.0}),
        },
        read_layout,
    )
    model = {"encoder.final_block.0.weight": random_tensor(N, D), "encoder.final_block.0.bias": torch.zeros(N)}
    model |= {"dictionary._weights": random_tensor(N, D), "dictionary.multiplier": torch.tensor(0.0)}
    config = {"input_dim": D, "nb_concepts": N, "top_k": 4}
    found["overcomplete"] = {"config.json": json.dumps(config).encode(), "model.pt": saved(model)}, read_layout
    bundle = Bundle(sae, table, settings, "# card", "mit")
    written = bytes_of(lambda place: save_bundle(bundle, place / "a.safetensors"), folder)
    found["bundle"] = written, own("a.safetensors", lambda path: use_bundle(load_bundle(path)))
    headers = pack("host.headers")
    found["header"] = written, own("a.safetensors", lambda path: headers.concepts_of(str(path)))
    written = bytes_of(lambda place: table.save(place / "table.safetensors"), folder)

    def use_table(path: Path) -> None:
        read = ConceptTable.load(path)
        for name in list(read.concepts)[:1]:
            read.select(name, 2)
            read.max_other_mean(name)

    found["table"] = written, own("table.safetensors", use_table)

    def record(place: Path) -> None:
        writer = RecordingWriter(place, PLACE, D, [{"prompt": "a cat", "object": "cat"}], {"steps": 2})
        for shard in range(2):
            whole = torch.arange(6)
            writer.write(shard, Tokens(random_tensor(6, D, seed=shard), whole * 0, whole, whole), seed=shard)
        writer.finish()
        (place / "part-00001.json").write_text(
            json.dumps({"settings_hash": writer.manifest["settings_hash"], "shards": {}}), "utf-8"
        )

    found["recording"] = bytes_of(record, folder), use_recording
    written = bytes_of(lambda place: write_settings(place / "settings.json", settings), folder)
    found["settings"] = written, own("settings.json", read_settings)
    lines = b'{"prompt": "a cat", "object": "cat"}\n{"prompt": "b", "concepts": {"style": "neon"}}\n'
    found["prompts"] = {"a.jsonl": lines}, own("a.jsonl", lambda path: concepts(read_prompts(str(path))))
    found["prompt lines"] = {"a.txt": b"a cat\na dog\n"}, own("a.txt", lambda path: read_prompts(str(path)))
    config = {"recording": "a", "output": "b", "k": 3, "lr": 1e-4, "labels": ["object"], "bf16": False, "init": None}
    found["options"] = {"a.json": json.dumps(config).encode()}, own("a.json", lambda path: read_config(path, Train))
    yaml = b"recording: a\nk: 3\nlabels: [object, style]\nsteps: &x 3\nepochs: *x\n"
    found["yaml"] = {"a.yaml": yaml}, own("a.yaml", lambda path: read_config(path, Train))
    lesson = Lesson.of("neon", "style", ["a", "b", "c", "d"], ["e", "f", "g", "h"])

    def learn(place: Path) -> Learner:
        return Learner(sae, lesson, [1, 501], "x", place / "a.lesson.safetensors")

    def begin(place: Path) -> None:
        learner = learn(place)
        for number in range(4):
            learner.observe(number, {t: (random_tensor(1, 4, D, seed=number), None) for t in (1, 501)})

    found["lesson"] = bytes_of(begin, folder), learn
    pickled = {name: random_tensor(2, 4, N).abs().half() for name in CONCEPTS}
    found["pickled table"] = (
        {"cls_a.pkl": pickle.dumps(pickled)},
        own("cls_a.pkl", lambda path: read_pickled_table(path, sae).select("cat", 1)),
    )
    params = {"cat": {"percentile": 99.5, "multiplier": -3.0}, "dog": {"percentile": 90, "multiplier": 1}}
    found["class params"] = (
        {"class_params.pth": saved(params)},
        own("class_params.pth", lambda path: read_class_params(path, N)),
    )
    checkpoint.console.quiet = True
    trained = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(trained.parameters())
    trained(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def resume(place: Path) -> None:
        state = checkpoint.read(place)
        if state:
            checkpoint.restore(state, trained, optimizer, schedule)

    written = bytes_of(lambda place: checkpoint.save(place, "x", 1, 2, trained, optimizer, schedule), folder)
    found["checkpoint"] = written, resume
    found["judge"] = {"a.pth": saved({"model_state_dict": linear})}, own("a.pth", read_weights)
    listing = [
        "unet.up_blocks.1.attentions.1/cfg.json",
        "unet.up_blocks.1.attentions.1/sae.safetensors",
        "a.safetensors",
    ]
    found["listing"] = (
        {"a.json": json.dumps(dict(enumerate(listing))).encode()},
        own("a.json", lambda path: choose("x/y", list(map(str, read_json(path).values())), PLACE.name)),
    )
    options = Train(recording=Path("a"), output=Path("b"))
    found["journal"] = (
        bytes_of(lambda place: claim(options, place, recording="x"), folder),
        lambda place: claim(options, place, recording="x"),
    )
    found["atlas"] = bytes_of(lambda place: make_atlas(sae, place), folder), use_atlas
    latents = pack("latent_text")
    widget = b"251 neon: +8; 12: x0.5 20-80%\n3, heart: off"
    found["latents"] = (
        {"a.txt": widget},
        own("a.txt", lambda path: latents.read_entries(path.read_text("utf-8", "replace"))),
    )
    curve = b"0%: 1, 50%: 0.2"
    found["curve"] = {"a.txt": curve}, own("a.txt", lambda path: latents.read_curve(path.read_text("utf-8", "replace")))
    texts = pack("concept_text")
    widget = 'neon, heart: 0.5\n"a, b": 4 × -8; (cat:50%)'.encode()
    found["widget"] = {"a.txt": widget}, own("a.txt", lambda path: texts.parse(path.read_text("utf-8", "replace")))
    return found
