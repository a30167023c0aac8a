"""``pull`` and ``push`` against a small stand-in of the hub's HTTP interface on loopback."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from saeuron import Hookpoint, SaeuronError, Setting, load_sae, save_sae
from saeuron.checkpoints import Bundle, load_bundle, save_bundle
from saeuron.checkpoints.canonical import hookpoint_of
from training.__main__ import main
from training.sharing.hub import Pull, Push, choose, listing

# The hub's client uploads in a way that its HTTP library has come to discourage.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

UP1, UP2 = "unet.up_blocks.1.attentions.1", "unet.up_blocks.1.attentions.2"


def in_lfs(name: str) -> bool:
    return name.endswith((".safetensors", ".pth", ".pt"))


def checksum(name: str, content: bytes) -> str:
    """As the hub names contents: SHA-256 of large files, git's SHA-1 of the others."""
    if in_lfs(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories as ``{name: [files of each commit]}``; ``tamper`` are names whose contents arrive changed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.uploads: dict[str, bytes] = {}
        self.tamper: set[str] = set()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def commit_of(self, repository: str, number: int) -> str:
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()

    def at(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories[repository]
        for number, files in enumerate(commits):
            commit = self.commit_of(repository, number)
            if revision == commit or (revision == "main" and number == len(commits) - 1):
                return commit, files
        return None


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_arguments) -> None:
        pass

    def send(self, content: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(content).encode(), status, Content_Type="application/json", **headers)

    def read_json(self) -> list[dict]:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        return [json.loads(line) for line in content.splitlines()]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        repository = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repository not in self.server.repositories:
            return self.send_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        revision = parts[5] if parts[0] == "api" and len(parts) > 5 else "main" if parts[0] == "api" else parts[3]
        found = self.server.at(repository, revision)
        if found is None:
            return self.send_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        commit, files = found
        if parts[0] == "api":
            listed = []
            for name, content in files.items():
                entry = {"rfilename": name, "size": len(content), "blobId": checksum("", content)}
                if in_lfs(name):
                    entry["lfs"] = {"size": len(content), "sha256": checksum(name, content), "pointerSize": 130}
                listed.append(entry)
            return self.send_json({"id": repository, "modelId": repository, "sha": commit, "siblings": listed})
        name = "/".join(parts[4:])
        if name not in files:
            return self.send_json({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[name]
        etag = f'"{checksum(name, content)}"'
        if name in self.server.tamper:
            content = content[:-1] + bytes([content[-1] ^ 1])
        return self.send(content, ETag=etag, X_Repo_Commit=commit, X_Linked_Size=str(len(content)))

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        if "Content-Length" in self.headers:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        else:  # in chunks
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.uploads[self.path.rsplit("/", 1)[-1]] = content
        self.send()

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        lines = self.read_json()
        if path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            if name in self.server.repositories:
                return self.send_json({"url": f"{self.server.url}/{name}", "error": "You already created it"}, 409)
            self.server.repositories[name] = [{}]
            return self.send_json({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path.endswith("/objects/batch"):
            objects = [
                file | {"actions": {"upload": {"href": f"{self.server.url}/upload/{file['oid']}"}}}
                for file in lines[0]["objects"]
            ]
            return self.send_json({"transfer": "basic", "objects": objects})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if in_lfs(file["path"]) else "regular",
                    "shouldIgnore": False,
                }
                for file in lines[0]["files"]
            ]
            return self.send_json({"files": modes})
        files = dict(self.server.repositories[repository][-1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.server.uploads[value["oid"]]
        self.server.repositories[repository].append(files)
        commit = self.server.commit_of(repository, len(self.server.repositories[repository]) - 1)
        url = f"{self.server.url}/{repository}/commit/{commit}"
        return self.send_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, running, with this process's hub client turned to it and to an empty cache."""
    from huggingface_hub import constants

    server = Hub()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def files_of(tmp_path, make_sae):
    """The files of an SAE's folder as its authors publish it, without ours in cfg.json."""

    def make(seed=0) -> dict[str, bytes]:
        folder = tmp_path / "making"
        save_sae(make_sae(seed=seed, hookpoint=None), folder)
        config = json.loads((folder / "cfg.json").read_text())
        for ours in ("format", "version", "threshold", "fingerprint", "base_model"):
            config.pop(ours)
        return {"cfg.json": json.dumps(config).encode(), "sae.safetensors": (folder / "sae.safetensors").read_bytes()}

    return make


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


@pytest.fixture
def saeuron(hub, files_of):
    """bcywinski/SAeUron as it is laid out: one folder a hookpoint."""
    readme = {"README.md": b"# SAeUron\n", ".gitattributes": b""}
    hub.repositories["bcywinski/SAeUron"] = [readme | under(UP1, files_of(1)) | under(UP2, files_of(2))]
    return hub


@pytest.mark.parametrize(("hookpoint", "seed"), [(UP1, 1), (UP2, 2), ("attentions.2", 2)])
def test_saeuron_s_saes_are_pulled_by_their_hookpoint(saeuron, make_sae, tmp_path, hookpoint, seed):
    assert main(["pull", "bcywinski/SAeUron", "--hookpoint", hookpoint, "--output", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "SAeUron" / (UP1 if seed == 1 else UP2)
    sae = load_sae(folder)
    assert sae.fingerprint == make_sae(seed=seed).fingerprint and sae.hookpoint == Hookpoint(folder.name)
    assert {path.name for path in folder.iterdir()} == {"cfg.json", "sae.safetensors", "pull.config.json"}
    asked = {line.split(UP1)[-1] for line in saeuron.asked if line.startswith("GET") and "/resolve/" in line}
    assert len(asked) == 2, "only the two files of this SAE are fetched"


def test_the_commit_is_told_and_kept(saeuron, tmp_path, capfd):
    assert main(["pull", "bcywinski/SAeUron", "--hookpoint", UP1, "--output", str(tmp_path / "out")]) == 0
    commit = saeuron.commit_of("bcywinski/SAeUron", 0)
    assert f"revision {commit}" in capfd.readouterr().err
    config = json.loads((tmp_path / "out" / "SAeUron" / UP1 / "pull.config.json").read_text())
    assert (config["repository"], config["revision"]) == ("bcywinski/SAeUron", commit)


def test_a_pinned_revision_stays_what_it_was(saeuron, make_sae, files_of, tmp_path):
    before = saeuron.commit_of("bcywinski/SAeUron", 0)
    saeuron.repositories["bcywinski/SAeUron"].append(under(UP1, files_of(7)))
    Pull(repository="bcywinski/SAeUron", hookpoint=UP1, revision=before, output=tmp_path / "old").run()
    Pull(repository="bcywinski/SAeUron", hookpoint=UP1, revision="main", output=tmp_path / "new").run()
    fingerprints = [load_sae(tmp_path / when / "SAeUron" / UP1).fingerprint for when in ("old", "new")]
    assert fingerprints == [make_sae(seed=seed).fingerprint for seed in (1, 7)]


def test_saemnesia_s_sae_lies_at_the_root_and_is_up_1_1_s(hub, files_of, make_sae, tmp_path):
    hub.repositories["leno3003/SAEmnesia"] = [files_of(3) | under("earlier", files_of(4))]
    for hookpoint in (None, UP1):
        Pull(repository="leno3003/SAEmnesia", hookpoint=hookpoint, output=tmp_path / str(hookpoint)).run()
        sae = load_sae(tmp_path / str(hookpoint) / "SAEmnesia" / UP1)
        assert sae.fingerprint == make_sae(seed=3).fingerprint and sae.hookpoint == Hookpoint(UP1)


def test_what_lies_beside_an_sae_comes_along(hub, files_of, make_sae, make_table, tmp_path):
    make_table(make_sae(seed=5)).save(tmp_path / "table.safetensors")
    extra = {"table.safetensors": (tmp_path / "table.safetensors").read_bytes(), "settings.json": b'{"concepts": {}}'}
    hub.repositories["some/one"] = [files_of(5) | extra]
    Pull(repository="some/one", output=tmp_path / "out").run()
    assert load_bundle(tmp_path / "out" / "one" / "sae").table is not None


def test_without_the_hub_the_cache_serves(saeuron, monkeypatch, tmp_path):
    from huggingface_hub import constants

    Pull(repository="bcywinski/SAeUron", hookpoint=UP1, output=tmp_path / "online").run()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    saeuron.asked.clear()
    Pull(repository="bcywinski/SAeUron", hookpoint=UP1, output=tmp_path / "offline").run()
    folders = [tmp_path / when / "SAeUron" / UP1 for when in ("online", "offline")]
    for name in ("cfg.json", "sae.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert saeuron.asked == []
    with pytest.raises(SaeuronError, match="is not in the cache and the hub is out of reach: Cannot reach"):
        Pull(repository="some/other", output=tmp_path / "other").run()


def test_what_the_cache_holds_is_checked_too(saeuron, monkeypatch, tmp_path):
    from huggingface_hub import constants

    Pull(repository="bcywinski/SAeUron", hookpoint=UP1, output=tmp_path / "online").run()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (spoilt,) = (tmp_path / "cache").rglob("sae.safetensors")
    content = spoilt.read_bytes()
    spoilt.resolve().write_bytes(content[:-1] + b"x")
    with pytest.raises(SaeuronError, match="has the checksum"):
        Pull(repository="bcywinski/SAeUron", hookpoint=UP1, output=tmp_path / "offline").run()


@pytest.mark.parametrize("name", ["cfg.json", "sae.safetensors"])
def test_a_file_that_arrives_changed_is_refused_and_not_copied(saeuron, tmp_path, name):
    saeuron.tamper.add(f"{UP1}/{name}")
    with pytest.raises(
        SaeuronError, match=rf"{name} of bcywinski/SAeUron has the checksum \w+ here and \w+ on the hub"
    ):
        Pull(repository="bcywinski/SAeUron", hookpoint=UP1, output=tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["bcywinski/SAeUron"], f"holds 2 SAEs; name one with --hookpoint: {UP1}, {UP2}"),
        (
            ["bcywinski/SAeUron", "--hookpoint", "mid_block"],
            f"holds 0 that --hookpoint mid_block fits; .* {UP1}, {UP2}",
        ),
        (["bcywinski/SAeUron", "--revision", "v2"], "at v2 is not on the hub, or not for you"),
        (["bcywinski/nothing"], "bcywinski/nothing at main is not on the hub, or not for you"),
        (["not a name"], "is not on the hub, or not for you"),
        (["some/text"], "some/text holds no SAE of a layout this program reads"),
    ],
)
def test_what_cannot_be_pulled_is_refused_with_what_there_is(saeuron, tmp_path, capfd, arguments, complaint):
    saeuron.repositories["some/text"] = [{"README.md": b"text"}]
    assert main(["pull", *arguments, "--output", str(tmp_path / "out")]) == 2
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1 and not (tmp_path / "out").exists()
    with pytest.raises(SaeuronError, match=complaint):
        raise SaeuronError(told[0])


def test_every_layout_is_found_among_a_repository_s_files():
    final = "unet.mid_block.attentions.0_k10_hidden5120_auxk256_bs4096_lr0.0001/final"
    files = [f"{final}/{name}" for name in ("config.json", "mean.pt", "state_dict.pth", "std.pt")]
    files += ["a/cfg.json", "a/sae_weights.safetensors", "b/config.json", "b/ae.pt", "c/config.json", "c/model.pt"]
    files += ["shared.safetensors", "lonely/ae.pt"]
    expected = {
        "unet.mid_block.attentions.0": (final, [f"{final}/config.json", f"{final}/state_dict.pth"]),
        "a": ("a", ["a/cfg.json", "a/sae_weights.safetensors"]),
        "b": ("b", ["b/config.json", "b/ae.pt"]),
        "c": ("c", ["c/config.json", "c/model.pt"]),
        "shared": ("", ["shared.safetensors"]),
    }
    for hookpoint in ("unet.mid_block.attentions.0", "b", "c", "shared"):
        assert choose("some/one", files, hookpoint) == expected[hookpoint]
    assert choose("some/one", files, "a") == expected["a"], "the exact name wins over those that contain it"


@pytest.mark.parametrize(
    ("repository", "files"),
    [
        ("antoniomari/SAE_flux_18", ["config.json", "state_dict.pth"]),
        ("one/cc3m-FLUX.1-dev.transformer_blocks.18-1", ["config.json", "model.safetensors"]),
    ],
)
def test_what_only_its_repositorys_name_says_is_kept_in_the_folders(repository, files):
    place = repository.split("/")[1]
    assert choose(repository, [*files, "README.md"]) == (place, files)
    assert hookpoint_of(Path(place)).name == "transformer.transformer_blocks.18"


def test_what_cannot_be_used_is_not_fetched():
    with pytest.raises(SaeuronError, match="read the text's stream"):
        choose("one/cc3m-FLUX.1-dev.transformer_blocks.18-0", ["config.json", "model.safetensors"])
    with pytest.raises(SaeuronError, match="Orbax checkpoints of JAX"):
        choose("nev/flux1-saes", ["double_9/_CHECKPOINT_METADATA", "double_9/default/data"])


@pytest.fixture
def bundle(make_sae, make_table, tmp_path):
    sae = make_sae(seed=9)
    path = tmp_path / "neon.safetensors"
    save_bundle(Bundle(sae, make_table(sae), {"neon": Setting(2)}, "# Neon\n", "mit"), path)
    return path


def test_a_bundle_is_pushed_and_pulled_back_the_same(hub, bundle, tmp_path, capfd):
    assert main(["push", str(bundle), "--repository", "me/neon"]) == 0
    files = hub.repositories["me/neon"][-1]
    assert files["neon.safetensors"] == bundle.read_bytes()
    assert files["README.md"].decode().startswith("---\nlicense: mit\n") and b"# Neon" in files["README.md"]
    assert hub.commit_of("me/neon", 1) in capfd.readouterr().err
    assert main(["pull", "me/neon", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "neon" / "neon.safetensors").read_bytes() == bundle.read_bytes()


def test_a_repository_s_own_card_is_left_alone(hub, bundle):
    hub.repositories["me/neon"] = [{"README.md": b"mine"}]
    Push(bundle=bundle, repository="me/neon").run()
    assert hub.repositories["me/neon"][-1]["README.md"] == b"mine"


def test_an_upload_that_arrives_changed_is_told(hub, bundle, monkeypatch):
    real = Hub.commit_of

    def spoil(self, repository, number):
        if "neon.safetensors" in self.repositories[repository][-1]:
            self.repositories[repository][-1]["neon.safetensors"] = b"other"
        return real(self, repository, number)

    monkeypatch.setattr(Hub, "commit_of", spoil)
    with pytest.raises(SaeuronError, match=r"neon\.safetensors has the checksum \w+ here and \w+ on the hub"):
        Push(bundle=bundle, repository="me/neon").run()


def test_only_bundles_are_pushed(hub, make_sae, tmp_path):
    save_sae(make_sae(), tmp_path / "sae")
    for path in (tmp_path / "sae", tmp_path / "none.safetensors"):
        with pytest.raises(SaeuronError, match="is not a bundle: make one with `convert`"):
            Push(bundle=path, repository="me/neon").run()
    assert "me/neon" not in hub.repositories


def test_a_listing_names_every_file_s_checksum(saeuron, files_of):
    commit, listed = listing("bcywinski/SAeUron", "main")
    assert commit == saeuron.commit_of("bcywinski/SAeUron", 0)
    for name, content in under(UP2, files_of(2)).items():
        assert listed[name] == checksum(name, content)


def test_the_usual_environment_variables_are_honoured(saeuron, make_sae, tmp_path):
    """In a process of its own, since the client reads them once: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE."""
    command = [sys.executable, "-m", "training", "pull", "bcywinski/SAeUron", "--hookpoint", UP1]
    environment = os.environ | {"HF_ENDPOINT": saeuron.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)
    for offline in ("0", "1"):
        output = tmp_path / f"out-{offline}"
        ended = subprocess.run(
            [*command, "--output", str(output)],
            cwd=Path(__file__).parents[3],
            env=environment | {"HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert load_sae(output / "SAeUron" / UP1).fingerprint == make_sae(seed=1).fingerprint
        saeuron.repositories["bcywinski/SAeUron"] = []  # whoever asks from here on gets nothing
