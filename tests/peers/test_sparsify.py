import pytest
import torch

sparsify = pytest.importorskip("sparsify", reason="not installed here: run `make test-peers`")

from sparsify.config import SparseCoderConfig  # noqa: E402

from saeuron import SaeuronError, load_sae  # noqa: E402

D_IN = 32


def make(folder, randomise, **options):
    coder = randomise(sparsify.SparseCoder(D_IN, SparseCoderConfig(**({"expansion_factor": 8, "k": 8} | options))))
    coder.save_to_disk(folder)
    return coder


@pytest.mark.parametrize("options", [{}, {"num_latents": 100}, {"multi_topk": True, "normalize_decoder": False}])
def test_its_autoencoders_encode_and_decode_alike(tmp_path, randomise, compare, options):
    coder = make(tmp_path, randomise, **options)

    def encode(tokens):
        code = coder.encode(tokens)
        return torch.zeros(len(tokens), coder.num_latents).scatter(1, code.top_indices, code.top_acts)

    def decode(code):
        values, latents = code.topk(coder.cfg.k)
        return coder.decode(values, latents)

    compare(tmp_path, encode, decode, D_IN)


@pytest.mark.parametrize("options", [{"transcode": True}, {"skip_connection": True}, {"activation": "groupmax"}])
def test_its_other_kinds_are_refused_by_their_key(tmp_path, randomise, options):
    make(tmp_path, randomise, **options)
    with pytest.raises(SaeuronError, match=rf"cfg\.json sets {next(iter(options))}"):
        load_sae(tmp_path)
