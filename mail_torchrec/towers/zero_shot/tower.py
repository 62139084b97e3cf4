"""Zero-shot tower: virtual behaviours from attributes (Feng et al. 2021, Section 3.2.2).

Shape letters: ``N`` rows (users), ``F`` fields of dimension ``D``, ``M`` numeric attributes,
``T`` positions of one sequence, ``R`` positions of all sequences together, ``V`` decoded vectors,
``S`` sequences, ``H`` elements of a code, ``K`` prototypes of a sequence.
"""

import torch
from torch import Tensor, nn

from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.attention import AttentionPooling
from mail_torchrec.towers.layers.behaviours import (
    Behaviours,
    concat_sequences,
    mean_over_positions,
    repeat_over_positions,
    split_positions,
)
from mail_torchrec.towers.layers.residual import ResidualDecoder, ResidualEncoder
from mail_torchrec.towers.layers.standardisation import Standardiser
from mail_torchrec.towers.outputs import virtual_behaviours_specs
from mail_torchrec.towers.zero_shot.losses import (
    ReconstructionTarget,
    ZeroShotLosses,
    reconstruction_losses,
)
from mail_torchrec.towers.zero_shot.prototypes import SequencePrototypes
from mail_torchrec.towers.zero_shot.settings import ZeroShotSettings
from mail_torchrec.utils.output_spec import OutputSpec


class ZeroShotTower(nn.Module):
    """Two encoders onto one code, and decoders from it.

    ::

        fields     -> attention, numeric -> E1 -> p --+-> D1 -> fields
                                                      |
        behaviours -> attention          -> E2 -> q --+-> D2 -> behaviours (all sequences)

    Callers pass the rows that count, and detach inputs and outputs: the wall stands in the model.
    Several sequences are one longer one to attention, E2, D2 and the losses. Numeric attributes
    join the pooled fields before E1 and are not reconstructed. A variant has only the modules that
    it trains, so each parameter gets a gradient at each step, a zero one without rows.

    Variant ``none`` is one linear map from the fields (and numeric attributes) to the behaviours.
    No loss trains it and the ranking loss stops at the wall, so nothing can: its parameters are
    frozen as they were initialised.

    Args:
        settings: the switches.
        group_fields: fields of each group, in the order of the field axis, ``{"attributes": 9}``
            for example.
        field_dim: D.
        num_numeric: M.
        sequences: the behaviour sequences.

    Raises:
        ValueError: there is no field or no sequence, or sequences differ in dimension.
    """

    def __init__(
        self,
        settings: ZeroShotSettings,
        *,
        group_fields: dict[str, int],
        field_dim: int,
        num_numeric: int,
        sequences: dict[str, SequenceShape],
    ) -> None:
        super().__init__()
        num_fields = sum(group_fields.values())
        _check_shapes(num_fields, sequences)
        self.settings, self.sequences = settings, dict(sequences)
        self.behaviour_dim = next(iter(sequences.values())).dim
        self.num_vectors = sum(shape.max_length for shape in sequences.values())
        if settings.is_pooled or settings.is_mixture:
            self.num_vectors = len(sequences)
        if settings.variant == "none":
            in_dim = num_fields * field_dim + num_numeric
            linear = nn.Linear(in_dim, self.num_vectors * self.behaviour_dim)
            self.linear = linear.requires_grad_(False)
            return
        self._build_encoders(num_fields, field_dim, num_numeric)
        self._build_decoders(list(group_fields.values()), field_dim)
        if settings.standardise_targets:
            self._build_scales(num_fields * field_dim)

    def _build_encoders(self, num_fields: int, field_dim: int, num_numeric: int) -> None:
        settings = self.settings
        pooled_dim = num_fields * field_dim
        if settings.pooling == "attention":
            pooled_dim = field_dim
            self.attribute_attention = AttentionPooling(field_dim, settings.attention_dim)
        self.attribute_encoder = self._encoder(pooled_dim + num_numeric)
        if settings.variant != "single":
            self.behaviour_attention = AttentionPooling(self.behaviour_dim, settings.attention_dim)
            self.behaviour_encoder = self._encoder(self.behaviour_dim)

    def _build_decoders(self, group_fields: list[int], field_dim: int) -> None:
        settings = self.settings
        self.decoded_fields = group_fields
        if settings.decoders == "pair":
            self.decoded_fields = [sum(group_fields)]
        self.field_decoders = nn.ModuleList(
            self._decoder(num * field_dim) for num in self.decoded_fields
        )
        decoded_dim = self.behaviour_dim
        if settings.is_mixture:
            decoded_dim = settings.num_prototypes
            self.prototypes = SequencePrototypes(decoded_dim, self.sequences)
        self.behaviour_decoder = self._decoder(self.num_vectors * decoded_dim)
        if settings.virtual_length == "predicted":
            self.length_head = nn.Linear(settings.encoder_dims[-1], len(self.sequences))

    def _build_scales(self, fields_dim: int) -> None:
        self.field_scale = Standardiser(fields_dim)
        if self.settings.is_mixture:  # Prototypes follow the tables by themselves.
            return
        # A pooled vector has a scale of its own for each sequence. Positions share one, or rare
        # long histories would be scaled by few samples.
        num_scales = len(self.sequences) if self.settings.is_pooled else 1
        self.behaviour_scale = Standardiser(num_scales * self.behaviour_dim)

    def losses(
        self,
        fields_NFD: Tensor,
        numeric_NM: Tensor,
        sequences: dict[str, Behaviours],
        weights_N: Tensor | None = None,
    ) -> ZeroShotLosses:
        """Computes row losses and codes of warm rows; every rank calls it in a training step.

        Args:
            fields_NFD: their fields; ``N`` may be 0 or 1.
            numeric_NM: their numeric attributes.
            sequences: sequence -> real behaviours [N, T, D] and their number [N].
            weights_N: weight of each row in the moments of ``standardise_targets``, returned for
                the mean; 1 by default.
        """
        if self.settings.variant == "none":
            return ZeroShotLosses()
        behaviours = [sequences[name] for name in self.sequences]
        values_NRD, mask_NR = concat_sequences(behaviours)
        weights_N = fields_NFD.new_ones(fields_NFD.shape[0]) if weights_N is None else weights_N
        targets = [self._behaviour_target(behaviours, values_NRD, mask_NR, weights_N)]
        targets += self._field_targets(fields_NFD, weights_N)
        if self.settings.virtual_length == "predicted":
            targets.append(self._length_target(behaviours))
        P_NH = self._encode_attributes(fields_NFD, numeric_NM)
        if self.settings.variant == "single":
            [a_N] = reconstruction_losses([P_NH], targets, self.settings.reduction)
            return ZeroShotLosses(a_N, None, P_NH, None, weights_N)
        Q_NH = self.behaviour_encoder(self.behaviour_attention(values_NRD, mask_NR))
        a_N, v_N = reconstruction_losses([P_NH, Q_NH], targets, self.settings.reduction)
        return ZeroShotLosses(a_N, v_N, P_NH, Q_NH, weights_N)

    def virtual_behaviours(self, fields_NFD: Tensor, numeric_NM: Tensor) -> dict[str, Behaviours]:
        """Computes virtual behaviours ``D2(E1(h_a))`` (Eq. 8).

        Args:
            fields_NFD: fields of the rows.
            numeric_NM: their numeric attributes.

        Returns:
            Sequence -> vectors [N, T, D] and their number [N] (int64).
        """
        decoded, relative_NS = self._decode_behaviours(fields_NFD, numeric_NM)
        if self.settings.is_mixture:
            return self.prototypes.sequences(decoded, relative_NS)
        decoded_NVD = decoded.view(decoded.shape[0], self.num_vectors, self.behaviour_dim)
        if self.settings.standardise_targets:
            decoded_NVD = self.behaviour_scale.inverse(decoded_NVD)
        max_lengths = [shape.max_length for shape in self.sequences.values()]
        to_sequences = repeat_over_positions if self.settings.is_pooled else split_positions
        made = to_sequences(decoded_NVD, max_lengths, relative_NS)
        return dict(zip(self.sequences, made, strict=True))

    def pooled_fields(self, fields_NFD: Tensor) -> Tensor:
        """Returns the pooled fields ``h_a`` [N, E] before E1; not for variant ``none``."""
        if self.settings.standardise_targets:
            fields_NFD = self.field_scale(fields_NFD)
        if self.settings.pooling == "concat":
            return fields_NFD.flatten(1)
        pooled_NE: Tensor = self.attribute_attention(fields_NFD)
        return pooled_NE

    def output_specs(self) -> list[OutputSpec]:
        """Declares the virtual behaviours of every sequence."""
        return virtual_behaviours_specs(self.sequences)

    def _encoder(self, in_dim: int) -> ResidualEncoder:
        return ResidualEncoder(in_dim, self.settings.encoder_dims, self.settings.dropout)

    def _decoder(self, out_dim: int) -> ResidualDecoder:
        settings = self.settings
        return ResidualDecoder(
            settings.encoder_dims[-1], settings.decoder_dims, out_dim, settings.dropout
        )

    def _encode_attributes(
        self, fields_NFD: Tensor, numeric_NM: Tensor, *, drop: bool = True
    ) -> Tensor:
        """The code of the attributes [N, H]."""
        code_NH: Tensor = self.attribute_encoder(
            torch.cat([self.pooled_fields(fields_NFD), numeric_NM], dim=1), drop=drop
        )
        return code_NH

    def _decode_behaviours(
        self, fields_NFD: Tensor, numeric_NM: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Decoded vectors side by side [N, V * D], and relative lengths [N, S] if predicted."""
        if self.settings.variant == "none":
            return self.linear(torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1)), None
        drop = self.settings.virtual_dropout
        code_NH = self._encode_attributes(fields_NFD, numeric_NM, drop=drop)
        decoded = self.behaviour_decoder(code_NH, drop=drop)
        if self.settings.virtual_length == "predicted":
            return decoded, self.length_head(code_NH)
        return decoded, None

    def _behaviour_target(
        self,
        behaviours: list[Behaviours],
        values_NRD: Tensor,
        mask_NR: Tensor,
        weights_N: Tensor,
    ) -> ReconstructionTarget:
        if self.settings.is_mixture:
            self.prototypes.update(behaviours, weights_N)
            shares_NSK = self.prototypes(behaviours)
            return ReconstructionTarget(self.behaviour_decoder, shares_NSK, are_shares=True)
        mask = mask_NR if self.settings.padding == "masked" else None
        vectors_NVD = mean_over_positions(behaviours) if self.settings.is_pooled else values_NRD
        if self.settings.standardise_targets:
            self.behaviour_scale.update_vectors(vectors_NVD, weights_N, mask)
            vectors_NVD = self.behaviour_scale(vectors_NVD)
        return ReconstructionTarget(self.behaviour_decoder, vectors_NVD, mask)

    def _field_targets(self, fields_NFD: Tensor, weights_N: Tensor) -> list[ReconstructionTarget]:
        if self.settings.standardise_targets:
            self.field_scale.update_vectors(fields_NFD, weights_N)
            fields_NFD = self.field_scale(fields_NFD)
        parts = torch.split(fields_NFD, self.decoded_fields, dim=1)
        pairs = zip(self.field_decoders, parts, strict=True)
        return [ReconstructionTarget(decoder, part_NFD) for decoder, part_NFD in pairs]

    def _length_target(self, behaviours: list[Behaviours]) -> ReconstructionTarget:
        """Relative lengths [N, S, 1] of the sequences."""
        relative = [
            lengths_N.to(values_NTD.dtype) / values_NTD.shape[1]
            for values_NTD, lengths_N in behaviours
        ]
        return ReconstructionTarget(self.length_head, torch.stack(relative, dim=1).unsqueeze(2))


def _check_shapes(num_fields: int, sequences: dict[str, SequenceShape]) -> None:
    if num_fields == 0:
        raise ValueError(
            "the zero-shot tower should have a categorical field, received none; add a column with "
            "group 'attribute'"
        )
    if not sequences:
        raise ValueError(
            "the zero-shot tower should have behaviours to reconstruct, received none; add a "
            "column with group 'behaviour'"
        )
    dims = {name: shape.dim for name, shape in sequences.items()}
    if len(set(dims.values())) > 1:
        raise ValueError(
            f"the zero-shot tower needs sequences of one dimension, received {dims}; give their "
            "tables the same dim"
        )
