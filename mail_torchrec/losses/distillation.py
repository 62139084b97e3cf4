"""Aligning losses of ALDI: a cold item, the student, learns from its warm self, the teacher.

Source: Huang et al., "Aligning Distillation For Cold-start Item Recommendation", SIGIR 2023, and
the authors' code (zfnWong/ALDI), which settles the signs and means. Teachers are constants: callers
detach them.

Shape letters: ``B`` rows, each a user with a positive and a negative item; ``G`` elements.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def teacher_weights(frequency_B: Tensor, cap: float | None) -> Tensor:
    """Weighs teachers by their training: ``min(tanh(cap * frequency), tanh(cap))``, [B].

    Args:
        frequency_B: occurrences of each row's item over those of the mean item.
        cap: the paper's M; None weighs all alike, by 1.
    """
    if cap is None:
        return torch.ones_like(frequency_B)
    return torch.tanh(cap * frequency_B).clamp(max=math.tanh(cap))


def rating_alignment(teacher_B2: Tensor, student_B2: Tensor) -> Tensor:
    """Computes the distance of the students' scores from the teachers', [B].

    Args:
        teacher_B2: logits of the positive and the negative item as warm ones.
        student_B2: logits of the same items as cold ones.
    """
    return (teacher_B2 - student_B2).abs().sum(1)


def ranking_alignment(teacher_B2: Tensor, student_B2: Tensor) -> Tensor:
    """Computes the cross-entropy of the students' preference and the teachers', [B].

    A preference is the sigmoid of the positive item's logit less the negative one's.

    Args:
        teacher_B2: logits of the positive and the negative item as warm ones.
        student_B2: logits of the same items as cold ones.
    """
    return _alike(student_B2[:, 0] - student_B2[:, 1], teacher_B2[:, 0] - teacher_B2[:, 1])


def identification(vectors_BG: Tensor, negatives_G: Tensor) -> Tensor:
    """Computes how far an item stands out, its product with itself less that with others, [B].

    Args:
        vectors_BG: vectors of the positive items.
        negatives_G: mean vector of the negative items; the mean of products is the product with it.
    """
    return vectors_BG.square().sum(1) - vectors_BG @ negatives_G


def identification_alignment(teacher_B: Tensor, student_B: Tensor) -> Tensor:
    """Computes the cross-entropy of the students' identification and the teachers', [B].

    Args:
        teacher_B: identification of the items as warm ones.
        student_B: of the same items as cold ones.
    """
    return _alike(student_B, teacher_B)


def _alike(student_B: Tensor, teacher_B: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        student_B, teacher_B.sigmoid(), reduction="none"
    )
