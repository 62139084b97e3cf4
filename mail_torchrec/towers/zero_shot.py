"""The zero-shot tower: virtual behaviours of new rows from their attributes (Feng et al. 2021, Section 3.2.2).

Shape letters: ``N`` rows, ``F`` fields of dimension ``D``, ``M`` numeric attributes, ``T``
positions of one sequence, ``R`` positions of all sequences together, ``S`` sequences, ``H`` the
code.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from mail_torchrec.losses.reconstruction import Reduction, reconstruction_loss
from mail_torchrec.settings import Settings
from mail_torchrec.towers.inputs import SequenceShape
from mail_torchrec.towers.layers.attention import AttentionPooling
from mail_torchrec.towers.layers.behaviours import Behaviours, join, pooled, split, spread
from mail_torchrec.towers.layers.residual import ResidualDecoder, ResidualEncoder
from mail_torchrec.towers.layers.standardise import Standardiser


class ZeroShotSettings(Settings):
    """The zero-shot tower. Defaults are the paper's; where its released code differs, the other choice is named."""

    variant: Literal["none", "single", "dual", "full"] = "full"
    """Ablation: full (L_a + L_v + L_d), dual (L_a + L_v), single (L_a), none (an untrained linear
    map)."""
    alignment: Literal["mmd", "paired_mse"] = "mmd"
    """L_d: mmd (paper) or paired_mse (released code)."""
    sigma: float = Field(default=1.0, gt=0.0)
    """Bandwidth of the MMD kernel."""
    fill: Literal["train_and_infer", "infer_only"] = "train_and_infer"
    """When new rows get virtual behaviours: always (paper), or not in training (released code)."""
    learning_rate_scale: float = Field(default=1.0, gt=0.0)
    """Learning rate of this tower over that of the ranking tower; the released code has 0.5."""
    input_fields: Literal["user_attributes", "all_fields"] = "user_attributes"
    """The fields it reads and rebuilds: user attributes (paper), or context and item fields too
    (released code)."""
    pooling: Literal["attention", "concat"] = "attention"
    """What E1 sees of the fields: their attention pooling (paper), or all of them side by side."""
    reconstruction_target: Literal["positions", "pooled"] = "positions"
    """What D2 rebuilds: every position of a sequence (paper), or the sum of its behaviours, which
    virtual behaviours then share out."""
    standardise_targets: bool = False
    """Rebuild fields and behaviours standardised by their moving mean and deviation, since tables
    grow; the paper does not."""
    decoders: Literal["pair", "per_group"] = "pair"
    """One decoder for all fields and one for behaviours (paper), or one for each field group
    (released code)."""
    padding: Literal["counted", "masked"] = "counted"
    """Padded positions in the reconstruction of behaviours: targets of zero, or left out."""
    virtual_length: Literal["full", "predicted"] = "full"
    """Virtual behaviours fill all positions (paper), or as many as a head on the code predicts
    (released code)."""
    reduction: Reduction = "mean"
    """L_a and L_v: mean over elements, then over old rows; or the paper's raw sum."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Before all layers of encoders and decoders but the last."""
    loss_sample_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of a step's old users, drawn anew each time, that the losses are taken of: the fewer,
    the faster a step and the noisier its gradients; the paper takes all."""
    virtual_dropout: bool = True
    """Whether virtual behaviours feel the dropout in training (one graph, as the paper's); false:
    they are made as in evaluation."""
    attention_dim: PositiveInt = 128
    """Width of the attention pooling."""
    encoder_dims: tuple[PositiveInt, ...] = Field(default=(1024, 512, 512), min_length=1)
    """Hidden layers of an encoder, then its code."""
    decoder_dims: tuple[PositiveInt, ...] = (512, 1024)
    """Hidden layers of a decoder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.variant == "none" and self.virtual_length == "predicted":
            raise ValueError(
                "variant 'none' trains nothing, so it cannot predict lengths; set virtual_length "
                "'full'"
            )
        if self.variant == "none" and self.standardise_targets:
            raise ValueError(
                "variant 'none' observes nothing, so it cannot standardise; set standardise_targets false"
            )
        if self.reconstruction_target == "pooled" and self.padding == "masked":
            raise ValueError(
                "reconstruction_target 'pooled' has no positions to mask; set padding 'counted'"
            )
        return self


@dataclass
class ZeroShotLosses:
    """Reconstruction losses of old rows, and the codes that L_d aligns. What a variant does not have is None."""

    a_N: Tensor | None = None
    """L_a: everything rebuilt from the attributes' code (Eq. 3)."""
    v_N: Tensor | None = None
    """L_v: everything rebuilt from the behaviours' code (Eq. 4)."""
    P_NH: Tensor | None = None
    """Codes of the attributes."""
    Q_NH: Tensor | None = None
    """Codes of the behaviours."""
    weights_N: Tensor | None = None
    """How often each row counts; the losses are not weighted by it."""

    @property
    def rows(self) -> dict[str, Tensor]:
        """The row losses that there are: ``a``, ``v``."""
        return {name: loss for name, loss in (("a", self.a_N), ("v", self.v_N)) if loss is not None}


class ZeroShotTower(nn.Module):
    """Two encoders onto one code, and decoders from it.

    ::

        fields     -> attention, numeric -> E1 -> p --+-> D1 -> fields
                                                      |
        behaviours -> attention          -> E2 -> q --+-> D2 -> behaviours (all sequences)

    Callers pass only the rows meant and detach what they pass in and what they take out: the wall
    stands in the model. Several sequences are one longer one to attention, E2, D2 and the losses.
    Numeric attributes join the pooled fields before E1 and are not rebuilt. A variant has only the
    modules that it trains, so each parameter gets a gradient at each step, a zero one without rows.

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
        _check(num_fields, sequences)
        self.settings, self.sequences = settings, dict(sequences)
        self.behaviour_dim = next(iter(sequences.values())).dim
        self.num_vectors = (
            len(sequences)
            if settings.reconstruction_target == "pooled"
            else sum(shape.max_length for shape in sequences.values())
        )
        behaviour_width = self.num_vectors * self.behaviour_dim
        if settings.variant == "none":
            self.linear = nn.Linear(
                num_fields * field_dim + num_numeric, behaviour_width
            ).requires_grad_(False)
            return
        self.decoded_fields = (
            list(group_fields.values()) if settings.decoders == "per_group" else [num_fields]
        )
        if settings.pooling == "attention":
            self.attribute_attention = AttentionPooling(field_dim, settings.attention_dim)
        self.attribute_encoder = self._encoder(
            (field_dim if settings.pooling == "attention" else num_fields * field_dim) + num_numeric
        )
        if settings.variant != "single":
            self.behaviour_attention = AttentionPooling(self.behaviour_dim, settings.attention_dim)
            self.behaviour_encoder = self._encoder(self.behaviour_dim)
        self.field_decoders = nn.ModuleList(
            self._decoder(num * field_dim) for num in self.decoded_fields
        )
        self.behaviour_decoder = self._decoder(behaviour_width)
        if settings.virtual_length == "predicted":
            self.length_head = nn.Linear(settings.encoder_dims[-1], len(sequences))
        if settings.standardise_targets:
            self.field_scale = Standardiser(num_fields * field_dim)
            # A pooled vector has a scale of its own a sequence; positions share one, or rare long
            # histories would be scaled by few.
            self.behaviour_scale = Standardiser(
                self.behaviour_dim
                * (len(sequences) if settings.reconstruction_target == "pooled" else 1)
            )

    def losses(
        self,
        fields_NFD: Tensor,
        numeric_NM: Tensor,
        sequences: dict[str, Behaviours],
        weights_N: Tensor | None = None,
    ) -> ZeroShotLosses:
        """Row losses and codes of old rows, of which there may be 0 or 1; every rank calls it in a training step.

        Args:
            fields_NFD: their fields.
            numeric_NM: their numeric attributes.
            sequences: of each sequence the behaviours [N, T, d] and their number [N].
            weights_N: how often each one counts, in what standardises and to who takes the mean;
                once by default.
        """
        if self.settings.variant == "none":
            return ZeroShotLosses()
        behaviours = [sequences[name] for name in self.sequences]
        values_NRD, mask_NR = join(behaviours)
        weights_N = fields_NFD.new_ones(fields_NFD.shape[0]) if weights_N is None else weights_N
        targets = self._targets(fields_NFD, behaviours, values_NRD, mask_NR, weights_N)
        P_NH = self._encode_attributes(fields_NFD, numeric_NM)
        if self.settings.variant == "single":
            [a_N] = self._reconstructions([P_NH], targets)
            return ZeroShotLosses(a_N, None, P_NH, None, weights_N)
        Q_NH = self.behaviour_encoder(self.behaviour_attention(values_NRD, mask_NR))
        a_N, v_N = self._reconstructions([P_NH, Q_NH], targets)
        return ZeroShotLosses(a_N, v_N, P_NH, Q_NH, weights_N)

    def virtual(self, fields_NFD: Tensor, numeric_NM: Tensor) -> dict[str, Behaviours]:
        """Virtual behaviours ``D2(E1(h_a))`` [N, T, d] of each sequence and their number [N] (int64), Eq. 8."""
        relative_NS = None
        if self.settings.variant == "none":
            decoded = self.linear(torch.cat([fields_NFD.flatten(1), numeric_NM], dim=1))
        else:
            drop = self.settings.virtual_dropout
            code_NH = self._encode_attributes(fields_NFD, numeric_NM, drop=drop)
            decoded = self.behaviour_decoder(code_NH, drop=drop)
            if self.settings.virtual_length == "predicted":
                relative_NS = self.length_head(code_NH)
        decoded_NVD = decoded.view(decoded.shape[0], self.num_vectors, self.behaviour_dim)
        if self.settings.standardise_targets:
            decoded_NVD = self.behaviour_scale.inverse(
                _rows(decoded_NVD, self.behaviour_scale)
            ).view_as(decoded_NVD)
        max_lengths = [shape.max_length for shape in self.sequences.values()]
        made = (spread if self.settings.reconstruction_target == "pooled" else split)(
            decoded_NVD, max_lengths, relative_NS
        )
        return dict(zip(self.sequences, made, strict=True))

    def pooled_fields(self, fields_NFD: Tensor) -> Tensor:
        """What E1 sees of the fields, ``h_a`` [N, E]; not for variant ``none``, which has no encoder."""
        if self.settings.standardise_targets:
            fields_NFD = self.field_scale(fields_NFD.flatten(1)).view_as(fields_NFD)
        pooled_NE: Tensor = (
            self.attribute_attention(fields_NFD)
            if self.settings.pooling == "attention"
            else fields_NFD.flatten(1)
        )
        return pooled_NE

    def _encoder(self, in_dim: int) -> ResidualEncoder:
        return ResidualEncoder(in_dim, self.settings.encoder_dims, self.settings.dropout)

    def _decoder(self, out_dim: int) -> ResidualDecoder:
        return ResidualDecoder(
            self.settings.encoder_dims[-1],
            self.settings.decoder_dims,
            out_dim,
            self.settings.dropout,
        )

    def _encode_attributes(
        self, fields_NFD: Tensor, numeric_NM: Tensor, *, drop: bool = True
    ) -> Tensor:
        code_NH: Tensor = self.attribute_encoder(
            torch.cat([self.pooled_fields(fields_NFD), numeric_NM], dim=1), drop=drop
        )
        return code_NH

    def _targets(
        self,
        fields_NFD: Tensor,
        behaviours: list[Behaviours],
        values_NRD: Tensor,
        mask_NR: Tensor,
        weights_N: Tensor,
    ) -> list[tuple[nn.Module, Tensor, Tensor | None]]:
        """What each decoder has to make of a code, and the mask of what counts in it."""
        mask = mask_NR if self.settings.padding == "masked" else None
        vectors_NVD = (
            pooled(behaviours) if self.settings.reconstruction_target == "pooled" else values_NRD
        )
        if self.settings.standardise_targets:
            vectors_NVD = _standardised(self.behaviour_scale, vectors_NVD, mask, weights_N)
            fields_NFD = _standardised(self.field_scale, fields_NFD, None, weights_N)
        targets: list[tuple[nn.Module, Tensor, Tensor | None]] = [
            (self.behaviour_decoder, vectors_NVD, mask)
        ]
        for decoder, field_NFD in zip(
            self.field_decoders, torch.split(fields_NFD, self.decoded_fields, dim=1), strict=True
        ):
            targets.append((decoder, field_NFD, None))
        if self.settings.virtual_length == "predicted":
            relative = [
                lengths_N.to(values_NRD.dtype) / values_NTD.shape[1]
                for values_NTD, lengths_N in behaviours
            ]
            targets.append((self.length_head, torch.stack(relative, dim=1).unsqueeze(2), None))
        return targets

    def _reconstructions(
        self, codes: list[Tensor], targets: list[tuple[nn.Module, Tensor, Tensor | None]]
    ) -> list[Tensor]:
        """Eqs. 3 and 4, row by row: everything rebuilt from each code [N, H]. The codes go through a decoder together."""
        together = torch.cat(codes)
        losses_CN = [
            reconstruction_loss(
                decoder(together).view(len(codes), *target.shape),
                target,
                mask,
                self.settings.reduction,
            )
            for decoder, target, mask in targets
        ]
        return list(torch.stack(losses_CN).sum(0))


def _rows(vectors_NVD: Tensor, scale: Standardiser) -> Tensor:
    """The vectors as the scale knows them: all of a row's side by side, or each for itself."""
    return vectors_NVD.reshape(vectors_NVD.numel() // scale.dim, scale.dim)


def _standardised(
    scale: Standardiser, vectors_NVD: Tensor, mask_NV: Tensor | None, weights_N: Tensor
) -> Tensor:
    """Takes the vectors, those of the mask alone if there is one, into the averages and standardises all."""
    rows = _rows(vectors_NVD, scale)
    weights_NR = weights_N.unsqueeze(1).expand(-1, rows.shape[0] // max(weights_N.shape[0], 1))
    scale.observe(rows, (weights_NR if mask_NV is None else weights_NR * mask_NV).flatten())
    standardised: Tensor = scale(rows)
    return standardised.view_as(vectors_NVD)


def _check(num_fields: int, sequences: dict[str, SequenceShape]) -> None:
    if num_fields == 0:
        raise ValueError(
            "the zero-shot tower should see a categorical field, received none; add a column with "
            "group 'attribute'"
        )
    if not sequences:
        raise ValueError(
            "the zero-shot tower should have behaviours to rebuild, received none; add a column "
            "with group 'behaviour'"
        )
    dims = {name: shape.dim for name, shape in sequences.items()}
    if len(set(dims.values())) > 1:
        raise ValueError(
            f"the zero-shot tower needs sequences of one dimension, received {dims}; give their "
            "tables the same dim"
        )
