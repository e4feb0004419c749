"""The stage contract: a key over everything that decides a result, a folder that is whole or absent, a manifest.

`@stage` turns a plain function that does the work into a stage. What all stages share (key, temporary folder, rename,
manifest, skipping, checks, resuming) is here, once. Prefect and MLflow only watch, through observers.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import inspect
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused, PreflineError

Metrics = dict[str, float]
Package = Literal["data", "training", "evaluation", "registry"]
LAYERS: tuple[Package, ...] = ("data", "training", "evaluation", "registry")
"""A package of tasks may use those before it, so their code decides its results too."""

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "great-expectations", "dvc", "mlflow")
MANIFEST = "manifest.json"


class StageResult(BaseModel):
    """What a stage hands on: where its outputs are and what they hash to. Small enough to pass between tasks.

    digest: of all output files. seconds: of the work that made them. peak_bytes: of memory that it took, 0 where nobody
    measured. skipped: why nothing ran this time, or "".
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    path: Path
    digest: str
    metrics: Metrics
    seconds: float
    peak_bytes: int = 0
    skipped: str = ""


class Observer(Protocol):
    """Watches stages: a progress bar, an MLflow run. An observer never changes what a stage does."""

    def started(self, stage: str, key: str, settings: dict[str, Any]) -> None: ...
    def progressed(self, stage: str, done: int, total: int, metrics: Metrics) -> None: ...
    def finished(self, result: StageResult) -> None: ...
    def failed(self, stage: str, error: BaseException) -> None: ...


@dataclass
class StageRun:
    """What a stage's function is given besides its inputs.

    out: the folder to fill. failed: where that folder will lie if the stage fails, for messages that point into it.
    checkpoints: a folder that outlives a kill, emptied when the stage is done. root: the project's folder.
    nothing_to_do: set it to a reason where an outside store already holds the result. peak_bytes: set it where memory matters.
    """

    stage: str
    out: Path
    failed: Path
    checkpoints: Path
    root: Path
    observers: Sequence[Observer] = ()
    nothing_to_do: str = ""
    peak_bytes: int = 0

    def report(self, done: int, total: int, **metrics: float) -> None:
        """Tell how far the work is; metrics belong to step `done`."""
        for observer in self.observers:
            observer.progressed(self.stage, done, total, metrics)


@dataclass(frozen=True)
class Context:
    """Where stages run: root, the project's folder; runs, where results are kept; observers; force, what to run again."""

    root: Path
    runs: Path
    observers: Sequence[Observer] = ()
    force: frozenset[str] = field(default_factory=frozenset)


class Settings:
    """The sections of the configuration that a stage said it reads; any other one raises, so that keys stay honest."""

    def __init__(self, config: PipelineConfig, reads: tuple[str, ...]) -> None:
        self._values = {name: getattr(config, name) for name in reads}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(f"this stage does not declare that it reads {name!r}: add it to reads=") from None

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Settings:
        """What `plain` gave, in another process."""
        settings = cls.__new__(cls)
        kinds: dict[str, Any] = {name: field.annotation for name, field in PipelineConfig.model_fields.items()}
        settings._values = {name: TypeAdapter(kinds[name]).validate_python(value) for name, value in plain.items()}
        return settings

    def plain(self) -> dict[str, Any]:
        return {name: _plain(value) for name, value in self._values.items()}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Stage:
    """A named piece of the pipeline. body(config, **inputs, run) -> metrics.

    reads: the keys of the configuration that it depends on. package: whose code it depends on. cached: False for a
    stage that acts on an outside store and must look there every time. files: keys of the configuration, with dots, that
    name files or folders whose content it depends on too.
    """

    name: str
    body: Callable[..., Metrics]
    reads: tuple[str, ...]
    package: Package
    cached: bool = True
    files: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the results that the body takes."""
        return tuple(name for name in inspect.signature(self.body).parameters if name not in ("config", "run"))

    def identity(self, config: PipelineConfig, inputs: dict[str, StageResult], root: Path) -> dict[str, Any]:
        """Everything that decides the result."""
        values = [attrgetter(key)(config) for key in self.files]
        named = [name for value in values for name in ([value] if isinstance(value, str) else value)]
        return {
            "stage": self.name,
            "inputs": {name: inputs[name].digest for name in sorted(inputs)},
            "settings": Settings(config, self.reads).plain(),
            "code": code_digest(self.package),
            "libraries": library_versions(),
            "named": {name: content_of(root / Path(name).expanduser()) for name in named},
        }

    def key(self, config: PipelineConfig, inputs: dict[str, StageResult], root: Path) -> str:
        body = json.dumps(self.identity(config, inputs, root), sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:20]

    def folder(self, context: Context, key: str) -> Path:
        return context.runs / "stages" / self.name / key

    def lookup(self, config: PipelineConfig, inputs: dict[str, StageResult], context: Context) -> StageResult | None:
        """The result of an earlier run with the same key whose files still hash to what its manifest says."""
        if not self.cached or self.name in context.force:
            return None
        return read_result(self.folder(context, self.key(config, inputs, context.root)))

    def run(self, config: PipelineConfig, inputs: dict[str, StageResult], context: Context) -> StageResult:
        """Do the work, or skip it where `lookup` finds it done. Raises PreflineError; leaves a whole folder or none."""
        key = self.key(config, inputs, context.root)
        folder = self.folder(context, key)
        with _disk_errors(folder), _alone(folder):
            done = self.lookup(config, inputs, context)
            if done:
                return done
            return self._work(config, inputs, context, key, folder)

    def _work(self, config: PipelineConfig, inputs: dict[str, StageResult], context: Context, key: str, folder: Path) -> StageResult:
        identity = self.identity(config, inputs, context.root)
        for observer in context.observers:
            observer.started(self.name, key, identity["settings"])
        partial = folder.with_name(f"{key}.partial")
        run = StageRun(
            self.name, partial / "out", folder.with_name(f"{key}.failed"), partial / "checkpoints", context.root, context.observers
        )
        shutil.rmtree(run.out, ignore_errors=True)
        run.out.mkdir(parents=True)
        begun = time.monotonic()
        try:
            with _disk_errors(partial):
                metrics = finite(self.name, self.body(Settings(config, self.reads), **inputs, run=run))
                seconds = time.monotonic() - begun
                result = _publish(self.name, key, identity, run, folder, metrics, seconds)
        except BaseException as error:
            _keep_failed(run)
            for observer in context.observers:
                observer.failed(self.name, error)
            raise
        for observer in context.observers:
            observer.finished(result)
        return result


def stage(
    name: str, *, reads: tuple[str, ...], package: Package, cached: bool = True, files: tuple[str, ...] = ()
) -> Callable[[Callable[..., Metrics]], Stage]:
    """Decorate the function that does a stage's work."""
    return lambda body: Stage(name, body, reads, package, cached, files)


def _publish(name: str, key: str, identity: dict[str, Any], run: StageRun, folder: Path, metrics: Metrics, seconds: float) -> StageResult:
    """Write the manifest and move the folder into place."""
    files = hash_files(run.out)
    manifest = {
        **identity,
        "key": key,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "seconds": round(seconds, 3),
        "peak_bytes": run.peak_bytes,
        "metrics": metrics,
        "files": files,
        "digest": _digest_of(files),
    }
    (run.out / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if _same(read_result(folder), manifest["digest"]):
        shutil.rmtree(run.out)  # an uncached stage found what it had found before; others may be reading that
    else:
        if folder.exists():  # forced or damaged: the new result takes the old one's place
            shutil.rmtree(folder)
        run.out.replace(folder)
    shutil.rmtree(run.checkpoints.parent, ignore_errors=True)
    return StageResult(
        stage=name,
        key=key,
        path=folder,
        digest=manifest["digest"],
        metrics=metrics,
        seconds=manifest["seconds"],
        peak_bytes=run.peak_bytes,
        skipped=run.nothing_to_do,
    )


def _same(result: StageResult | None, digest: str) -> bool:
    return result is not None and result.digest == digest


def _keep_failed(run: StageRun) -> None:
    """Keep what a failed stage wrote, for people to look at; checkpoints stay where the next try finds them."""
    shutil.rmtree(run.failed, ignore_errors=True)
    if run.out.exists() and any(run.out.iterdir()):
        run.out.replace(run.failed)


def read_result(folder: Path) -> StageResult | None:
    """The finished result in a folder, or None where there is none or a file differs from its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if hash_files(folder) != manifest["files"]:
            return None
        return StageResult(
            stage=manifest["stage"],
            key=manifest["key"],
            path=folder,
            digest=manifest["digest"],
            metrics=manifest["metrics"],
            seconds=manifest["seconds"],
            peak_bytes=manifest["peak_bytes"],
            skipped="unchanged",
        )
    except (OSError, ValueError, KeyError, TypeError):  # no manifest, or not a whole one
        return None


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below folder but the manifest, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def content_of(path: Path) -> dict[str, str]:
    """What a file, or the files of a folder, hold; nothing where there is none: whoever reads it says so better."""
    if not path.is_file():
        return hash_files(path)
    with path.open("rb") as file:
        return {"": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest_of(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def finite(name: str, metrics: Metrics) -> Metrics:
    """The metrics as plain floats. Raises PreflineError where one is NaN or infinite: no store keeps those faithfully."""
    for metric, value in metrics.items():
        if not math.isfinite(value):
            raise PreflineError(f"Stage {name}: {metric} is {value}.", "The stage's result is not kept. Look at the curves that led there.")
    return {metric: float(value) for metric, value in metrics.items()}


@cache
def code_digest(package: Package) -> str:
    """SHA-256 of the source that decides a stage of this package: its own, that of the layers below, and tasks/*.py."""
    here = Path(__file__).parent
    used = LAYERS[: LAYERS.index(package) + 1]
    files = sorted([*here.glob("*.py"), *(path for name in used for path in (here / name).rglob("*") if path.suffix in (".py", ".j2"))])
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@cache
def library_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the stage's lock: two runs that need the same result work once. The lock dies with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"prefline: another run is working on {folder.parent.name}; waiting for it.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentRefused(
                f"{folder}: no space left on the disk.",
                "Free some and run again: finished stages are kept, this one goes on from its checkpoint.",
            ) from error
        raise
