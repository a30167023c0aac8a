"""``pull`` and ``push``: SAEs from and to the Hugging Face Hub, each file checked against its published checksum."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from saeuron import SaeuronError
from saeuron.checkpoints import LAYOUTS, load_bundle, load_sae
from saeuron.checkpoints.canonical import hookpoint_of
from saeuron.files import write_atomically

from ..common.config import save_config
from ..common.progress import console
from .commands import Pull, Push

# Repositories whose root holds an SAE that does not say where it reads.
ROOTS = {"leno3003/SAEmnesia": "unet.up_blocks.1.attentions.1"}
BESIDE = ("table.safetensors", "settings.json")


def pull(config: Pull) -> None:
    commit, listed = listing(config.repository, config.revision)
    place, names = choose(config.repository, list(listed), config.hookpoint)
    fetched = [fetch(config.repository, name, config.revision, commit, listed[name]) for name in names]
    folder = config.output / config.repository.split("/")[-1] / place
    for path in fetched:
        write_atomically(folder / path.name, lambda temporary, path=path: shutil.copyfile(path, temporary))
    found = folder if place else folder / fetched[0].name
    sae = load_sae(found)
    save_config(dataclasses.replace(config, revision=commit), folder)
    reads = f" at {sae.hookpoint.name} ({sae.hookpoint.site})" if sae.hookpoint else ""
    console.print(f"{found}: SAE of {sae.d_in} → {sae.n_latents}{reads}, revision {commit}", soft_wrap=True)


def push(config: Push) -> None:
    if config.bundle.suffix != ".safetensors" or not config.bundle.is_file():
        raise SaeuronError(f"{config.bundle} is not a bundle: make one with `convert` and give its .safetensors file")
    bundle = load_bundle(config.bundle)
    hub = HfApi()
    try:
        hub.create_repo(config.repository, private=config.private, exist_ok=True)
        files = [CommitOperationAdd(config.bundle.name, str(config.bundle))]
        if bundle.card and not hub.file_exists(config.repository, "README.md"):
            files.append(CommitOperationAdd("README.md", _readme(bundle.card, bundle.licence).encode()))
        message = f"SAE {bundle.sae.fingerprint}"
        made = hub.create_commit(config.repository, files, commit_message=message, revision=config.revision)
    except Exception as error:  # the hub and the network have many ways to fail; all mean the same to the user
        raise SaeuronError(f"{config.repository} could not be written: {_reason(error)}") from error
    commit, listed = listing(config.repository, made.oid)
    if config.bundle.name not in listed:
        raise SaeuronError(f"{config.bundle.name} did not arrive at {config.repository}: run the command again")
    _check(config.bundle, listed[config.bundle.name], config.bundle.name)
    console.print(f"{config.bundle.name} is at {config.repository}, revision {commit}", soft_wrap=True)


def listing(repository: str, revision: str) -> tuple[str, dict[str, str]]:
    """The commit that ``revision`` names, and its files: name → SHA-256, or git's SHA-1 of one stored in git itself.

    Where the hub is out of reach, both are what the cache holds; a file of unknown checksum has an empty one.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise SaeuronError(f"{repository} at {revision} is not on the hub, or not for you: {_reason(error)}") from error
    except Exception as error:  # no network, HF_HUB_OFFLINE, a hub that is down
        return _cached(repository, revision, error)
    return info.sha, {
        file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or "" for file in info.siblings or []
    }


def _cached(repository: str, revision: str, reason: Exception) -> tuple[str, dict[str, str]]:
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:
        raise SaeuronError(
            f"{repository} at {revision} is not in the cache and the hub is out of reach: {_reason(reason)}"
        ) from reason
    files = (path for path in folder.rglob("*") if path.is_file())
    # The cache names a file's contents by their checksum and links to them, where the system has links.
    return folder.name, {p.relative_to(folder).as_posix(): p.resolve().name if p.is_symlink() else "" for p in files}


def choose(repository: str, files: list[str], hookpoint: str | None = None) -> tuple[str, list[str]]:
    """Which of a repository's ``files`` make up the SAE that ``hookpoint`` names, and the folder they belong in.

    An SAE is a folder of any layout in LAYOUTS, or a bundle, whose folder is empty here. Without ``hookpoint`` it is
    the only one, or the one at the root. Raises SaeuronError with those there are.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    root = _root(repository)
    for name in files:
        folder, _, last = name.rpartition("/")
        if any(part in ("", ".", "..") or set(part) & set(":\\") for part in name.split("/")):
            raise SaeuronError(f"{repository} lists a file {name!r}, which would lie outside its folder")
        start = f"{folder}/" if folder else ""
        if last in LAYOUTS and start + LAYOUTS[last][0] in files:
            beside = [start + extra for extra in BESIDE if start + extra in files]
            place = folder or root
            found.setdefault(place, (place, [start + LAYOUTS[last][0], name, *beside]))
        elif last.endswith(".safetensors") and last not in (*LAYOUTS, *BESIDE):
            found[name] = ("", [name])
    if hookpoint is not None:
        fitting = [place for place in found if place == hookpoint] or [place for place in found if hookpoint in place]
    else:
        fitting = [root] if root in found else list(found)
    if len(fitting) == 1:
        return found[fitting[0]]
    if not found:
        jax = any(name.endswith("_CHECKPOINT_METADATA") for name in files)
        held = "Orbax checkpoints of JAX, to be converted with JAX" if jax else "no SAE of a layout this program reads"
        raise SaeuronError(f"{repository} holds {held}")
    asked = f"{len(fitting)} that --hookpoint {hookpoint} fits" if hookpoint is not None else f"{len(found)} SAEs"
    among = ", ".join(sorted(fitting or found)[:8])
    raise SaeuronError(f"{repository} holds {asked}; name one with --hookpoint: {among}")


def _root(repository: str) -> str:
    """The folder that an SAE at a repository's root belongs in: one that says where it reads, if anything does."""
    name = repository.split("/")[-1]
    return ROOTS.get(repository) or (name if hookpoint_of(Path(name)) else "sae")


def fetch(repository: str, name: str, revision: str, commit: str, checksum: str) -> Path:
    """The file ``name`` in the cache, fetched where it is not there yet; SaeuronError where its checksum is another."""
    try:
        path = Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        raise SaeuronError(f"{name} of {repository} could not be fetched: {_reason(error)}") from error
    if commit not in path.parts:
        raise SaeuronError(f"{repository} changed while it was fetched: run the command again")
    _check(path, checksum, f"{name} of {repository}")
    return path


def _check(path: Path, checksum: str, what: str) -> None:
    """Raise SaeuronError unless ``path`` has this SHA-256, or git's SHA-1 where the checksum is that short."""
    if not checksum:
        raise SaeuronError(f"the checksum of {what} is not known: run the command again when the hub is within reach")
    digest = hashlib.sha256() if len(checksum) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != checksum:
        raise SaeuronError(
            f"{what} has the checksum {digest.hexdigest()[:12]} here and {checksum[:12]} on the hub: "
            f"delete {path.resolve()} and run the command again"
        )


def _readme(card: str, licence: str) -> str:
    head = [f"license: {licence}"] if licence else []
    return "\n".join(["---", *head, "tags:", "- sparse-autoencoder", "- saeuron", "---", "", card.rstrip(), ""])


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
