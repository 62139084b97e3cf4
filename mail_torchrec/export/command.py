"""The ``mail-torchrec export`` command: a finished run to a checked artefact."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from mail_torchrec.calibration.calibrator import Calibration, Calibrator, Method
from mail_torchrec.data.content.vector_scales import VECTOR_SCALES
from mail_torchrec.data.ids.policy import FIRST_ROW, MISSING_ROW, UNKNOWN_ROW
from mail_torchrec.data.source import Source
from mail_torchrec.data.weights.positions import position_rows
from mail_torchrec.export.compact_tables import CompactTables, copied_to
from mail_torchrec.export.delta import DeltaBase, write_delta
from mail_torchrec.export.drift.collecting import GoldenSample, check_drift
from mail_torchrec.export.exported_program import export_program
from mail_torchrec.export.finished_run import FinishedRun
from mail_torchrec.export.inference_model import InferenceModel, buffer_name
from mail_torchrec.export.parity import check_parity, golden_batch, trainer_scores
from mail_torchrec.export.spare_rows import add_spare_rows, artifact_checksums, spare_info
from mail_torchrec.export.table_files import GatherTable, TableFiles, TableType
from mail_torchrec.inference.artifact_files import ONNX_MODEL, VOCABULARIES
from mail_torchrec.inference.golden import sample_requests
from mail_torchrec.inference.golden_file import write_golden
from mail_torchrec.inference.manifest import ArtifactManifest
from mail_torchrec.inference.requests import Request, graph_output, new_item_input
from mail_torchrec.inference.tables.table_info import NumericInfo, TableInfo, VectorInfo
from mail_torchrec.inference.tables.table_rows import SPARE_TABLES
from mail_torchrec.inference.values import ValueType
from mail_torchrec.train.run_dir import RunDir
from mail_torchrec.utils.atomic_dir import atomic_dir
from mail_torchrec.utils.formats import package_version

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


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export."""

    run_dir: RunDir
    """Finished run."""
    out: Path
    """Folder to write; must not exist."""
    table_type: TableType = "float32"
    """Type of the tables' elements."""
    data: str | None = None
    """Parquet file or folder that golden requests are sampled from; None takes the run's test
    data."""
    calibrate: Method | None = None
    """Calibration of the clicks; None for none."""
    calibration_data: str | None = None
    """Parquet file or folder that it is fitted on; None takes the run's validation rows."""
    aoti: bool = False
    """Also compile a package that needs torch alone."""
    spare: float | None = None
    """Spare rows in each table's files, as a share of its rows, for deltas; None for none."""
    delta_of: Path | None = None
    """Artefact with spare rows, or delta, to write what changed since; None writes all of it."""
    drift: int | None = None
    """New users, and old ones, whose virtual and real behaviours are kept to tell drift by; None
    for none."""


def export(options: ExportOptions) -> ArtifactManifest:
    """Writes the artefact; it is there whole and checked, or not at all.

    Raises:
        ValueError: no finished run, ``out`` exists, a library is missing, a tower cannot be traced,
            or scores differ from the trainer's.
    """
    _check_options(options)
    if options.aoti:
        from mail_torchrec.export.aoti import check_compiler

        check_compiler()
    base = None if options.delta_of is None else DeltaBase.open(options.delta_of)
    with atomic_dir(options.out) as folder:
        run = FinishedRun.open(options.run_dir)
        if options.drift is not None:
            check_drift(run, options.drift)
        if base is None:
            return _write(run, options, folder, run.capacities(options.spare))
        options = replace(options, table_type=base.manifest.table_type)
        # The whole artefact, for its checksums and its parity; then what is new of it.
        with TemporaryDirectory(dir=folder, prefix=".whole-") as whole:
            manifest = _write(run, options, Path(whole), base.capacities)
            write_delta(base, Path(whole), manifest, options.run_dir.path, folder)
        return manifest


def _write(
    run: FinishedRun, options: ExportOptions, folder: Path, capacities: Mapping[str, int] | None
) -> ArtifactManifest:
    """Writes a checked artefact into a folder.

    Args:
        run: the finished run.
        options: of the export.
        folder: folder of the artefact.
        capacities: rows of each table's files, for spare ones; None for none.
    """
    source = _golden_source(run, options)
    requests, types = _golden_requests(run, source)
    sample = None if options.drift is None else GoldenSample(run, source, types, options.drift)
    calibration = _fit_calibration(options)
    calibrator = calibration.calibrator if calibration is not None else None
    compact = _compact_tables(run, requests, types)
    place = folder / ("tables" if capacities is None else SPARE_TABLES)
    kept = [compact] if sample is None else [compact, sample.compact]
    tables = run.write_tables(place, options.table_type, copied_to(kept))
    if capacities is not None:
        tables = add_spare_rows(tables, capacities, folder)
    scores = trainer_scores(compact, run.towers, calibrator)
    _write_models(run, tables, folder, calibrator, aoti=options.aoti)
    run.encoders.save(folder / VOCABULARIES)
    write_golden(folder, requests, {name: values.tolist() for name, values in scores.items()})
    manifest = _manifest(run, options, folder, types, tables)
    # Scorers read it.
    manifest = manifest.model_copy(update={"calibration": calibration}).write(folder)
    compiled = None
    if options.aoti:
        from mail_torchrec.export.aoti import AotiModel

        compiled = AotiModel(folder, manifest).run
    parity = check_parity(folder, options.table_type, compiled)
    if sample is not None:
        manifest = sample.add(folder, manifest, run.towers)
    return manifest.model_copy(update={"parity": parity}).write(folder)


def _fit_calibration(options: ExportOptions) -> Calibration | None:
    if options.calibrate is None:
        if options.calibration_data is not None:
            raise ValueError("--calibration-data is of --calibrate; give it, or leave both out")
        return None
    from mail_torchrec.export.calibration import fit_calibration

    return fit_calibration(options.run_dir, options.calibrate, options.calibration_data)


def _golden_source(run: FinishedRun, options: ExportOptions) -> Source:
    """Opens the rows that golden requests are sampled from."""
    data, hint = run.config.data, "give --data a Parquet file or folder"
    try:
        return Source(options.data or data.path(data.test), run.config.schema_, run.types, hint)
    except ValueError as error:
        origin = "--data" if options.data else "the run's test data"
        raise ValueError(f"golden requests are taken from {origin}: {error}") from error


def _golden_requests(
    run: FinishedRun, source: Source
) -> tuple[list[Request], dict[str, ValueType]]:
    data, schema = run.config.data, run.config.schema_
    return sample_requests(
        source, schema, run.encoders, data.cold_start.of_test, data.new_user_max_behaviours
    )


def _compact_tables(
    run: FinishedRun, requests: list[Request], types: dict[str, ValueType]
) -> CompactTables:
    """Prepares tables with the rows that the golden requests look up."""
    with TemporaryDirectory() as scratch:
        batch = golden_batch(
            requests, types, run.config, run.encoders, run.feature_tables, Path(scratch)
        )
    return CompactTables(run.config.schema_, run.feature_tables, run.encoders.num_rows, batch)


def _write_models(
    run: FinishedRun,
    tables: dict[str, TableFiles],
    folder: Path,
    calibrator: Calibrator | None,
    *,
    aoti: bool,
) -> None:
    """Writes the graph in every format."""
    from mail_torchrec.export.onnx_graph import write_onnx

    config = run.config
    inputs = run.inputs
    model = InferenceModel(
        run.towers,
        {name: GatherTable(files) for name, files in tables.items()},
        inputs,
        config.schema_,
        run.feature_tables,
        config.data.new_user_max_behaviours,
        calibrator,
        position_rows(config.schema_, run.encoders),
    )
    tower = config.model.tower
    buffers = {
        buffer_name(name, part): file
        for name, files in tables.items()
        for part, file in files.buffers.items()
    }
    outputs = [graph_output(spec.name, inputs) for spec in run.towers.output_specs()]
    program = export_program(model, tower)
    # The graph has no tables of parts that are joined to nothing.
    unused = tuple(buffer_name(table, "") for table in config.schema_.unjoined_tables)
    looked_up = {name: file for name, file in buffers.items() if not name.startswith(unused)}
    write_onnx(program, [spec.name for spec in inputs], outputs, looked_up, folder / ONNX_MODEL)
    if aoti:
        from mail_torchrec.export.aoti import write_aoti

        # A trace of its own: the ONNX exporter leaves sizes that belong to no tensor in the other
        # one, which AOTInductor refuses ("Pending unbacked symbols").
        write_aoti(export_program(model, tower), buffers, folder)


def _manifest(
    run: FinishedRun,
    options: ExportOptions,
    folder: Path,
    types: dict[str, ValueType],
    tables: dict[str, TableFiles],
) -> ArtifactManifest:
    """Describes the artefact; its parity is still to be measured."""
    schema = run.config.schema_
    max_behaviours, rule = run.config.data.new_user_max_behaviours, run.config.data.new_items
    infos = {name: _table_info(run, name, parts, folder) for name, parts in tables.items()}
    has_spare = any(parts.positions is not None for parts in tables.values())
    return ArtifactManifest(
        name=run.config.name,
        version="",  # derived when it is written
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        library_versions={name: package_version(name) for name in _LIBRARIES},
        tower=run.config.model.tower,
        table_type=options.table_type,
        metrics=run.metrics,
        negatives_kept=run.config.data.negatives_kept,
        inputs=run.inputs,
        outputs=run.towers.output_specs(),
        new_user_input=schema.new_user,
        new_user_max_behaviours=None if schema.new_user else max_behaviours,
        new_item_input=new_item_input(schema, rule),
        new_items=rule,
        unknown_row=UNKNOWN_ROW,
        missing_row=MISSING_ROW,
        first_row=FIRST_ROW,
        tables=infos,
        checkpoint=run.checkpoint if has_spare else None,
        numeric=_numeric_info(run),
        vectors={
            name: VectorInfo(dim=dim, scales=f"{VOCABULARIES}/{VECTOR_SCALES}")
            for name, dim in run.encoders.vector_dims.items()
        },
        value_types=types,
        schema=schema,
        parity={},
        files=artifact_checksums(folder, infos),
    )


def _numeric_info(run: FinishedRun) -> dict[str, NumericInfo]:
    columns = run.config.schema_.columns
    return {
        name: NumericInfo(
            transform=columns[name].transform.value, mean=scale.mean, deviation=scale.deviation
        )
        for name, scale in run.encoders.scales.items()
    }


def _table_info(run: FinishedRun, table: str, files: TableFiles, folder: Path) -> TableInfo:
    name = run.schema_table(table)
    settings = run.config.schema_.table(name)
    encoding = run.encoders.tables[name].manifest_entry(VOCABULARIES, name)
    return TableInfo(
        **encoding._asdict(),
        rows=run.encoders.num_rows[name],
        dim=settings.dim or run.config.schema_.dim,
        files={part: str(file.path.relative_to(folder)) for part, file in files.by_name.items()},
        spare=spare_info(files, folder),
    )


def _check_options(options: ExportOptions) -> None:
    if options.spare is not None and options.delta_of is not None:
        raise ValueError("--spare is of full exports; leave it out, a delta has that of its base")
    if options.aoti and (options.spare is not None or options.delta_of is not None):
        raise ValueError("--aoti compiles full exports without spare rows; leave it out")
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ValueError(f"export needs {', '.join(missing)}: pip install 'mail-torchrec[export]'")
