import importlib.util
import json
import sys

import pytest
import torch

SPEC = importlib.util.find_spec("overcomplete")
if SPEC is None:
    pytest.skip("not installed here: run `make test-peers`", allow_module_level=True)
# Without the package's own __init__, which wants timm and torchvision for things that are not tested here.
sys.modules["overcomplete"] = importlib.util.module_from_spec(SPEC)

from overcomplete.sae import TopKSAE  # noqa: E402

D_IN, N = 32, 256


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_its_topk_saes_encode_and_decode_alike(tmp_path, randomise, compare, multiplier, compiled):
    sae = randomise(TopKSAE(D_IN, N, top_k=8, dictionary_params={"use_multiplier": multiplier}))
    state = {f"{'_orig_mod.' if compiled else ''}{name}": tensor.clone() for name, tensor in sae.state_dict().items()}
    torch.save({"model_state_dict": state} if compiled else state, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps({"input_dim": D_IN, "nb_concepts": N, "top_k": 8}))
    sae.train()
    sae.eval()  # fuses the dictionary that decode reads
    compare(tmp_path, lambda tokens: sae.encode(tokens)[1], sae.decode, D_IN)
