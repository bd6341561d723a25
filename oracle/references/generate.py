# SPDX-License-Identifier: MIT OR Apache-2.0
"""One job from end to end: the plan, its layers, and the reference that holds them.

Layers are encoded here, by other threads, or wherever a concurrent.futures executor takes them. What travels is plain data: a
LayerTask there, and what it gives or why it failed back. So one layer can't take another's run with it, and an exception needs
not be known on the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import posixpath
import re
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from oracle import errors, executors
from oracle.arithmetic.constants import generator_record
from oracle.errors import BadUse, LayersFailed, WeightsError
from oracle.job import Job
from oracle.references.document import SCHEMA_ID, Case, Reference
from oracle.references.layer import LayerResult, LayerTask, encode_layer, input_record
from oracle.references.origins import FILE, Residuals, WeightsRepo
from oracle.references.plan import Plan, plan
from oracle.references.rows import FORMAT_VERSION, Document
from oracle.sources.curation import HubFile
from oracle.sources.listing import Listing
from oracle.sources.source import FileEvents, Source
from oracle.version import VERSION
from oracle.weights.sidefiles import Context

if TYPE_CHECKING:
    from oracle.sources.residuals import ResidualFile

METHODOLOGY = "from-first-principles encoder oracle in NumPy (float32 products, float64 and exact referee; no torch)"


class Events(FileEvents):
    """What a caller may want to know while a job runs. Each method does nothing: a subclass shows what it likes."""

    def planned(self, output: str) -> None:
        """It is known what is read, and what the reference's file is called by default."""

    def layers(self, count: int) -> None:
        """So many layers will be encoded."""

    def encoded(self, case: Case, n_features: int) -> None:
        """A case is there."""

    def layer_done(self, layer: int) -> None:
        """A layer is done."""

    def warned(self, warning: str) -> None:
        """Something that a user should know of."""


@dataclass(frozen=True, eq=False)
class Run:
    """A job whose layers are on their way, in their order."""

    job: Job
    plan: Plan
    events: Events
    results: Iterator[LayerResult]
    residuals: ResidualFile | None = None

    def reference(self) -> Reference:
        """The reference, its residuals as arrays. Raises as `start` does, and LayersFailed where an executor's layers did."""
        results = []
        for result in self.results:
            for case in result.cases:
                self.events.encoded(case, result.n_features)
            self.events.layer_done(result.record.layer)
            results.append(result)
            for note in result.arithmetic.notes:
                self.events.warned(f"layer {result.record.layer}: {note}")
            if result.arithmetic.n_negative_thresholds:
                self.events.warned(
                    f"layer {result.record.layer}: {result.arithmetic.n_negative_thresholds} thresholds are negative; nothing negative is let "
                    "through here, as SAELens has it; circuit-tracer lets it through"
                )
        return _assemble(self.job, self.plan, results, self.residuals)


@contextlib.contextmanager
def start(job: Job, events: Events = Events(), executor: Executor | None = None) -> Iterator[Run]:
    """Plan a job, and have `executor` begin with its layers; without one they are encoded here, as they are asked for.

    Raises LayerError, CurationError, WeightsError, MirrorError, or an exception of vendored_hf.
    """
    source = Source(job.origin, events)
    residuals = None if job.residuals is None else _residual_file(job.residuals, job.seeds)
    job_plan = plan(job, source)
    if residuals:
        residuals.check(list(job_plan.layers))
    events.planned(job_plan.output)
    events.layers(len(job_plan.layers))
    if executor is None:
        yield Run(job, job_plan, events, _in_turn(job, job_plan, source, residuals), residuals)
        return
    futures = _submit(job, job_plan, source, executor, events, residuals)
    try:
        yield Run(job, job_plan, events, _gather(futures), residuals)
    finally:
        for future in futures.values():
            future.cancel()


def _residual_file(path: str, rows: int | None) -> ResidualFile:
    from oracle.sources.residuals import ResidualFile  # not at the top: most residuals are generated

    return ResidualFile.of(path, rows)


def generate(job: Job, events: Events = Events(), executor: Executor | None = None) -> Reference:
    """Run a job from end to end. The bytes are the same with an executor and without. Raises as Run.reference does."""
    with start(job, events, executor) as job_run:
        return job_run.reference()


def files_of(job: Job, source: Source) -> tuple[list[HubFile], Listing | None]:
    """Every file that a job reads, and the listing that told which they are, if one did. Errors as in start()."""
    job_plan = plan(job, source)
    return [*([job_plan.config] if job_plan.config else []), *_files_read(job, job_plan)], job_plan.listing


def _files_read(job: Job, job_plan: Plan) -> list[HubFile]:
    return [file for layer in job_plan.layers.values() for file in layer.read(job.decode).files.values()]


def _in_turn(job: Job, job_plan: Plan, source: Source, residuals: ResidualFile | None) -> Iterator[LayerResult]:
    """Layers one after the other; the next one's file is fetched meanwhile."""
    with contextlib.closing(source.open_in_turn(_files_read(job, job_plan))) as opened:
        for task in _tasks(job, job_plan):
            with contextlib.ExitStack() as stack:
                yield encode_layer(_with_rows(task, residuals), {role: stack.enter_context(next(opened)) for role in task.files.files})


def _tasks(job: Job, job_plan: Plan) -> list[LayerTask]:
    side, origin = job_plan.side, job.origin
    if side.k is not None and origin.k not in (None, side.k):
        raise BadUse(f"--k says {origin.k}, and the config.yaml says {side.k}: leave --k out")
    return [
        LayerTask(
            job, job_plan.format, files.read(job.decode),
            Context(files.encoder.repo, side.activation, origin.k if side.k is None else side.k, origin.input_scale, origin.ignore_key, origin.normalize),
        )
        for files in job_plan.layers.values()
    ]  # fmt: skip


def _with_rows(task: LayerTask, residuals: ResidualFile | None) -> LayerTask:
    return task._replace(rows=residuals.rows(task.files.layer)) if residuals else task


def _submit(
    job: Job, job_plan: Plan, source: Source, executor: Executor, events: Events, residuals: ResidualFile | None
) -> dict[int, Future[LayerResult | LayerFailure]]:
    """A task for each layer. All of a branch is to be of one commit, whoever fetches it."""
    heard = (events,) if isinstance(executor, ThreadPoolExecutor) else ()  # other executors' tasks run where nobody hears them
    job = replace(job, origin=source.settled_origin)
    futures = {}
    for task in _tasks(job, job_plan):
        resolved = task.files._replace(files={role: source.resolve_commit(file) for role, file in task.files.files.items()})
        futures[task.files.layer] = executor.submit(run, _with_rows(task._replace(files=resolved), residuals), *heard)
    return futures


class LayerFailure(NamedTuple):
    """Why a layer has no cases: a line, the exit code that goes with it, and the chain for --debug."""

    layer: int
    line: str
    code: int
    chain: str


def run(task: LayerTask, events: FileEvents = FileEvents()) -> LayerResult | LayerFailure:
    """Fetch a layer's files and encode it. It depends on the task alone, and raises nothing."""
    try:
        source = Source(task.job.origin, events)
        with contextlib.ExitStack() as stack:
            files = {role: stack.enter_context(source.open(file)) for role, file in task.files.files.items()}
            return encode_layer(task, files)
    except Exception as error:
        return LayerFailure(task.files.layer, errors.one_line(error), errors.exit_code(error), traceback.format_exc())


def _gather(futures: dict[int, Future[LayerResult | LayerFailure]]) -> Iterator[LayerResult]:
    """Layers in their order, as they get done. Where some fail the others are still finished."""
    failures: list[LayerFailure] = []
    for layer, future in futures.items():
        result = _result_of(layer, future)
        if isinstance(result, LayerFailure):
            failures.append(result)
        elif not failures:
            yield result
    if failures:
        chains = RuntimeError("\n".join(failure.chain for failure in failures))
        lines = "; ".join(f"layer {failure.layer}: {failure.line}" for failure in failures)
        raise LayersFailed(lines, failures[0].code) from chains


def _result_of(layer: int, future: Future[LayerResult | LayerFailure]) -> LayerResult | LayerFailure:
    try:
        return future.result()
    except Exception as error:  # the executor's own, or a worker's that could not begin: of the layer's errors none is raised
        return LayerFailure(layer, executors.problem(error), errors.SOURCE, "".join(traceback.format_exception(error)))


def _assemble(job: Job, job_plan: Plan, results: list[LayerResult], residuals: ResidualFile | None) -> Reference:
    """The reference of a job's layers. Raises WeightsError where they are not of one shape."""
    first = results[0]
    for result in results:
        if (result.d_model, result.n_features, result.d_out) != (first.d_model, first.n_features, first.d_out):
            raise WeightsError(
                f"{result.record.path}: W_enc has [d_model, n_features] = {[result.d_model, result.n_features]}, "
                f"but that of layer {first.record.layer} has {[first.d_model, first.n_features]}"
            )
        for word, (own, other) in {"gate": _gates(result, first), "encoder_input": _inputs_but_factor(result, first)}.items():
            if own != other:
                raise WeightsError(
                    f"{result.record.path}: its {word} is {_in_words(own)}, and that of layer {first.record.layer} is {_in_words(other)}: "
                    "one reference has one formula"
                )
    _check_targets(job_plan, results)
    negative = [result for result in results if result.arithmetic.n_negative_thresholds]
    ignored = dict.fromkeys([*job_plan.side.ignored, *(key for result in results for key in result.arithmetic.ignored)])
    return Reference(
        schema_id=SCHEMA_ID,
        format_version=FORMAT_VERSION,
        repo=WeightsRepo(job_plan.format.repo_key, first.record.repo),
        weights_revision=first.record.revision,
        curation_repo=posixpath.join(job_plan.config.repo, posixpath.dirname(job_plan.config.path)).rstrip("/") if job_plan.config and job_plan.curated else None,
        curation_revision=job_plan.commit if job_plan.curated else None,
        methodology=METHODOLOGY,
        schema=first.arithmetic.schema,
        encoder_formula=first.arithmetic.negative_formula if negative else first.arithmetic.formula,
        decoder_formula=_same([result.arithmetic.decoder_formula for result in results]) if job.decode else None,
        tensors=first.arithmetic.tensors,
        gate=first.arithmetic.gate if not negative else {
            **negative[0].arithmetic.gate, "n_negative_thresholds": sum(result.arithmetic.n_negative_thresholds for result in results)
        },
        encoder_input=input_record({result.record.layer: result.arithmetic.encoder_input for result in results}),
        ignored_keys=tuple(ignored) or None,
        d_model=first.d_model,
        d_model_out=first.d_out if first.d_out != first.d_model else None,
        n_input_layers=first.n_input_layers,
        n_features=first.n_features,
        top_k=job.top_k,
        tolerance=job.tolerance,
        layers=tuple(result.record for result in results),
        robust_margin=job.robust_margin,
        skipped_seeds=tuple(seed for result in results for seed in result.skipped) if job.robust else None,
        residuals=Residuals(kind=FILE, name=residuals.name, sha256=residuals.sha256) if residuals else Residuals(
            scale=float(job.scale) if job.has_own_tolerances else None
        ),
        residual_generator=None if residuals else generator_record(),
        cases=tuple(case for result in results for case in result.cases),
        environment=_environment(
            max(result.float32_max_abs_error for result in results), sum(result.n_settled for result in results)
        ),
    )


def _gates(*results: LayerResult) -> list[Document]:
    """Gates without what may differ from layer to layer."""
    counts = ("n_negative_thresholds", "negative_values")
    return [{key: value for key, value in result.arithmetic.gate.items() if key not in counts} for result in results]


def _inputs_but_factor(*results: LayerResult) -> list[Document]:
    return [{key: value for key, value in result.arithmetic.encoder_input.items() if key != "factor"} for result in results]


def _same(formulas: list[str]) -> str:
    """The formula of all layers; where they differ, in a factor or a skip, each that there is."""
    return "; or ".join(dict.fromkeys(formulas))


def _in_words(record: Document) -> str:
    return ", ".join(str(value) if key == "kind" else f"{key} {value}" for key, value in record.items())


def _check_targets(job_plan: Plan, results: list[LayerResult]) -> None:
    """All layers of a cross-layer transcoder write up to its last one. Raises WeightsError."""
    first = results[0]
    if not job_plan.format.has_targets or first.n_input_layers:
        return
    last = {
        case.id.layer: case.outputs[-1].target_layer for result in results for case in result.cases if case.outputs
    }
    if job_plan.is_whole and set(last.values()) - {max(job_plan.known)}:
        layer, target = next((layer, target) for layer, target in last.items() if target != max(job_plan.known))
        raise WeightsError(f"the decoder of layer {layer} ends at layer {target}, and the last layer is {max(job_plan.known)}")
    if len(set(last.values())) > 1:
        ends = ", ".join(f"layer {layer} to layer {target}" for layer, target in last.items())
        raise WeightsError(f"the decoders do not end at one layer: {ends}")
    if len(last) == 1 and not job_plan.is_whole and not job_plan.format.all_targets:
        (layer, target), = last.items()
        raise WeightsError(
            f"the decoder of layer {layer} would end at layer {target}, and nothing says how many layers there are: "
            "ask for a second layer, or with the Hub's listing"
        )


def _environment(error32: float, n_settled: int) -> Document:
    return {
        "oracle": VERSION,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas_kernel": _blas_kernel(),
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "float32_max_abs_error": float(f"{error32:.3g}"),
        "n_settled": n_settled,
    }


def _blas_kernel() -> str | None:
    """The kernel that NumPy's OpenBLAS chose for this processor, or None where it cannot be asked."""
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text()
        for library in sorted(set(re.findall(r"/\S*openblas\S*", maps))):
            openblas = ctypes.CDLL(library)
            for name in (f"{prefix}openblas_get_corename{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")):
                with contextlib.suppress(AttributeError):
                    ask = getattr(openblas, name)
                    ask.restype = ctypes.c_char_p
                    return str(ask().decode("ascii", "replace"))
    return None
