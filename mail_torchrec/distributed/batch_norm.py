"""Batch normalisation over the rows of all ranks, on CPU and CUDA, and of a batch of one row.

``torch.nn.SyncBatchNorm`` runs on GPUs only; this one makes a job on N ranks equal to one rank with
an N times larger batch on any device. Shape letters: ``B`` rows of this rank, ``C`` columns.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mail_torchrec.distributed.collectives import sum_over_ranks


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Normalises columns by the training statistics of all ranks' rows, [B, C] -> [B, C]."""

    def forward(self, x_BC: Tensor) -> Tensor:
        """Normalises the columns; in evaluation as ``nn.BatchNorm1d`` does."""
        if not self.training:
            return super().forward(x_BC)
        if x_BC.dim() != 2:
            raise ValueError(
                "on several ranks BatchNorm1d should receive [rows, columns], received "
                f"{tuple(x_BC.shape)}; flatten it first"
            )
        num_columns, x_BC = x_BC.shape[1], x_BC.float() if x_BC.dtype is torch.bfloat16 else x_BC
        ones = x_BC.new_full((1,), x_BC.shape[0])
        # Two rounds, mean then variance: the sum of squares in one round would cancel badly in
        # float32.
        first = sum_over_ranks(torch.cat([x_BC.sum(0), ones]))
        count, mean_C = (
            first[num_columns].detach(),
            first[:num_columns] / first[num_columns].detach(),
        )
        centred_BC = x_BC - mean_C
        variance_C = sum_over_ranks((centred_BC**2).sum(0)) / count
        self._update_running(mean_C.detach(), variance_C.detach(), count)
        normal_BC = centred_BC * torch.rsqrt(variance_C + self.eps)
        return normal_BC * self.weight + self.bias if self.affine else normal_BC

    @torch.no_grad()
    def _update_running(self, mean_C: Tensor, variance_C: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = (
            self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked or 1)
        )
        unbiased_C = variance_C * count / (count - 1).clamp(min=1)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(unbiased_C, momentum)


class LocalBatchNorm1d(nn.BatchNorm1d):
    """Normalises columns as ``nn.BatchNorm1d`` does, and a batch of one row too, [B, C] -> [B, C].

    One row has no variance: ``nn.BatchNorm1d`` refuses it in training. It is normalised by the
    moving statistics, which it does not change. (On several ranks there are at least two rows.)
    """

    def forward(self, x_BC: Tensor) -> Tensor:
        """Normalises the columns."""
        if self.training and x_BC.shape[0] == x_BC[:, 0].numel() == 1 and self.track_running_stats:
            return functional.batch_norm(
                x_BC, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x_BC)


def convert_batch_norms(module: nn.Module, num_ranks: int) -> None:
    """Converts every ``nn.BatchNorm1d`` of a module, in place, into the one for so many ranks."""
    for child in module.modules():
        if type(child) is nn.BatchNorm1d:
            child.__class__ = GlobalBatchNorm1d if num_ranks > 1 else LocalBatchNorm1d
