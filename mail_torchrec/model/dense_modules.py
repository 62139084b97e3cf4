"""Dense modules of the model: towers, heads and baselines, built from the settings, with outputs.

Shape letters as in ``towers/inputs.py``.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mail_torchrec.baselines.filler import BehaviourFiller
from mail_torchrec.baselines.registry import build_filler
from mail_torchrec.calibration.negatives import logit_shift
from mail_torchrec.data.schema.feature_tables import FeatureTables
from mail_torchrec.data.schema.schema import Group, Schema
from mail_torchrec.model.builders import (
    ModelSettings,
    build_meta_emb,
    build_multi_task,
    build_zero_shot,
)
from mail_torchrec.model.features import input_shapes
from mail_torchrec.model.projections import Projections
from mail_torchrec.model.step import RankingResult
from mail_torchrec.model.vector_fields import VectorFields
from mail_torchrec.model.virtual_items.generator import VirtualItems
from mail_torchrec.towers.inputs import (
    RankingInputs,
    RankingOutput,
    flagged_shapes,
    with_virtual_flag,
)
from mail_torchrec.towers.outputs import (
    CLICK_TASK,
    click_spec,
    declared_specs,
)
from mail_torchrec.towers.registry import build_tower
from mail_torchrec.towers.zero_shot.tower import ZeroShotTower
from mail_torchrec.utils.output_spec import SCORES, OutputSpec

_MOST_SHAPES = 64
"""Shapes for which a tower is compiled; torch.compile runs others as they are. Its own limit is 8.
"""


class DenseModules(nn.Module):
    """Towers, heads and baselines of a model, without their training step.

    Args:
        settings: the towers and their options.
        schema: columns and tables.
        feature_tables: feature keys of a batch and their tables.
        num_rows: table -> rows.
        negatives_kept: share of the unclicked rows in the training data; outside training the
            logits are those of all rows.
        vector_dims: number of elements of each vector column; None where there is none.

    Raises:
        ValueError: a tower or its options do not fit, or the schema has no room for a module.
    """

    def __init__(
        self,
        settings: ModelSettings,
        schema: Schema,
        feature_tables: FeatureTables,
        num_rows: dict[str, int],
        negatives_kept: float = 1.0,
        vector_dims: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.negatives_kept = negatives_kept
        self.replays_graphs = False
        """Whether the towers are CUDA graphs, whose outputs the next step overwrites."""
        self.settings = settings
        shapes = input_shapes(schema, num_rows, has_match=bool(feature_tables.match))
        has_first_order = bool(feature_tables.first_order)
        options, baseline = settings.tower_options, settings.baseline
        crosses = settings.attribute_crosses
        ranking_shapes = flagged_shapes(shapes) if settings.virtual_flag else shapes
        self.num_numeric_attributes = shapes.num_numeric_attributes
        self.ranking = build_tower(settings.tower, options, ranking_shapes, crosses)
        self.zero_shot = build_zero_shot(settings.zero_shot, schema, shapes)
        self.filler = build_filler(baseline, shapes, len(schema.numeric(Group.ATTRIBUTE)))
        self.meta_emb = build_meta_emb(baseline, schema, shapes, has_first_order=has_first_order)
        self.multi_task = build_multi_task(settings, schema, self.ranking)
        own = settings.new_user_tower == "own"
        self.cold_ranking = (
            build_tower(settings.tower, options, ranking_shapes, crosses) if own else None
        )
        self.cold_multi_task = build_multi_task(settings, schema, self.cold_ranking)
        self.vector_fields = VectorFields(schema, vector_dims or {})
        self.projections = Projections(schema)
        items = settings.virtual_items
        of_data = schema, feature_tables, vector_dims or {}
        self.virtual_items = None if items is None else VirtualItems(items, *of_data)

    @property
    def fills_candidates(self) -> bool:
        """True where virtual behaviours depend on the candidate, not on the user alone."""
        zero_shot = self.zero_shot
        return zero_shot is not None and zero_shot.settings.input_fields == "all_fields"

    @property
    def virtual_source(self) -> ZeroShotTower | BehaviourFiller | None:
        """The module that makes virtual behaviours in the current mode; None without any."""
        zero_shot = self.zero_shot
        if zero_shot is None:
            return self.filler
        if self.training and zero_shot.settings.fill == "infer_only":
            return None
        return zero_shot

    def rank(self, inputs: RankingInputs, *, as_cold: bool = False) -> RankingResult:
        """Scores rows by the ranking tower and the head on it.

        Args:
            inputs: with real or virtual behaviours.
            as_cold: by the tower of cold users, where they have one of their own.
        """
        tower, head = self.ranking, self.multi_task
        if as_cold and self.cold_ranking is not None:
            tower, head = self.cold_ranking, self.cold_multi_task
        if self.settings.virtual_flag:
            inputs = with_virtual_flag(inputs, self.num_numeric_attributes)
        output = self._kept(RankingOutput.wrap(tower(inputs)))
        tasks = head(output) if head is not None else {}
        if (click_logits_B := tasks.pop(CLICK_TASK, None)) is not None:
            output = replace(output, logits_B=click_logits_B)
        result = RankingResult(output, tasks, self.settings.task_layout)
        if self.training or self.negatives_kept == 1:
            return result
        return result.with_click_logits(output.logits_B + logit_shift(self.negatives_kept))

    def _kept(self, output: RankingOutput) -> RankingOutput:
        """Copies what is read after the step, which CUDA graphs would overwrite."""
        if not self.replays_graphs:
            return output
        return replace(output, logits_B=output.logits_B.clone())

    def compile_parts(
        self, device: torch.device, mode: str = "default", *, has_few_shapes: bool = False
    ) -> None:
        """Compiles the towers by torch.compile: once for all shapes, or for each of a few.

        Args:
            device: of the towers.
            mode: of torch.compile; ``reduce-overhead`` replays CUDA graphs.
            has_few_shapes: numbers of rows and users are those of ``data.shape_buckets``.

        Raises:
            ValueError: CUDA graphs on a CPU, or of any number of shapes.
        """
        options: dict[str, Any] = {"dynamic": not has_few_shapes}
        if has_few_shapes:
            torch._dynamo.config.recompile_limit = _MOST_SHAPES
        if mode == "reduce-overhead":
            if device.type != "cuda":
                raise ValueError(
                    "train.compile_mode: reduce-overhead replays CUDA graphs, and this run is on a "
                    "CPU; leave it out"
                )
            if not has_few_shapes:
                raise ValueError(
                    "train.compile_mode: reduce-overhead records a CUDA graph for each shape, and "
                    "shapes differ from step to step; set data.shape_buckets=8"
                )
            self.replays_graphs, options["mode"] = True, mode
            self.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())
        for tower in (self.ranking, self.cold_ranking):
            if tower is not None:
                tower.compile(**options)
        if self.zero_shot is not None:
            for method in ("losses", "virtual_behaviours"):
                compiled = torch.compile(getattr(self.zero_shot, method), **options)
                setattr(self.zero_shot, method, compiled)

    def output_specs(self) -> list[OutputSpec]:
        """Lists the outputs of the exported model in order: probabilities first."""
        specs = [click_spec()]
        for module in (self.multi_task, self.zero_shot or self.filler, self.ranking):
            specs += declared_specs(module)
        if self.fills_candidates:  # Every candidate is then a user of its own.
            specs = [spec.model_copy(update={"axis": "candidates"}) for spec in specs]
        return specs

    def output_values(self, result: RankingResult, users: RankingInputs) -> dict[str, Tensor]:
        """Returns the values of :meth:`output_specs` by name, in the same order.

        Args:
            result: output of the ranking tower and its head.
            users: the users' inputs with virtual behaviours, as :meth:`Towers.fill_cold_users`
                returns them.

        Raises:
            ValueError: a tower does not return a vector that it declares, or of another width.
        """
        values = {}
        for spec in self.output_specs():
            value = _output_value(spec, result, users)
            if value is None or tuple(value.shape[1:]) != spec.size:
                received = "none" if value is None else list(value.shape[1:])
                raise ValueError(
                    f"tower '{self.settings.tower}' should return '{spec.name}' with "
                    f"{list(spec.size)} elements a row, as its output_specs() declares, received "
                    f"{received}; correct output_specs(), or RankingOutput.vectors"
                )
            values[spec.name] = value
        return values


def _output_value(spec: OutputSpec, result: RankingResult, users: RankingInputs) -> Tensor | None:
    """The value of one output; None where a tower does not return it."""
    if spec.role in SCORES:
        predictions = {CLICK_TASK: result.output.logits_B, **result.tasks}
        [name] = [name for name in predictions if result.layout.output_name(name) == spec.name]
        return result.layout.score(name, predictions[name])
    assert spec.column is not None, "outputs other than scores belong to a sequence"
    if spec.role == "virtual_behaviours":
        sequence = users.sequences[spec.column]
        return sequence.values_BTD * sequence.is_virtual_B[:, None, None]
    vectors = result.output.vectors.get(spec.column)
    if vectors is None:
        return None
    return vectors[0] if spec.role == "user_vector" else vectors[1]
