import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

import training.diffusion.load
from benchmarks.ldm import Size
from benchmarks.random_sd15 import write
from saeuron import Hookpoint, Recording, SaeuronError, Setting, build_edits
from saeuron.hookpoints import names
from tinycanvas.model import build_text_encoder, load_tokenizer
from training.common.prompts import read_prompts
from training.diffusion.load import SAMPLERS, check_fits, load_model
from training.diffusion.sampling import Sampling, draw_all
from training.sae.record import Record, record
from training.sae.score import score


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' samplers to numpy
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_the_model_s_own_noise_schedule(sampler):
    pipeline = load_model("tinycanvas", sampler=sampler)
    assert type(pipeline.scheduler).__name__ == SAMPLERS[sampler][0]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


def test_tinycanvas_is_loaded_for_inference(pipeline):
    assert not pipeline.unet.training and not any(p.requires_grad for p in pipeline.unet.parameters())
    assert pipeline.unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sampler": "eular"}, "sampler 'eular' is unknown; the nearest are euler, euler-a"),
        ({"model": "nowhere/at-all"}, "model nowhere/at-all does not exist; give `tinycanvas`"),
        ({"device": "tpu"}, "device 'tpu' is not there; use --device cpu"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(monkeypatch, options, complaint):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SaeuronError, match=complaint):
        load_model(**({"model": "tinycanvas"} | options))


def test_what_is_no_stable_diffusion_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(SaeuronError, match=r"could not be loaded: \w") as refused:
            load_model(str(path))
        assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@pytest.fixture
def folder(tmp_path, make_unet):
    """A diffusers folder of a Stable Diffusion 1.x in small, with random weights and a real VAE."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer()
    unet = make_unet((8, 16), (True, False), cross_attention_dim=128, attention_head_dim=2)
    StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                          up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4),
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "model")  # fmt: skip
    return tmp_path / "model"


def test_a_local_diffusers_folder_is_recorded_like_the_built_in_model(folder, tmp_path):
    places = names(load_model(str(folder)).unet)
    assert "unet.up_blocks.1.attentions.1" in places
    config = Record(
        output=tmp_path / "out", model=str(folder), hookpoints=tuple(places), images=2, steps=2, tokens_per_map=4
    )
    widths = {}
    for path in record(config):
        recording = Recording(path)
        assert recording.complete and len(recording) == 2 * 2 * 4
        assert recording.read("shard-00000.safetensors").activations.isfinite().all()
        widths[recording.hookpoint.name] = recording.d_in
    assert widths["unet.up_blocks.1.attentions.1"] == 8 and widths["unet.mid_block.attentions.0"] == 16


def test_an_sae_fits_only_where_name_and_width_do(pipeline, make_sae):
    check_fits(make_sae(), pipeline)
    for made in ({"hookpoint": None}, {"hookpoint": Hookpoint("unet.up_blocks.7")}, {"d_in": 64}):
        with pytest.raises(SaeuronError):
            check_fits(make_sae(**made), pipeline)


def test_a_single_file_is_recorded_and_edited_like_the_built_in_model(small_sd, tmp_path, make_sae, make_table):
    places = names(load_model(str(small_sd)).unet)
    assert len(places) == 16
    named = ("unet.down_blocks.0.attentions.0", "unet.up_blocks.1.attentions.1")
    sizes = {"height": 64, "width": 64, "steps": 2, "tokens_per_map": 4}
    for path in record(Record(output=tmp_path / "out", model=str(small_sd), hookpoints=named, images=2, **sizes)):
        recording = Recording(path)
        assert recording.complete and recording.read("shard-00000.safetensors").activations.isfinite().all()
    pipeline, sae = load_model(str(small_sd)), make_sae()
    check_fits(sae, pipeline)
    sampling = Sampling(steps=2, height=64, width=64)
    assert (
        score(pipeline, sae, read_prompts("tinycanvas:anchor"), sampling, images=2).statistics.counts.sum() == 2 * 2 * 2
    ), "images × steps × kinds"
    edits = {sae.hookpoint: build_edits(sae, make_table(sae), {"star": Setting(latents=64, strength=-20.0)})}
    sampling = Sampling(steps=2, height=64, width=64)
    before, after = (draw_all(pipeline, [{"prompt": "a star"}], [0], sampling, chosen) for chosen in ({}, edits))
    assert after.isfinite().all() and not torch.equal(before, after)


def test_an_xl_folder_is_recorded_at_every_block(tmp_path):
    path = tmp_path / "xl.safetensors"
    write(path, Size(unet=64, vae=32, depths=(0, 1, 2), linear=True, clip=(64, 2), open_clip=(128, 2)), seed=0)
    load_model(str(path)).save_pretrained(tmp_path / "xl")
    pipeline = load_model(str(tmp_path / "xl"))
    assert type(pipeline).__name__ == "StableDiffusionXLPipeline"
    places = names(pipeline.unet)
    options = {"images": 1, "steps": 2, "tokens_per_map": 4, "height": 64, "width": 64}
    for folder in record(
        Record(output=tmp_path / "out", model=str(tmp_path / "xl"), hookpoints=tuple(places), **options)
    ):
        assert Recording(folder).read("shard-00000.safetensors").activations.isfinite().all()
    assert len(places) == 11


def test_a_pipeline_that_is_not_supported_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}', "utf-8")
    with pytest.raises(SaeuronError, match="a KandinskyPipeline is not supported yet; the nearest that are: "):
        load_model(str(tmp_path))


def test_a_file_without_a_tokenizer_anywhere_says_where_to_put_one(small_sd, tmp_path, monkeypatch):
    (tmp_path / "alone.safetensors").symlink_to(small_sd)
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr(training.diffusion.load.CLIPTokenizer, "from_pretrained", offline)
    with pytest.raises(SaeuronError, match="put a folder `tokenizer` with the vocab"):
        load_model(str(tmp_path / "alone.safetensors"))


def test_a_comfyui_lends_its_tokenizer(small_sd, tmp_path, monkeypatch):
    (tmp_path / "alone.safetensors").symlink_to(small_sd)
    shutil.copytree(small_sd.parent / "tokenizer", tmp_path / "comfy" / "sd1_tokenizer")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert load_model(str(tmp_path / "alone.safetensors")).tokenizer.model_max_length == 77


def test_a_pickled_checkpoint_is_refused_unread(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"anything")
    with pytest.raises(SaeuronError, match=r"not a \.safetensors file; convert it"):
        load_model(str(tmp_path / "model.ckpt"))
