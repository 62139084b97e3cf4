"""Calibration of clicks as a part of the exported graph.

Shapes: ``B`` candidates, ``K`` knots of the map, ``J`` lines between them.
"""

import numpy as np
import torch
from torch import Tensor, nn

from mail_torchrec.calibration.calibrator import Calibrator


class CalibratedClicks(nn.Module):
    """Calibrator of clicks as part of a graph.

    A sum of terms that rise with the logit, so that rounding keeps the order too.

    Args:
        calibrator: the fitted map.
    """

    def __init__(self, calibrator: Calibrator) -> None:
        super().__init__()
        x_K, y_K = np.array(calibrator.logits), np.array(calibrator.calibrated)
        self.first, self.last, self.lowest = float(x_K[0]), float(x_K[-1]), float(y_K[0])
        self.first_slope, self.last_slope = calibrator.first_slope, calibrator.last_slope
        for name, values in (
            ("starts_J", x_K[:-1]),
            ("widths_J", np.diff(x_K)),
            ("slopes_J", np.diff(y_K) / np.diff(x_K)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))

    def forward(self, logits_B: Tensor) -> Tensor:
        """Computes the calibrated logits [B].

        Args:
            logits_B: of a click.
        """
        below_B = self.first_slope * (logits_B - self.first).clamp(max=0)
        above_B = self.last_slope * (logits_B - self.last).clamp(min=0)
        calibrated_B = self.lowest + below_B + above_B
        if not len(self.starts_J):
            return calibrated_B
        passed_BJ = (logits_B.unsqueeze(1) - self.starts_J).clamp(min=0).minimum(self.widths_J)
        return calibrated_B + (passed_BJ * self.slopes_J).sum(1)
