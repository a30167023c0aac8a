import pytest
import torch
from safetensors.torch import save_file

from saeuron import SaeuronError
from training.diffusion.load import identity, load_model

PLACE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def factors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 128, generator=generator), torch.randn(128, 2, generator=generator)


def weight(pipeline):
    return pipeline.unet.get_submodule(PLACE).weight


@pytest.mark.parametrize(("convention", "scale"), [("peft", 1.0), ("kohya", 0.5)])
def test_a_lora_is_added_to_the_weights_that_it_names(pipeline, tmp_path, factors, convention, scale):
    down, up = factors
    name = {"peft": f"unet.{PLACE}", "kohya": f"lora_unet_{PLACE.replace('.', '_')}"}[convention]
    ends = {"peft": ("lora_A", "lora_B"), "kohya": ("lora_down", "lora_up")}[convention]
    tensors = {f"{name}.{ends[0]}.weight": down, f"{name}.{ends[1]}.weight": up}
    tensors |= {f"{name}.alpha": torch.tensor(1.0)} if convention == "kohya" else {}  # half of the rank
    save_file(tensors, tmp_path / "lora.safetensors")
    changed = load_model("tinycanvas", lora=tmp_path / "lora.safetensors")
    torch.testing.assert_close(weight(changed), weight(pipeline) + scale * up @ down, rtol=1e-5, atol=1e-5)
    assert identity("tinycanvas", changed) != identity("tinycanvas", pipeline) == identity("tinycanvas", pipeline)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"unet.nowhere.lora_A.weight": (2, 128), "unet.nowhere.lora_B.weight": (128, 2)}, "does not fit this model"),
        ({f"unet.{PLACE}.lora_A.weight": (2, 64), f"unet.{PLACE}.lora_B.weight": (128, 2)}, "does not fit this model"),
        ({f"unet.{PLACE}.lora_A.weight": (2, 128)}, "does not fit this model"),
        ({"something": (2, 2)}, "lora"),
    ],
)
def test_a_lora_of_another_model_is_refused_in_one_line(tmp_path, tensors, complaint):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(SaeuronError, match=complaint) as refused:
        load_model("tinycanvas", lora=tmp_path / "lora.safetensors")
    assert "\n" not in str(refused.value)
