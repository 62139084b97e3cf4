"""Scores of behaviours in bfloat16 on CPUs: block by block, so that nothing leaves the caches.

Layer by layer the scores read and write each position's hidden elements a dozen times in memory,
which takes longer than the products on matrix units. Here a block of positions goes through all
layers while the caches hold it, and so backward. All blocks have one size, since kernels for those
units are generated anew for each new shape.

Shape letters: ``N`` real positions, ``P`` positions of a block, ``R`` rows of a table of vectors,
``D`` elements of a vector, ``H`` hidden elements.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_BLOCK = 4096
"""Positions of a block: their hidden elements take some MiB."""
_NUM_VECTORS = 3  # of each position, before the layers


@dataclass(frozen=True)
class Gathered:
    """Vectors of all positions, as rows of a table."""

    table_RD: Tensor
    """The vectors."""
    rows_N: Tensor
    """Row of each position (int64)."""


def blocked_scores(
    g: nn.Sequential, slopes_D: Tensor, behaviours: Gathered, queries: Sequence[Gathered]
) -> Tensor:
    """Computes ``g([q, e, q - e, q * e])`` of each position [N] in float32.

    Args:
        g: dense layers with sigmoids between them, the last one of one output.
        slopes_D: of the PReLU that makes ``q`` of the sum of the queries.
        behaviours: ``e``.
        queries: terms of the queries.
    """
    layers = [layer for layer in g if isinstance(layer, nn.Linear)]
    W1_HD, W2_HD, W3_HD, W4_HD = layers[0].weight.chunk(4, dim=1)
    # The first layer as one of [q, q * e, e].
    first = torch.cat([W1_HD + W3_HD, W4_HD, W2_HD - W3_HD], dim=1)
    gathered = (behaviours, *queries)
    with torch.autocast("cpu", enabled=False):
        scores_N = _BlockedScores.apply(
            torch.stack([one.rows_N for one in gathered]),
            slopes_D,
            *(one.table_RD for one in gathered),
            first,
            *(layer.weight for layer in layers[1:]),
            *(layer.bias for layer in layers),
        )
    return cast(Tensor, scores_N)


class _BlockedScores(torch.autograd.Function):
    """The scores, and their gradients block by block."""

    @staticmethod
    def forward(ctx: Any, rows_GN: Tensor, *vectors: Tensor) -> Tensor:
        weights = _Weights.of([vector.detach().bfloat16() for vector in vectors], len(rows_GN))
        blocks = [_forward(rows_GP, weights) for rows_GP in _blocks(rows_GN)]
        hidden = (x for block in blocks for x in block.hidden)
        ctx.save_for_backward(rows_GN, *weights.flat(), *hidden)
        ctx.dtypes = [vector.dtype for vector in vectors]
        none = torch.zeros(0, 1)  # where there is no position
        return torch.cat([none, *(block.scores_P1 for block in blocks)])[: rows_GN.shape[1], 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        rows_GN, *saved = ctx.saved_tensors
        vectors, hidden = saved[: len(ctx.dtypes)], iter(saved[len(ctx.dtypes) :])
        weights = _Weights.of(vectors, len(rows_GN))
        sums = _Weights.of(
            [torch.zeros_like(v, dtype=torch.float32) for v in vectors], len(rows_GN)
        )
        padded_N = functional.pad(gradient_N, (0, -len(gradient_N) % _BLOCK)).bfloat16()
        for rows_GP, gradient_P in zip(_blocks(rows_GN), padded_N.split(_BLOCK), strict=False):
            of_block = islice(hidden, _NUM_VECTORS + len(weights.biases))
            _backward(rows_GP, list(of_block), gradient_P.unsqueeze(1), weights, sums)
        gradients = zip(sums.flat(), ctx.dtypes, strict=True)
        return None, *(gradient.to(dtype) for gradient, dtype in gradients)


class _Weights(NamedTuple):
    """Parameters and tables of the scores, or the gradients of both."""

    slopes_D: Tensor
    tables: list[Tensor]
    """Of the behaviours, then of the queries, each [R, D]."""
    weights: list[Tensor]
    """Of the dense layers."""
    biases: list[Tensor]

    @staticmethod
    def of(flat: Sequence[Tensor], num_tables: int) -> "_Weights":
        slopes_D, *others = flat
        tables, layers = others[:num_tables], others[num_tables:]
        num_layers = len(layers) // 2
        return _Weights(slopes_D, tables, layers[:num_layers], layers[num_layers:])

    def flat(self) -> list[Tensor]:
        return [self.slopes_D, *self.tables, *self.weights, *self.biases]


class _Block(NamedTuple):
    """Results of the forward pass of a block."""

    hidden: list[Tensor]
    """The query before the PReLU, ``q`` and ``e`` [P, D], then the input of each dense layer
    [P, H]."""
    scores_P1: Tensor


def _blocks(rows_GN: Tensor) -> Iterator[Tensor]:
    """Blocks of one size [G, P]; the last one is filled up, with positions of gradient 0."""
    num_positions = rows_GN.shape[1]
    padded_GN = functional.pad(rows_GN, (0, -num_positions % _BLOCK))
    return iter(padded_GN.split(_BLOCK, dim=1) if num_positions else ())


def _forward(rows_GP: Tensor, weights: _Weights) -> _Block:
    gathered = zip(weights.tables, rows_GP, strict=True)
    e_PD, query_PD, *terms = (table.index_select(0, rows_P) for table, rows_P in gathered)
    for term_PD in terms:
        query_PD += term_PD
    q_PD = functional.prelu(query_PD, weights.slopes_D)
    inputs = [torch.cat([q_PD, q_PD * e_PD, e_PD], dim=1)]
    for weight, bias in zip(weights.weights[:-1], weights.biases[:-1], strict=True):
        inputs.append(functional.linear(inputs[-1], weight, bias).sigmoid_())
    scores_P1 = functional.linear(inputs[-1], weights.weights[-1], weights.biases[-1])
    return _Block([query_PD, q_PD, e_PD, *inputs], scores_P1.float())


def _backward(
    rows_GP: Tensor, hidden: list[Tensor], gradient: Tensor, weights: _Weights, sums: _Weights
) -> None:
    """Adds the gradients of a block to ``sums``; those of the scores are [P, 1]."""
    query_PD, q_PD, e_PD, *inputs = hidden
    for number in reversed(range(len(inputs))):
        x_PH = inputs[number]
        sums.weights[number].add_(_weight_gradient(gradient, x_PH))
        sums.biases[number].add_(gradient.sum(0, dtype=torch.float32))
        if number:  # x is a sigmoid.
            gradient = gradient @ weights.weights[number]
            gradient = torch.ops.aten.sigmoid_backward(gradient, x_PH)
    to_q_PD, to_product_PD, to_e_PD = (gradient @ weights.weights[0]).chunk(3, dim=1)
    to_q_PD = torch.addcmul(to_q_PD, to_product_PD, e_PD)
    to_e_PD = torch.addcmul(to_e_PD, to_product_PD, q_PD)
    positive_PD = torch.ops.aten.threshold_backward(to_q_PD, query_PD, 0)
    negative_PD = to_q_PD - positive_PD
    sums.slopes_D.add_((negative_PD * query_PD).sum(0, dtype=torch.float32))
    to_query_PD = positive_PD.addcmul_(negative_PD, weights.slopes_D).float()
    gradients = to_e_PD.float(), *[to_query_PD] * (len(rows_GP) - 1)
    for sum_RD, rows_P, gradient_PD in zip(sums.tables, rows_GP, gradients, strict=True):
        # PyTorch sorts rows that are expanded, and adds the gradients of equal ones in parallel.
        sum_RD.scatter_add_(0, rows_P.unsqueeze(1).expand_as(gradient_PD), gradient_PD)


def _weight_gradient(gradient: Tensor, x_PH: Tensor) -> Tensor:
    """The gradient of a dense layer's weight, from that of its output [P, width]."""
    if gradient.shape[1] > 1:
        return gradient.T @ x_PH
    return (gradient * x_PH).sum(0, keepdim=True, dtype=torch.float32)  # products of one column
