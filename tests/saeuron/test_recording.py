import itertools
import json

import pytest
import torch

import saeuron.recording
from saeuron import Hookpoint, Recording, RecordingWriter, SaeuronError
from saeuron.recording import Tokens, bytes_per_token, settings_digest

HOOKPOINT = Hookpoint("unet.up_blocks.1.attentions.1")
PROMPTS = [{"prompt": "a cat", "object": "cat"}, {"prompt": "a dog", "object": "dog"}]
SETTINGS = {"model": "tinycanvas", "steps": 5}


def rows(shard, count=10):
    """Tokens whose `position` numbers them through the whole recording, so that each row can be told apart."""
    position = torch.arange(count) + shard * count
    return Tokens(position[:, None].expand(count, 3) / 8, position % 2, 901 - position, position)


def open_writer(folder, **options):
    named = {"hookpoint": HOOKPOINT, "d_in": 3, "prompts": PROMPTS, "settings": SETTINGS} | options
    return RecordingWriter(folder, **named)


def record(folder, shards=range(5)):
    writer = open_writer(folder)
    for shard in shards:
        if not writer.has(shard):
            writer.write(shard, rows(shard), seed=shard)
    writer.finish()
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def positions(batches):
    return [batch.position.tolist() for batch in batches]


def test_a_recording_comes_back_as_it_was_written(tmp_path):
    recording = Recording(record(tmp_path))
    assert (recording.hookpoint, recording.d_in, len(recording), recording.complete) == (HOOKPOINT, 3, 50, True)
    assert recording.prompts == PROMPTS and recording.settings == SETTINGS
    for shard, name in enumerate(recording.shards):
        read, written = recording.read(name), rows(shard)
        assert read.activations.dtype == torch.float16
        assert read.position.tolist() != written.position.tolist(), "rows are shuffled"
        read = read.pick(read.position.argsort())
        for column in ("activations", "prompt", "timestep", "position"):
            assert torch.equal(getattr(read, column).double(), getattr(written, column).double()), column


def test_a_token_takes_the_bytes_it_is_said_to_take(tmp_path):
    header = {}
    for count in (10, 1010):
        open_writer(tmp_path / str(count)).write(0, rows(0, count), seed=0)
        header[count] = (tmp_path / str(count) / "shard-00000.safetensors").stat().st_size - count * bytes_per_token(3)
    # The header says offsets in decimal, so it differs by a few digits and its padding.
    assert 0 < header[1010] < 1000 and abs(header[1010] - header[10]) < 32


def test_the_largest_values_of_every_column_survive(tmp_path):
    extreme = Tokens(torch.full((1, 3), 65504.0), *(torch.tensor([n]) for n in (2**32 - 1, 2**16 - 1, 2**16 - 1)))
    open_writer(tmp_path).write(0, extreme, seed=0)
    read = Recording(tmp_path).read("shard-00000.safetensors")
    assert (read.prompt.item(), read.timestep.item(), read.position.item()) == (2**32 - 1, 2**16 - 1, 2**16 - 1)
    assert read.activations.float().max() == 65504


@pytest.mark.parametrize("done", [0, 2, 5])
def test_an_interrupted_recording_is_resumed_to_the_same_files(tmp_path, done):
    record(tmp_path / "at once")
    writer = open_writer(tmp_path / "resumed")
    for shard in range(done):
        writer.write(shard, rows(shard), seed=shard)
    resumed = open_writer(tmp_path / "resumed")
    assert [resumed.has(shard) for shard in range(5)] == [shard < done for shard in range(5)]
    record(tmp_path / "resumed")
    assert files(tmp_path / "resumed") == files(tmp_path / "at once")


def test_the_order_in_which_shards_are_written_does_not_matter(tmp_path):
    record(tmp_path / "a", [0, 1, 2]), record(tmp_path / "b", [2, 0, 1])
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_kill_between_shard_and_manifest_is_resumed_to_the_same_files(tmp_path, monkeypatch):
    record(tmp_path / "at once", [0, 1])
    writer = open_writer(tmp_path / "killed")
    writer.write(0, rows(0), seed=0)
    manifest = (tmp_path / "killed" / "manifest.json").read_bytes()
    writer.write(1, rows(1), seed=1)
    (tmp_path / "killed" / "manifest.json").write_bytes(manifest)
    (tmp_path / "killed" / ".shard-00001.safetensors.99999999.abc.tmp").write_bytes(b"half")
    assert len(Recording(tmp_path / "killed")) == 10
    record(tmp_path / "killed", [0, 1])
    assert files(tmp_path / "killed") == files(tmp_path / "at once")


@pytest.mark.parametrize(
    "other",
    [
        {"settings": SETTINGS | {"steps": 6}},
        {"prompts": PROMPTS[:1]},
        {"hookpoint": Hookpoint(HOOKPOINT.name, "residual")},
        {"d_in": 4},
    ],
    ids=["settings", "prompts", "site", "width"],
)
def test_a_folder_begun_with_other_settings_is_refused_untouched(tmp_path, other):
    before = files(record(tmp_path))
    with pytest.raises(SaeuronError, match=r"was made with .*: choose another folder"):
        open_writer(tmp_path, **other)
    assert files(tmp_path) == before


def test_batches_depend_on_seed_and_epoch_only(tmp_path):
    recording = Recording(record(tmp_path))
    first = positions(recording.batches(8, seed=3, epoch=1))
    torch.manual_seed(99)
    assert positions(Recording(tmp_path).batches(8, seed=3, epoch=1)) == first
    assert positions(recording.batches(8, seed=3, epoch=2)) != first
    assert positions(recording.batches(8, seed=4, epoch=1)) != first


@pytest.mark.parametrize("size", [1, 8, 23, 50, 51])
@pytest.mark.parametrize("interleave", [1, 2, 4])
def test_an_epoch_gives_each_row_at_most_once_and_every_full_batch(tmp_path, size, interleave):
    batches = positions(Recording(record(tmp_path)).batches(size, seed=0, epoch=0, interleave=interleave))
    assert [len(batch) for batch in batches] == [size] * (50 // size)
    seen = [position for batch in batches for position in batch]
    assert len(set(seen)) == len(seen)


def test_a_batch_mixes_shards_and_keeps_its_rows_together(tmp_path):
    (batch,) = Recording(record(tmp_path)).batches(40, seed=0, epoch=0, interleave=5)
    assert len((batch.position[:10] // 10).unique()) > 1
    assert torch.equal(batch.activations[:, 0].float() * 8, batch.position.float())
    assert torch.equal(batch.timestep, 901 - batch.position)


def test_maps_stay_together_only_where_that_is_asked_for(tmp_path):
    def in_runs(batch):
        maps = list(zip(batch.prompt.tolist(), batch.timestep.tolist(), strict=True))
        return len(list(itertools.groupby(maps))) == len(set(maps))

    writer = open_writer(tmp_path)
    number = torch.arange(40)
    writer.write(0, Tokens(torch.zeros(40, 3), number % 2, number // 10, number), seed=0)
    (apart,), (together,) = (Recording(tmp_path).batches(40, 0, 0, by_map=by_map) for by_map in (False, True))
    assert in_runs(together) and not in_runs(apart)
    (default,) = Recording(tmp_path).batches(40, 0, 0)
    assert torch.equal(default.position, apart.position)
    assert sorted(together.position.tolist()) == sorted(apart.position.tolist()) == number.tolist()


def test_settings_are_the_same_in_whatever_order_they_are_said():
    one, other = {"model": "a", "steps": 5}, {"steps": 5, "model": "a"}
    assert settings_digest(one, HOOKPOINT, 3) == settings_digest(other, HOOKPOINT, 3)
    changed = [settings_digest(one | {"steps": 6}, HOOKPOINT, 3), settings_digest(one, HOOKPOINT, 4)]
    changed.append(settings_digest(one, Hookpoint(HOOKPOINT.name, "residual"), 3))
    assert len({settings_digest(one, HOOKPOINT, 3), *changed}) == 4
    assert settings_digest(one | {"images": 7, "batch": 2}, HOOKPOINT, 3) == settings_digest(one, HOOKPOINT, 3)


def test_only_the_named_shards_are_read(tmp_path):
    recording = Recording(record(tmp_path))
    (batch,) = recording.batches(20, seed=0, epoch=0, shards=list(recording.shards)[1:3])
    assert sorted(batch.position.tolist()) == list(range(10, 30))
    assert list(recording.batches(1, seed=0, epoch=0, shards=[])) == []


def test_a_shard_the_manifest_does_not_list_is_ignored(tmp_path):
    record(tmp_path)
    before = positions(Recording(tmp_path).batches(8, seed=0, epoch=0))
    (tmp_path / "shard-00077.safetensors").write_bytes((tmp_path / "shard-00000.safetensors").read_bytes())
    assert len(Recording(tmp_path)) == 50
    assert positions(Recording(tmp_path).batches(8, seed=0, epoch=0)) == before


def test_a_full_disk_leaves_the_finished_shards_and_nothing_half_written(tmp_path, request):
    writer = open_writer(tmp_path)
    writer.write(0, rows(0), seed=0)
    before = files(tmp_path)
    request.getfixturevalue("full_disk")
    with pytest.raises(SaeuronError, match="No space left on device"):
        writer.write(1, rows(1), seed=1)
    assert files(tmp_path) == before
    assert len(Recording(tmp_path)) == 10 and not Recording(tmp_path).complete


def test_a_full_disk_at_the_start_leaves_an_empty_folder(tmp_path, full_disk):
    with pytest.raises(SaeuronError, match="No space left on device"):
        open_writer(tmp_path)
    assert files(tmp_path) == {}


def test_a_folder_that_is_no_recording_is_refused_and_says_what_it_holds(tmp_path):
    with pytest.raises(SaeuronError, match=r"is not a recording: it has no manifest\.json$"):
        Recording(tmp_path)
    record(tmp_path / HOOKPOINT.name)
    with pytest.raises(SaeuronError, match=f"it holds the recordings {HOOKPOINT.name}"):
        Recording(tmp_path)


def test_a_recording_without_shards_is_refused(tmp_path):
    open_writer(tmp_path)
    with pytest.raises(SaeuronError, match="no finished shard"):
        Recording(tmp_path)


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 2}, {"shards": None}, {"d_in": None}])
def test_a_broken_manifest_is_refused_by_name(tmp_path, change):
    path = record(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8")) | change
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}), "utf-8")
    with pytest.raises(SaeuronError, match=r"manifest\.json"):
        Recording(tmp_path)


def test_a_lost_shard_is_named(tmp_path):
    (record(tmp_path) / "shard-00003.safetensors").unlink()
    with pytest.raises(SaeuronError, match=r"lacks shard-00003\.safetensors"):
        Recording(tmp_path)


def test_a_shard_that_is_not_what_the_manifest_says_is_named(tmp_path):
    path = record(tmp_path) / "shard-00003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(SaeuronError, match=r"shard-00003\.safetensors is not a readable"):
        Recording(tmp_path).read(path.name)
    open_writer(tmp_path / "other").write(3, rows(3, 4), seed=0)
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(SaeuronError, match=r"shard-00003\.safetensors is not the shard"):
        Recording(tmp_path).read(path.name)


def test_parts_written_side_by_side_become_what_one_writer_makes(tmp_path):
    record(tmp_path / "alone")
    writers = [open_writer(tmp_path / "together", part=part) for part in range(3)]
    for shard in (4, 0, 3, 1, 2):
        writers[shard % 3].write(shard, rows(shard), seed=shard)
    assert len(Recording(tmp_path / "together")) == 20, "a manifest lists the first part's shards until all are done"
    writers[0].finish()
    assert files(tmp_path / "together") == files(tmp_path / "alone")


def test_what_a_part_wrote_before_an_interrupt_is_found_by_any_number_of_writers(tmp_path):
    record(tmp_path / "alone")
    writers = [open_writer(tmp_path / "resumed", part=part) for part in range(2)]
    writers[1].write(1, rows(1), seed=1), writers[1].write(3, rows(3), seed=3)
    resumed = open_writer(tmp_path / "resumed")
    assert [resumed.has(shard) for shard in range(5)] == [False, True, False, True, False]
    again = open_writer(tmp_path / "resumed", part=1)
    assert again.has(3), "who comes second reads what the first has collected"
    again.write(0, rows(0), seed=0)
    record(tmp_path / "resumed")
    assert files(tmp_path / "resumed") == files(tmp_path / "alone")


def test_a_part_of_another_recording_is_left_out(tmp_path):
    (tmp_path / "part-00001.json").write_text('{"settings_hash": "other", "shards": {"shard-00009.safetensors": 10}}')
    assert list(Recording(record(tmp_path)).shards)[-1] == "shard-00004.safetensors"


def test_a_folder_of_another_block_of_equal_width_is_refused_untouched(tmp_path):
    before = files(record(tmp_path))
    with pytest.raises(SaeuronError, match=r"was made with hookpoint unet\.up_blocks\.1\.attentions\.1 and now it is"):
        open_writer(tmp_path, hookpoint=Hookpoint("unet.up_blocks.1.attentions.2"))
    assert files(tmp_path) == before


def test_what_is_appended_counts_its_prompts_on_from_those_there_are(tmp_path):
    for number, prompts in enumerate((PROMPTS, PROMPTS[:1], PROMPTS)):
        writer = open_writer(tmp_path, prompts=None)
        tokens = rows(0, 4 * len(prompts))
        whole = torch.arange(len(tokens)) % len(prompts)
        writer.append(prompts, Tokens(tokens.activations, whole, tokens.timestep, tokens.position), seed=number)
        assert Recording(tmp_path).complete, "after every shard"
    recording = Recording(tmp_path)
    assert recording.prompts == [*PROMPTS, PROMPTS[0], *PROMPTS]
    assert recording.shards == {f"shard-0000{n}.safetensors": count for n, count in enumerate((8, 4, 8))}
    prompts = [set(recording.read(name).prompt.tolist()) for name in recording.shards]
    assert prompts == [{0, 1}, {2}, {3, 4}]
    assert open_writer(tmp_path, prompts=None).bytes == 20 * bytes_per_token(3)


def test_an_interrupt_while_parts_are_gathered_loses_no_shard(tmp_path, monkeypatch):
    record(tmp_path / "alone")
    writers = [open_writer(tmp_path / "cut", part=part) for part in range(2)]
    for shard in range(5):
        writers[shard % 2].write(shard, rows(shard), seed=shard)

    def interrupted(path, content):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(saeuron.recording, "write_json", interrupted)
        writers[0].finish()
    open_writer(tmp_path / "cut").finish()
    assert files(tmp_path / "cut") == files(tmp_path / "alone")


def test_numbers_too_large_for_half_precision_become_its_largest(tmp_path):
    large = Tokens(torch.tensor([[1e6, -1e6, 2.0]]), *(torch.zeros(1, dtype=torch.long) for _ in range(3)))
    open_writer(tmp_path).write(0, large, seed=0)
    assert Recording(tmp_path).read("shard-00000.safetensors").activations.tolist() == [[65504.0, -65504.0, 2.0]]


def test_a_shard_with_what_is_no_number_is_named(tmp_path):
    broken = Tokens(torch.tensor([[float("nan"), 0, 0]]), *(torch.zeros(1, dtype=torch.long) for _ in range(3)))
    open_writer(tmp_path).write(0, broken, seed=0)
    with pytest.raises(SaeuronError, match=r"shard-00000\.safetensors holds numbers in activations"):
        Recording(tmp_path).read("shard-00000.safetensors")


def test_a_recording_that_grows_says_how_many_images_it_had(tmp_path):
    record(tmp_path)
    more = [*PROMPTS, {"prompt": "a bird", "object": "bird"}]
    writer = open_writer(tmp_path, prompts=more)
    assert writer.planned(3) == [2, 3] and not Recording(tmp_path).complete
    assert Recording(tmp_path).prompts == more
    writer = open_writer(tmp_path, prompts=[*more, more[0]])
    assert writer.planned(4) == [2, 3, 4]
