import pytest

sae_lens = pytest.importorskip("sae_lens", reason="not installed here: run `make test-peers`")

from sae_lens import (  # noqa: E402
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

from saeuron import SaeuronError, load_sae  # noqa: E402

SIZES = {"d_in": 32, "d_sae": 256}
PLAIN, UNCENTRED = {}, {"apply_b_dec_to_input": False}
RESCALED = {"rescale_acts_by_decoder_norm": True}


@pytest.mark.parametrize("options", [PLAIN, UNCENTRED, RESCALED, UNCENTRED | RESCALED])
def test_its_topk_saes_encode_and_decode_alike(tmp_path, randomise, compare, options):
    sae = randomise(TopKSAE(TopKSAEConfig(**SIZES, k=8, **options)))
    sae.save_model(tmp_path)
    compare(tmp_path, sae.encode, sae.decode, 32)


@pytest.mark.parametrize("options", [PLAIN, UNCENTRED])
@pytest.mark.parametrize(("kind", "config"), [(JumpReLUSAE, JumpReLUSAEConfig), (StandardSAE, StandardSAEConfig)])
def test_its_jumprelu_and_standard_saes_encode_and_decode_alike(tmp_path, randomise, compare, kind, config, options):
    sae = randomise(kind(config(**SIZES, **options)))
    sae.save_model(tmp_path)
    compare(tmp_path, sae.encode, sae.decode, 32)


@pytest.mark.parametrize("options", [{"rescale_acts_by_decoder_norm": False}, RESCALED])
def test_its_batchtopk_saes_encode_and_decode_as_their_export_does(tmp_path, randomise, compare, options):
    sae = randomise(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**SIZES, k=8, **options)))
    sae.topk_threshold.fill_(3.5)
    sae.save_inference_model(tmp_path)
    exported = SAE.load_from_disk(tmp_path)
    compare(tmp_path, exported.encode, exported.decode, 32)


@pytest.mark.parametrize("kind", ["constant_norm_rescale", "layer_norm", "expected_average_only_in"])
def test_saes_that_normalise_their_input_are_refused_by_the_key(tmp_path, kind):
    TopKSAE(TopKSAEConfig(**SIZES, k=8, normalize_activations=kind)).save_model(tmp_path)
    with pytest.raises(SaeuronError, match=rf"cfg\.json sets normalize_activations to '{kind}'"):
        load_sae(tmp_path)
