"""What a corpus is: source, licence, size, splits, and how it is fetched, as data/corpora/*.yaml say it."""

import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from voiceflow.config import Section, parse_config
from voiceflow.errors import DataError

DESCRIPTIONS = Path("data/corpora")
Kind = Literal["voices", "conversations", "noises", "rooms"]


class CorpusFile(Section):
    """One file to download; with `each`, one for every name of a list that the recipe knows."""

    url: str
    """May hold {name} where there is `each`."""
    sha256: str | None = None
    """None: the publisher states none; the digest of the first download is kept in `DIGESTS` and checked afterwards."""
    size_bytes: int | None = Field(default=None, ge=0)
    each: str | None = None
    """A list that the recipe knows, such as the meetings of AMI."""
    path: str | None = None
    """Where it lies below the corpus' folder; the last part of the URL where it is not said. May hold {name}."""
    unpack_to: str | None = None
    """Folder that an archive is unpacked into, below the corpus' folder; None for files that are no archives."""

    @property
    def local_path(self) -> str:
        """Path below the corpus' folder."""
        return self.path or self.url.rsplit("/", maxsplit=1)[-1]


class Published(Section):
    """What a paper says of how people talk in a corpus; `voiceflow data report` shows it beside what it measures."""

    source: str
    """Paper, and which part of the corpus."""
    speech_share: float | None = Field(default=None, ge=0, le=1)
    """Of the time, anybody speaking."""
    overlap_share: float | None = Field(default=None, ge=0, le=1)
    """Of the speech, several speaking."""
    overlapped_changes: float | None = Field(default=None, ge=0, le=1)
    """Of the changes of speaker, before the first has ended."""


class Corpus(Section):
    """A corpus by name."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    kind: Kind
    source: str
    """Its page."""
    licence: str
    licence_url: str | None = None
    download_gb: float | None = Field(default=None, gt=0)
    """Size of what is downloaded; None where nothing is."""
    hours: float | None = Field(default=None, gt=0)
    num_speakers: int | None = Field(default=None, ge=1)
    language: str
    access: Literal["open", "on request", "licensed", "local"]
    """open: `data get` downloads it; on request and licensed: somebody must ask or pay, then `--from FOLDER`; local: a
    folder that `data add` took in."""
    how: str | None = None
    """How to come by it, where it is not open."""
    recipe: str
    """Key of `recipes.RECIPES`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the recipe."""
    splits: dict[str, str] = Field(default_factory=dict)
    """Our split (train, dev, test, or recorded: tested on only) of each part of the corpus."""
    speakers: Literal["corpus", "recording"] = "corpus"
    """Whether a speaker's name means the same person in every recording."""
    channel: int | None = Field(default=None, ge=0)
    """The only channel that is taken; None for the mean of all."""
    needs: list[str] = Field(default_factory=list)
    """Corpora that must have been got before."""
    files: list[CorpusFile] = Field(default_factory=list)
    published: Published | None = None

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.access == "open" and not self.files:
            raise ValueError("an open corpus lists its files")
        if self.access in ("on request", "licensed") and not self.how:
            raise ValueError("`how` must say how to come by it")
        if set(self.splits.values()) - {"train", "dev", "test", "recorded"}:
            raise ValueError("splits are train, dev, test or recorded")
        return self


def read_description(path: Path) -> Corpus:
    """One description.

    Raises:
        DataError: It cannot be read.
        ConfigError: A value is missing, unknown or wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as err:
        raise DataError(f"{path}: cannot be read ({err})") from err
    return parse_config(Corpus, json.dumps(raw), name=str(path))


def read_descriptions(folder: Path = DESCRIPTIONS) -> dict[str, Corpus]:
    """All descriptions of a folder by name.

    Raises:
        DataError: No such folder, or a file whose name is not its corpus'.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no corpus descriptions; run from the repository, or pass --corpora FOLDER")
    corpora = {}
    for path in sorted(folder.glob("*.yaml")):
        corpus = read_description(path)
        if corpus.name != path.stem:
            raise DataError(f"{path}: describes {corpus.name!r}; a description has the name of its corpus")
        corpora[corpus.name] = corpus
    return corpora


def find_corpus(name: str, folder: Path = DESCRIPTIONS) -> Corpus:
    """The description of one corpus.

    Raises:
        DataError: No such corpus; lists those there are.
    """
    corpora = read_descriptions(folder)
    if name not in corpora:
        raise DataError(f"no corpus {name!r}; expected one of {', '.join(corpora)} (see `voiceflow data list`)")
    return corpora[name]
