"""Attention pooling and residual stacks equal Eqs. 1, 2, 15 and 16."""

import numpy as np
import pytest
import torch
from torch import nn

from mail_torchrec.towers.layers.attention import AttentionPooling, masked_softmax
from mail_torchrec.towers.layers.residual import ResidualDecoder, ResidualEncoder
from tests.support import reference
from tests.support.random_inputs import ready


class Holder(nn.Module):
    """Gives a module the name that the reference looks for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_attention_pooling_equals_the_formula() -> None:
    holder = ready(Holder(AttentionPooling(3, attention_dim=5)))
    values, lengths = torch.randn(4, 6, 3, dtype=torch.float64), [0, 1, 4, 6]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    p = reference.parameters(holder)
    for masks, reals in ((mask, lengths), (None, [6] * 4)):
        expected = [
            reference.attention_pooling(p, "module", list(values[n, : reals[n]].numpy()))
            for n in range(4)
        ]
        np.testing.assert_allclose(
            holder.module(values, masks).detach().numpy(), expected, rtol=1e-10
        )


def test_a_row_without_positions_is_zero_with_finite_gradients() -> None:
    pooling, values = AttentionPooling(3), torch.randn(2, 4, 3, requires_grad=True)
    pooled = pooling(values, torch.tensor([[False] * 4, [True] * 4]))
    pooled.sum().backward()
    assert pooled[0].eq(0).all()
    assert values.grad is not None and values.grad[0].eq(0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pooling.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_holds_in_every_precision(dtype: torch.dtype) -> None:
    scores, mask = (
        torch.tensor([[100.0, -100.0, 3.0], [1.0, 2.0, 3.0]], dtype=dtype),
        torch.tensor([[False, True, False], [False] * 3]),
    )
    assert masked_softmax(scores, mask).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_encoder_and_decoder_equal_the_formulas() -> None:
    holder = ready(Holder(ResidualEncoder(3, (7, 6, 5), dropout=0.5)))
    h = torch.randn(4, 3, dtype=torch.float64)
    expected = [reference.encoder(reference.parameters(holder), "module", row) for row in h.numpy()]
    np.testing.assert_allclose(holder.module(h).detach().numpy(), expected, rtol=1e-10)
    holder = ready(Holder(ResidualDecoder(3, (6, 7), 8, dropout=0.5)))
    expected = [reference.decoder(reference.parameters(holder), "module", row) for row in h.numpy()]
    np.testing.assert_allclose(holder.module(h).detach().numpy(), expected, rtol=1e-10)


def test_default_widths_are_those_of_the_paper() -> None:
    encoder, decoder = (
        ResidualEncoder(32, (1024, 512, 512), 0.5),
        ResidualDecoder(512, (512, 1024), 9 * 32, 0.5),
    )
    assert [tuple(layer.weight.shape) for layer in encoder.layers] == [
        (1024, 32),
        (512, 1056),
        (512, 544),
    ]
    assert [tuple(layer.weight.shape) for layer in decoder.layers] == [
        (512, 512),
        (1024, 1024),
        (288, 1536),
    ]


def test_dropout_acts_before_all_layers_but_the_last() -> None:
    decoder = ResidualDecoder(3, (4, 5), 2, dropout=0.5).train()
    seen: list[int] = []
    decoder.dropout.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[1])
    )
    decoder(torch.randn(2, 3))
    assert seen == [3, 4 + 3]
