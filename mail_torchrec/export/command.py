"""From a finished run to an artefact that is known to score as the trainer does."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from mail_torchrec.data.ids.vocabulary import FIRST_ROW, MISSING_ROW, UNKNOWN_ROW
from mail_torchrec.data.parquet.source import Source
from mail_torchrec.data.schema.schema import Ids
from mail_torchrec.export.capture import capture
from mail_torchrec.export.compact_tables import CompactTables
from mail_torchrec.export.finished_run import Run
from mail_torchrec.export.inference_model import Twin
from mail_torchrec.export.parity import BOUNDS, golden_batch, trainer_scores
from mail_torchrec.export.table_files import Table, TableFiles, TableType
from mail_torchrec.inference.golden import sample_requests
from mail_torchrec.inference.manifest import (
    ONNX_MODEL,
    VOCABULARIES,
    Agreement,
    Manifest,
    Number,
    Output,
    TableInfo,
    checksums,
    version_of,
    write_golden,
)
from mail_torchrec.inference.requests import Request, ValueType, model_inputs
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.atomic_dir import new_folder

_LIBRARIES = (
    "mail-torchrec",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "pyarrow",
)
_MEANINGS = {
    "pctr": "probability of a click",
    "pcvr": "probability of a conversion, given a click",
    "pctcvr": "probability of a click and a conversion",
    "virtual": "virtual behaviours, oldest first, zeros for users who are not new",
    "user": "the user's vector in the space of the item vectors",
    "item": "the item's vector: its product with the user's is the tower's idea of the liking",
}


@dataclass(frozen=True)
class Order:
    """What is to be exported."""

    run_dir: RunDir
    out: Path
    table_type: TableType = "float32"
    data: str | None = None
    """Parquet file or folder that golden requests are taken from; None takes the run's test
    data."""
    aoti: bool = False
    """Also compile a package for torch alone."""


def export(order: Order) -> Manifest:
    """Writes the artefact; it is there whole and checked, or not at all.

    Raises:
        ValueError: no finished run, ``out`` exists, a library is missing, a tower cannot be traced,
            or scores differ from the trainer's.
    """
    _check_libraries()
    if order.aoti:
        from mail_torchrec.export.aoti import check_compiler

        check_compiler()
    with new_folder(order.out) as part:
        return _write(Run.open(order.run_dir), order, part)


def _write(run: Run, order: Order, folder: Path) -> Manifest:
    from mail_torchrec.export.aoti import write_aoti
    from mail_torchrec.export.onnx_graph import write_onnx

    schema, feature_tables = run.config.schema_, run.feature_tables
    requests, types = _golden_requests(run, order)
    with TemporaryDirectory() as scratch:
        batch = golden_batch(
            requests, types, run.config, run.encoders, feature_tables, Path(scratch)
        )
    compact = CompactTables(schema, feature_tables, run.encoders.num_rows, batch)
    files = run.write_tables(folder / "tables", order.table_type, also=compact.take)
    expected = trainer_scores(compact, run.towers)
    inputs = model_inputs(schema, run.encoders.num_rows)
    tables = {name: Table(parts) for name, parts in files.items()}
    twin = Twin(
        run.towers, tables, inputs, schema, feature_tables, run.config.data.new_user_max_behaviours
    )
    program, outputs = capture(twin, run.config.model.tower)
    buffers = {
        f"tables.{name}_.{part}": file
        for name, parts in files.items()
        for part, file in parts.by_name.items()
    }
    write_onnx(program, [spec.name for spec in inputs], list(outputs), buffers, folder / ONNX_MODEL)
    if order.aoti:
        write_aoti(program, buffers, folder)
    run.encoders.save(folder / VOCABULARIES)
    write_golden(folder, requests, {name: values.tolist() for name, values in expected.items()})
    described = [_output(name, size, twin) for name, size in outputs.items()]
    manifest = _manifest(run, order, folder, types, described, files)
    manifest.write(folder)
    manifest = manifest.model_copy(update={"agreement": _agreement(folder, manifest, order)})
    manifest.write(folder)
    return manifest


def _golden_requests(run: Run, order: Order) -> tuple[list[Request], dict[str, ValueType]]:
    config = run.config
    try:
        source = Source(order.data or config.data.path(config.data.test), config.schema_)
    except ValueError as error:
        raise ValueError(
            f"golden requests are taken from the run's test data, or from --data: {error}"
        ) from error
    return sample_requests(
        source,
        config.schema_,
        run.encoders,
        config.data.cold_start,
        config.data.new_user_max_behaviours,
    )


def _agreement(folder: Path, manifest: Manifest, order: Order) -> dict[str, Agreement]:
    """How each format scores the golden requests.

    Raises:
        ValueError: otherwise than the trainer.
    """
    from mail_torchrec.export.aoti import AotiModel
    from mail_torchrec.inference.scorer import Scorer, largest_difference

    scorer, bound = Scorer(folder, verify=False), BOUNDS[order.table_type]
    differences = {"onnx": scorer.difference()}
    if order.aoti:
        differences["aoti"] = largest_difference(
            folder, scorer.encode, AotiModel(folder, manifest).run
        )
    for name, difference in differences.items():
        if difference > bound:
            remedy = (
                "does its tower score a row otherwise in another batch?"
                if order.table_type == "float32"
                else "export wider tables"
            )
            raise ValueError(
                f"the probabilities of the {name} model differ by {difference:.2g} from the "
                f"trainer's, and with {order.table_type} tables "
                f"by at most {bound:g}; nothing was written: {remedy}"
            )
    return {
        name: Agreement(bound=bound, largest_difference=difference)
        for name, difference in differences.items()
    }


def _manifest(
    run: Run,
    order: Order,
    folder: Path,
    types: dict[str, ValueType],
    outputs: Sequence[Output],
    files: dict[str, TableFiles],
) -> Manifest:
    schema, written = run.config.schema_, checksums(folder)
    return Manifest(
        name=run.config.name,
        version=version_of(written),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        made_with={name: version(name) for name in _LIBRARIES},
        tower=run.config.model.tower,
        table_type=order.table_type,
        metrics=run.metrics,
        inputs=model_inputs(schema, run.encoders.num_rows),
        outputs=list(outputs),
        new_users={"input": schema.new_user}
        if schema.new_user
        else {"at_most_behaviours": run.config.data.new_user_max_behaviours},
        unknown_row=UNKNOWN_ROW,
        missing_row=MISSING_ROW,
        first_row=FIRST_ROW,
        tables={name: _table_info(run, name, parts, folder) for name, parts in files.items()},
        numbers={
            name: Number(
                transform=schema.columns[name].transform.value,
                mean=scale.mean,
                deviation=scale.deviation,
            )
            for name, scale in run.encoders.scales.items()
        },
        types=types,
        schema=schema,
        agreement={},
        files=written,
    )


def _table_info(run: Run, table: str, files: TableFiles, folder: Path) -> TableInfo:
    name = run.schema_table(table)
    settings = run.config.schema_.table(name)
    hashed = settings.ids is Ids.HASH
    return TableInfo(
        ids=settings.ids.value,
        rows=files.weight.shape[0],
        dim=settings.dim or run.config.schema_.dim,
        vocabulary=None if hashed else f"{VOCABULARIES}/{name}.parquet",
        salt=name if hashed else None,
        files={part: str(file.path.relative_to(folder)) for part, file in files.by_name.items()},
    )


def _output(name: str, size: tuple[int, ...], twin: Twin) -> Output:
    kind = name.rpartition(".")[2]
    rows = "users" if kind in ("virtual", "user") and not twin.fills_rows else "candidates"
    return Output(name=name, shape=(rows, *size), meaning=_MEANINGS[kind])


def _check_libraries() -> None:
    if missing := [
        name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None
    ]:
        raise ValueError(f"export needs {', '.join(missing)}: pip install 'mail-torchrec[export]'")
