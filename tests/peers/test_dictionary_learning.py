import json

import pytest
import torch

pytest.importorskip("dictionary_learning", reason="not installed here: run `make test-peers`")

from dictionary_learning.dictionary import GatedAutoEncoder, JumpReluAutoEncoder
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK

from saeuron import SaeuronError, load_sae

D_IN, N = 32, 256


def save(folder, autoencoder, **more):
    """As the library's own training loop saves; it has no function for it."""
    trainer = {"dict_class": type(autoencoder).__name__, "activation_dim": D_IN, "dict_size": N} | more
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    torch.save({name: tensor.cpu() for name, tensor in autoencoder.state_dict().items()}, folder / "ae.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoEncoderTopK(D_IN, N, 8),
        lambda: BatchTopKSAE(D_IN, N, 8),
        lambda: MatryoshkaBatchTopKSAE(D_IN, N, 8, [64, 192]),
    ],
    ids=["topk", "batch_topk", "matryoshka"],
)
def test_its_topk_saes_encode_and_decode_alike(tmp_path, randomise, compare, make):
    autoencoder = randomise(make())
    autoencoder.threshold.fill_(6.5)
    save(tmp_path, autoencoder, k=8)
    compare(tmp_path, autoencoder.encode, autoencoder.decode, D_IN)


def test_its_jumprelu_saes_encode_and_decode_alike(tmp_path, randomise, compare):
    autoencoder = randomise(JumpReluAutoEncoder(D_IN, N))
    save(tmp_path, autoencoder)
    compare(tmp_path, autoencoder.encode, autoencoder.decode, D_IN)


def test_a_backup_of_its_training_is_what_its_final_file_would_be(tmp_path, randomise, compare):
    autoencoder = randomise(BatchTopKSAE(D_IN, N, 8))
    autoencoder.threshold.fill_(2.0)
    save(tmp_path, autoencoder, k=8)
    torch.save({"step": 1, "ae": torch.load(tmp_path / "ae.pt"), "norm_factor": 3.0}, tmp_path / "ae.pt")
    autoencoder.scale_biases(3.0)
    compare(tmp_path, autoencoder.encode, autoencoder.decode, D_IN)


def test_its_other_kinds_are_refused_by_their_class(tmp_path):
    save(tmp_path, GatedAutoEncoder(D_IN, N))
    with pytest.raises(SaeuronError, match=r"config\.json has dict_class 'GatedAutoEncoder'"):
        load_sae(tmp_path)
