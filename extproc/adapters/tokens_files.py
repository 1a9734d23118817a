"""Finds a model's tokenizer among local files, and reads it. Nothing is downloaded."""

from __future__ import annotations

import fnmatch
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from extproc.plugins.token_producer import TokenizerOf
from extproc.tokens.model import Fault, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from extproc.plugins.token_producer import TokenProducer

ANNOTATION: Final = "networking.matrixinfer.ai/tokenizer"
NONE: Final = "none"
_TOKENIZER: Final = "tokenizer.json"
_TEMPLATE, _TEMPLATES, _PROCESSOR = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_READ: Final = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "config.json", _TEMPLATE, _PROCESSOR)
_REFUSED_PARTS: Final = frozenset({"..", "."})
_ANY: Final = TokenizerOf(model="*", source="")

Stamp = tuple[tuple[str, int, int, int], ...]


class Named(NamedTuple):
    """A model as its engine knows it, with what may tell where its tokenizer is."""

    names: tuple[str, ...]  # the engine's name first, then that of its base model
    annotation: str = ""  # of its ModelServer
    server: str = ""  # "namespace/name" of a ModelServer that serves it


class Source(NamedTuple):
    """A folder with a tokenizer, and how it is used."""

    folder: Path
    settings: TokenizerOf


def locate(model: Named, params: TokenProducer.Params) -> Source | None:
    """Return where the tokenizer of `model` is; None: it has none. Raises Fault if what was configured is not there."""
    hub = hub_cache(params.hub_cache)
    fitting = next(
        (one for one in params.tokenizers if any(fnmatch.fnmatchcase(n, one.model) for n in model.names)), None
    )
    settings = fitting or _ANY
    wanted = model.annotation or settings.source
    if wanted == NONE:
        return None
    if wanted:
        folder = _folder(wanted, hub, settings.revision)
        if folder is None:
            raise Fault("missing", f"{wanted} is no folder with a {_TOKENIZER}, and no model in the hub cache {hub}")
        return Source(folder, settings)
    for name in model.names:
        for parent in params.folders:
            if (folder := _inside(Path(parent), name)) is not None:
                return Source(folder, settings)
        if (folder := _folder(name, hub, settings.revision)) is not None:
            return Source(folder, settings)
    return None


def hub_cache(configured: str) -> Path:
    """Return the hub cache's folder."""
    if configured:
        return Path(configured).expanduser()
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"


def stamp(source: Source) -> Stamp:
    """Return what changes when the files do."""
    return tuple(_stamped(source))


def read(source: Source) -> Files:
    """Read the files. Raises Fault."""
    texts = {name: _text(source.folder / name) for name in _READ}
    tokenizer = texts[_TOKENIZER]
    if tokenizer is None:
        raise Fault("missing", f"{source.folder / _TOKENIZER} is gone")
    templates: dict[str, str] = {}
    if (default := texts[_TEMPLATE]) is not None:
        templates["default"] = default
    for extra in sorted((source.folder / _TEMPLATES).glob("*.jinja")):
        templates[extra.stem] = _text(extra) or ""
    processor = _template_of(texts[_PROCESSOR])
    if configured := source.settings.chat_template:
        own = _text(Path(configured))
        if own is None:
            raise Fault("missing", f"chatTemplate: {configured} cannot be read")
        templates, processor = {"default": own}, ""
    return Files(
        tokenizer=tokenizer,
        tokenizer_config=texts["tokenizer_config.json"] or "{}",
        special_tokens=texts["special_tokens_map.json"] or "{}",
        config=texts["config.json"] or "{}",
        templates=tuple(templates.items()),
        processor=processor,
    )


def _stamped(source: Source) -> Iterator[tuple[str, int, int, int]]:
    configured = [Path(source.settings.chat_template)] if source.settings.chat_template else []
    extra = sorted((source.folder / _TEMPLATES).glob("*.jinja"))
    for path in (*(source.folder / name for name in _READ), *extra, *configured):
        try:
            found = path.stat()
        except OSError:
            continue
        yield str(path), found.st_mtime_ns, found.st_size, found.st_ino


def _folder(name: str, hub: Path, revision: str) -> Path | None:
    """Return the folder that `name` means: a path, or a model's id in the hub cache."""
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith("./"):
        return path if (path / _TOKENIZER).is_file() else None
    if path.name == _TOKENIZER and path.is_file():
        return path.parent
    return _snapshot(hub, name, revision)


def _inside(parent: Path, name: str) -> Path | None:
    """Return `parent`/`name` if it holds a tokenizer; names cannot lead out of the parent."""
    if name.startswith("/") or _REFUSED_PARTS & set(name.split("/")):
        return None
    found = next(
        (path for path in (parent / name, parent / name.rpartition("/")[2]) if (path / _TOKENIZER).is_file()), None
    )
    return found if found is not None else _snapshot(parent, name, "main")


def _snapshot(hub: Path, name: str, revision: str) -> Path | None:
    """Return the folder of a model's revision in a hub cache: refs name the commit, snapshots hold its files."""
    parts = name.split("/")
    if len(parts) > 2 or not all(parts) or _REFUSED_PARTS & {*parts, *revision.split("/")}:  # noqa: PLR2004 - owner/name
        return None
    home = hub / ("models--" + "--".join(parts))
    commit = _text(home / "refs" / revision)
    folder = home / "snapshots" / (commit.strip() if commit else revision)
    return folder if (folder / _TOKENIZER).is_file() else None


def _text(path: Path) -> str | None:
    """Return the file's text, None if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _template_of(text: str | None) -> str:
    """Return the template in a processor's chat_template.json."""
    try:
        value: Any = json.loads(text or "{}").get("chat_template")
    except (ValueError, AttributeError):
        return ""
    return value if isinstance(value, str) else ""
