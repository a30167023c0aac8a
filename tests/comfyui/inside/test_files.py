"""SAE Loader and the files: what is chosen is what is read."""

from dataclasses import replace

import folder_paths
import pytest


@pytest.fixture
def saes(tmp_path, monkeypatch):
    """``models/saes``, empty but for TinyCanvas's own."""
    paths, extensions = folder_paths.folder_names_and_paths["saes"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "saes", ([str(tmp_path), *paths], extensions))
    folder_paths.filename_list_cache.pop("saes", None)
    yield tmp_path
    folder_paths.filename_list_cache.pop("saes", None)


@pytest.fixture
def two_saes(pack, saes, sae):
    """A bundle and, in the same folder, another SAE in SAeUron's layout, with a table of its own."""
    statistics = pack("saeuron", "").ConceptStatistics
    other = pack("saeuron.autoencoder", "").SparseAutoencoder(128, 256, 4, hookpoint=sae.hookpoint)
    pack("saeuron", "").save_sae(other, saes / "both")
    statistics({"this": "thing", "that": "thing"}, [981, 1], 256, other.fingerprint).save(
        saes / "both" / "table.safetensors"
    )
    pack("saeuron.checkpoints", "").save_bundle(sae.bundle, saes / "both" / "mine.safetensors")
    return {"both/mine.safetensors": sae.sae.fingerprint, "both/sae.safetensors": other.fingerprint}


def test_the_sae_that_is_chosen_is_the_one_that_is_loaded(pack, two_saes):
    loader = pack("loader").SaeLoader
    assert set(two_saes) <= set(pack("host.files").names())
    for name, fingerprint in two_saes.items():
        loaded = loader.execute(name).args[0]
        assert loaded.sae.fingerprint == fingerprint and loaded.name == name
    stamps = {name: loader.fingerprint_inputs(name) for name in two_saes}
    table = pack("host.files").path("both/table.safetensors")
    table.touch()
    assert {name: loader.fingerprint_inputs(name) != before for name, before in stamps.items()} == {
        "both/mine.safetensors": False,
        "both/sae.safetensors": True,
    }


def test_concepts_are_known_before_an_sae_is_loaded(pack, two_saes, sae):
    headers = pack("host.headers")
    assert headers.concepts_of("both/mine.safetensors").concepts == sae.bundle.table.concepts
    assert headers.concepts_of("both/sae.safetensors").concepts == {"this": "thing", "that": "thing"}
    table = "both/table.safetensors"
    assert headers.concepts_of("both/sae.safetensors", table).concepts == {"this": "thing", "that": "thing"}
    with pytest.raises(ValueError, match="was made with the SAE"):
        headers.concepts_of("both/mine.safetensors", table)


def test_what_a_header_tells_follows_the_file(pack, saes, sae):
    headers, checkpoints = pack("host.headers"), pack("saeuron.checkpoints", "")
    checkpoints.save_bundle(sae.bundle, saes / "one.safetensors")
    assert "neon" in headers.concepts_of("one.safetensors").concepts
    checkpoints.save_bundle(replace(sae.bundle, table=None), saes / "one.safetensors")
    assert headers.concepts_of("one.safetensors") is None
