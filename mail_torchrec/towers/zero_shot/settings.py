"""Settings of the zero-shot tower (Feng et al. 2021, Section 3.2.2)."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mail_torchrec.losses.reconstruction import Reduction
from mail_torchrec.settings import Settings

Alignment = Literal["mmd", "paired_mse", "contrastive"]
"""Kind of L_d."""


class ZeroShotSettings(Settings):
    """Switches of the zero-shot tower.

    Defaults are the paper's; where its released code differs, that choice is named.
    """

    variant: Literal["none", "single", "dual", "full"] = "full"
    """Losses, for ablations: full (L_a + L_v + L_d), dual (L_a + L_v), single (L_a) or none (an
    untrained linear map)."""
    alignment: Alignment = "mmd"
    """L_d between the codes of attributes and behaviours: mmd (maximum mean discrepancy, paper),
    paired_mse (squared distance row by row, released code), or contrastive (InfoNCE with the step's
    other warm users as negatives; CLCRec, Wei et al., MM 2021)."""
    alignment_weight: float = Field(default=1.0, ge=0.0, exclude_if=lambda weight: weight == 1.0)
    """Weight of L_d in the sum that is minimised; the paper has 1."""
    sigma: float = Field(default=1.0, gt=0.0)
    """Bandwidth of the MMD's Gaussian kernel."""
    temperature: float = Field(
        default=1.0, gt=0.0, exclude_if=lambda temperature: temperature == 1.0
    )
    """Temperature of alignment contrastive, which divides the cosine of two codes: the smaller, the
    more the most similar negatives count; CLCRec's released code has 1."""
    fill: Literal["train_and_infer", "infer_only"] = "train_and_infer"
    """Cold users get virtual behaviours in training and evaluation (train_and_infer, paper) or in
    evaluation alone (infer_only, released code)."""
    learning_rate_scale: float = Field(default=1.0, gt=0.0)
    """Learning rate of this tower over that of the ranking tower; the released code has 0.5."""
    input_fields: Literal["user_attributes", "all_fields"] = "user_attributes"
    """Fields that the tower reads and reconstructs: user_attributes (paper), or all_fields, context
    and item fields included (released code)."""
    pooling: Literal["attention", "concat"] = "attention"
    """Pooling of the fields before the encoder E1: attention (paper), or concat, all of them side
    by side."""
    reconstruction_target: Literal["positions", "pooled", "mixture"] = "positions"
    """Target of the decoder D2: every position of a sequence (positions, paper); the mean over its
    positions (pooled), which virtual behaviours then repeat; or the share of each of
    `num_prototypes` vectors that sum its behaviours up (mixture), which virtual behaviours then
    consist of, each as often as predicted."""
    num_prototypes: PositiveInt = Field(default=32, exclude_if=lambda number: number == 32)
    """Prototypes of each sequence's behaviours, with reconstruction_target mixture."""
    ranking_weight: float = Field(default=0.0, ge=0.0, exclude_if=lambda weight: not weight)
    """Weight of L_r, the ranking loss of all rows scored on virtual behaviours, whose gradient
    reaches this tower alone: tables and ranking tower are constants to it. 0 leaves it out."""
    standardise_targets: bool = False
    """Reconstruct fields and behaviours standardised by their moving mean and deviation, since
    tables grow in training; the paper does not."""
    decoders: Literal["pair", "per_group"] = "pair"
    """One decoder for all fields (pair, paper), or one for each field group (per_group, released
    code), beside the decoder of behaviours."""
    padding: Literal["counted", "masked"] = "counted"
    """Padded positions in the reconstruction of behaviours: targets of zero (counted), or left out
    (masked)."""
    virtual_length: Literal["full", "predicted"] = "full"
    """Number of virtual behaviours: all positions (full, paper), or as many as a head on the code
    predicts (predicted, released code)."""
    reduction: Reduction = "mean"
    """Reduction of L_a, L_v and an L_d that is not the MMD: mean over elements, then over warm
    rows; or the paper's raw sum."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Dropout before all layers of encoders and decoders but the last."""
    loss_sample_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of a step's warm users, drawn anew in each step, that the losses are computed on: the
    smaller, the faster a step and the noisier its gradients; the paper has all."""
    virtual_dropout: bool = True
    """Apply dropout to virtual behaviours in training (one graph, as in the paper); false makes
    them as in evaluation."""
    attention_dim: PositiveInt = 128
    """Width of the attention pooling."""
    encoder_dims: tuple[PositiveInt, ...] = Field(default=(1024, 512, 512), min_length=1)
    """Widths of an encoder's hidden layers and, last, of its code."""
    decoder_dims: tuple[PositiveInt, ...] = (512, 1024)
    """Widths of a decoder's hidden layers."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.variant == "none" and self.virtual_length == "predicted":
            raise ValueError(
                "variant 'none' trains nothing, so it cannot predict lengths; set virtual_length "
                "'full'"
            )
        if self.variant == "none" and self.standardise_targets:
            raise ValueError(
                "variant 'none' trains nothing, so it cannot standardise; set "
                "standardise_targets false"
            )
        if self.reconstruction_target != "positions" and self.padding == "masked":
            raise ValueError(
                f"reconstruction_target '{self.reconstruction_target}' has no positions to mask; "
                "set padding 'counted'"
            )
        if self.variant == "none" and (self.is_mixture or self.ranking_weight):
            raise ValueError(
                "variant 'none' trains nothing, so it has no prototypes and no ranking loss; set "
                "reconstruction_target 'positions' or 'pooled', and ranking_weight 0"
            )
        if self.is_mixture and self.virtual_length == "full":
            raise ValueError(
                "reconstruction_target 'mixture' says nothing of padding, so virtual behaviours "
                "need a number of their own; set virtual_length 'predicted'"
            )
        if self.is_mixture and self.reduction == "sum":
            raise ValueError(
                "reconstruction_target 'mixture' has one loss a sequence and no elements to sum "
                "up; set reduction 'mean'"
            )
        return self

    @property
    def is_pooled(self) -> bool:
        """True where D2 reconstructs one vector a sequence."""
        return self.reconstruction_target == "pooled"

    @property
    def is_mixture(self) -> bool:
        """True where D2 reconstructs the shares of prototypes."""
        return self.reconstruction_target == "mixture"

    def aligns_by(self, alignment: Alignment) -> bool:
        """Returns whether L_d is part of the loss and is of this kind."""
        return self.variant == "full" and self.alignment == alignment
