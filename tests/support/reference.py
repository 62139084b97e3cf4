"""Formulas of the method in float64 NumPy, row by row and position by position.

They are written from the papers, not from the code under test.

Parameters are read from a ``state_dict`` by name; everything is as in evaluation (no dropout,
running batch statistics).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

Array = npt.NDArray[Any]
Parameters = dict[str, Array]


def parameters(module: nn.Module) -> Parameters:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def leaky_relu(x: Array) -> Array:
    return np.where(x > 0, x, 0.01 * x)


def prelu(x: Array, slope: Array) -> Array:
    return np.where(x > 0, x, slope * x)


def dense(p: Parameters, name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def batch_norm(p: Parameters, name: str, x: Array) -> Array:
    scaled = (x - p[f"{name}.running_mean"]) / np.sqrt(p[f"{name}.running_var"] + 1e-5)
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max())
    weights: Array = exponentials / exponentials.sum()
    return weights


# Losses


def esmm(
    p: Parameters,
    click_logit: float,
    representation: Array,
    click: int,
    conversion: int,
    click_weight: float,
) -> tuple[float, ...]:
    """Computes pCVR, pCTCVR and the weighted loss of one row (Ma et al. 2018, Eqs. 1 and 4)."""
    layers = sorted({int(name.split(".")[1]) for name in p if name.endswith("weight")})
    x = representation
    for layer in layers[:-1]:
        x = leaky_relu(dense(p, f"layers.{layer}", x))
    click_p, conversion_p = (
        sigmoid(np.float64(click_logit)),
        sigmoid(dense(p, f"layers.{layers[-1]}", x)[0]),
    )
    both_p, both = click_p * conversion_p, click * conversion

    def entropy(label: int, probability: float) -> float:
        return -math.log(probability if label else 1 - probability)

    return (
        conversion_p,
        both_p,
        click_weight * entropy(click, click_p) + (1 - click_weight) * entropy(both, both_p),
    )


def squared_error(predicted: Array, target: Array, real: Array | None, reduction: str) -> float:
    """One row, [F, D]; ``real`` says which of the F vectors count."""
    kept = [f for f in range(len(target)) if real is None or real[f]]
    elements = [(predicted[f, d] - target[f, d]) ** 2 for f in kept for d in range(target.shape[1])]
    return (
        float(sum(elements)) if reduction == "sum" else float(sum(elements)) / max(len(elements), 1)
    )


def mmd(P: Array, Q: Array, sigma: float) -> float:
    """Eq. 5 with 1 / n^2 on all three terms."""
    n = len(P)

    def kernel(x: Array, y: Array) -> float:
        return math.exp(-((x - y) ** 2).sum() / (2 * sigma**2))

    total = 0.0
    for i in range(n):
        for j in range(n):
            total += kernel(P[i], P[j]) + kernel(Q[i], Q[j]) - 2 * kernel(P[i], Q[j])
    return total / n**2


def sampled_softmax(
    user: Array,
    last: Array,
    negatives: Array,
    last_id: int,
    negative_ids: Array,
    last_log_q: float,
    negative_log_q: Array,
) -> float:
    """One row."""
    true = user @ last - last_log_q
    others = [
        user @ negatives[k] - negative_log_q[k]
        for k in range(len(negatives))
        if negative_ids[k] != last_id
    ]
    return float(-true) + math.log(sum(math.exp(logit) for logit in [true, *others]))


def bce(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -(label * math.log(probability) + (1 - label) * math.log(1 - probability))


# Zero-shot tower


def attention_pooling(p: Parameters, name: str, vectors: list[Array]) -> Array:
    """Eqs. 1 and 2 over one row's real vectors."""
    dim = p[f"{name}.hidden.weight"].shape[1]
    if not vectors:
        return np.zeros(dim)
    z = p[f"{name}.score.weight"][0]
    alpha = softmax(np.array([z @ np.tanh(dense(p, f"{name}.hidden", x)) for x in vectors]))
    return sum((weight * x for weight, x in zip(alpha, vectors, strict=True)), np.zeros(dim))


def encoder(p: Parameters, name: str, h: Array) -> Array:
    """Eq. 15."""
    z1 = leaky_relu(dense(p, f"{name}.layers.0", h))
    z2 = leaky_relu(dense(p, f"{name}.layers.1", np.concatenate([z1, h])))
    return leaky_relu(dense(p, f"{name}.layers.2", np.concatenate([z2, h])))


def decoder(p: Parameters, name: str, code: Array) -> Array:
    """Eq. 16."""
    z3 = leaky_relu(dense(p, f"{name}.layers.0", code))
    z4 = leaky_relu(dense(p, f"{name}.layers.1", np.concatenate([z3, code])))
    return dense(p, f"{name}.layers.2", np.concatenate([z4, code]))


def attribute_code(p: Parameters, fields: Array, numeric: Array) -> Array:
    attended = "attribute_attention.score.weight" in p
    seen = (
        attention_pooling(p, "attribute_attention", list(fields))
        if attended
        else np.concatenate(list(fields))
    )
    return encoder(p, "attribute_encoder", np.concatenate([seen, numeric]))


def behaviour_code(p: Parameters, behaviours: list[tuple[Array, int]]) -> Array:
    real = [values[t] for values, length in behaviours for t in range(length)]
    return encoder(p, "behaviour_encoder", attention_pooling(p, "behaviour_attention", real))


def reconstruction(
    p: Parameters,
    code: Array,
    groups: list[int],
    fields: Array,
    behaviours: list[tuple[Array, int]],
    settings: Any,
) -> float:
    """Eq. 3 from ``p`` or Eq. 4 from ``q``, one row. ``groups`` are the fields of each decoder."""
    start, total = 0, 0.0
    for index, num in enumerate(groups):
        target = fields[start : start + num]
        total += squared_error(
            decoder(p, f"field_decoders.{index}", code).reshape(target.shape),
            target,
            None,
            settings.reduction,
        )
        start += num
    target = np.concatenate(
        [
            [v if t < length else 0 * v for t, v in enumerate(values)]
            for values, length in behaviours
        ]
    )
    real = np.array([t < length for values, length in behaviours for t in range(len(values))])
    if settings.reconstruction_target == "pooled":
        target = np.array(
            [
                sum((values[t] for t in range(length)), 0 * values[0]) / len(values)
                for values, length in behaviours
            ]
        )
    rebuilt = decoder(p, "behaviour_decoder", code).reshape(target.shape)
    total += squared_error(
        rebuilt, target, real if settings.padding == "masked" else None, settings.reduction
    )
    if settings.virtual_length == "predicted":
        relative = np.array([[length / len(values)] for values, length in behaviours])
        total += squared_error(
            dense(p, "length_head", code)[:, None], relative, None, settings.reduction
        )
    return total


def virtual(
    p: Parameters, fields: Array, numeric: Array, lengths: list[int], dim: int, settings: Any
) -> list[tuple[Array, int]]:
    """Eq. 8 of one row; ``lengths`` are the T of the sequences."""
    if settings.variant == "none":
        decoded, relative = dense(p, "linear", np.concatenate([fields.ravel(), numeric])), None
    else:
        code = attribute_code(p, fields, numeric)
        decoded = decoder(p, "behaviour_decoder", code)
        relative = dense(p, "length_head", code) if settings.virtual_length == "predicted" else None
    decoded, start, found = decoded.reshape(-1, dim), 0, []
    for index, num in enumerate(lengths):
        length = num if relative is None else min(max(round(float(relative[index]) * num), 1), num)
        if settings.reconstruction_target == "pooled":
            values = np.array([decoded[index] * num / length] * num)
        else:
            values = decoded[start : start + num].copy()
        values[length:] = 0
        found.append((values, length))
        start += num
    return found


# Ranking towers, one row each: fields [A, d], [C, d], [I, d], numbers [N], sequences as dicts


def emblr(
    p: Parameters, groups: list[Array], numeric: Array, sequences: list[dict[str, Any]]
) -> float:
    logit = float(p["bias"][0]) + sum(float(group.sum()) for group in groups)
    logit += sum(float(s["values"][t, 0]) for s in sequences for t in range(s["length"]))
    return logit + (float(p["numeric.weight"][0] @ numeric) if len(numeric) else 0.0)


def base_dnn(
    p: Parameters, groups: list[Array], numeric: Array, sequences: list[dict[str, Any]]
) -> float:
    """Eqs. 11 and 12, two hidden layers."""
    pooled = [s["values"][: s["length"]].sum(0) for s in sequences] + [
        group.sum(0) for group in groups if len(group)
    ]
    return regularised_dnn(p, "layers", "layers.8", np.concatenate([*pooled, numeric]))


def regularised_dnn(p: Parameters, hidden: str, last: str, z: Array) -> float:
    """Eq. 12 with two hidden layers."""
    for layer in (0, 4):  # Dropout, Dense, BatchNorm, LeakyReLU
        z = leaky_relu(batch_norm(p, f"{hidden}.{layer + 2}", dense(p, f"{hidden}.{layer + 1}", z)))
    return float(dense(p, last, z)[0])


def mean_behaviour(s: dict[str, Any]) -> Array:
    total = np.zeros(s["values"].shape[1])
    for t in range(s["length"]):
        total = total + s["values"][t]
    return total / s["length"] if s["length"] else total


def linear_numbers(p: Parameters, name: str, numeric: Array) -> float:
    return sum(float(p[f"{name}.weight"][0, n] * numeric[n]) for n in range(len(numeric)))


def wide_deep(
    p: Parameters,
    groups: list[Array],
    numeric: Array,
    sequences: list[dict[str, Any]],
    first_order: float,
) -> float:
    """``first_order`` is the sum of the ids' weights. The deep part reads vectors side by side."""
    attributes, context, items = groups
    vectors = [
        attributes.ravel(),
        items.ravel(),
        context.ravel(),
        numeric,
        *map(mean_behaviour, sequences),
    ]
    return (
        first_order
        + linear_numbers(p, "wide.numeric", numeric)
        + regularised_dnn(p, "deep", "logit", np.concatenate(vectors))
    )


def deepfm(
    p: Parameters,
    groups: list[Array],
    numeric: Array,
    sequences: list[dict[str, Any]],
    first_order: float,
) -> float:
    """The second order by its definition: every pair of fields once."""
    attributes, context, items = groups
    fields = [*attributes, *items, *context, *map(mean_behaviour, sequences)]
    pairs = sum(
        float(fields[i] @ fields[j]) for i in range(len(fields)) for j in range(i + 1, len(fields))
    )
    deep = regularised_dnn(p, "deep", "logit", np.concatenate([*fields, numeric]))
    return first_order + linear_numbers(p, "first_order.numeric", numeric) + pairs + deep


def dice(p: Parameters, name: str, x: Array) -> Array:
    """Zhou et al. 2018, Eq. 9."""
    chance = sigmoid(
        (x - p[f"{name}.norm.running_mean"]) / np.sqrt(p[f"{name}.norm.running_var"] + 1e-8)
    )
    return chance * x + (1 - chance) * p[f"{name}.slope"] * x


def din(
    p: Parameters,
    groups: list[Array],
    numeric: Array,
    sequences: list[dict[str, Any]],
    normalise: str = "none",
    activation: str = "dice",
) -> float:
    """Two hidden layers, and one in the activation unit."""
    attributes, context, items = groups
    parts = [attributes.ravel(), items.ravel(), context.ravel(), numeric]
    for index, s in enumerate(sequences):
        weights, target = [], s["target"]
        for t in range(s["length"]):
            e = s["values"][t]
            hidden = dense(
                p, f"pooling.{index}.score.0", np.concatenate([target, e, target - e, target * e])
            )
            hidden = prelu(hidden, p[f"pooling.{index}.score.1.weight"])
            weights.append(float(dense(p, f"pooling.{index}.score.2", hidden)[0]))
        if normalise == "softmax" and weights:
            weights = list(softmax(np.array(weights)))
        parts.append(
            sum(
                (weights[t] * s["values"][t] for t in range(s["length"])),
                np.zeros(s["values"].shape[1]),
            )
        )
    z = np.concatenate(parts)
    for layer in (0, 2):
        z = dense(p, f"mlp.{layer}", z)
        z = (
            dice(p, f"mlp.{layer + 1}", z)
            if activation == "dice"
            else prelu(z, p[f"mlp.{layer + 1}.weight"])
        )
    return float(dense(p, "logit", z)[0])


def dmr_scores(p: Parameters, name: str, s: dict[str, Any], target: Array | None) -> Array:
    """Raw scores of the real positions."""
    scores = []
    for t in range(s["length"]):
        query = [p[f"{name}.position.weight"][s["length"] - 1 - t]]
        if f"{name}.action.weight" in p:
            query.append(p[f"{name}.action.weight"][s["actions"][t]])
        if target is not None:
            query.append(target)
        q = prelu(dense(p, f"{name}.query.0", np.concatenate(query)), p[f"{name}.query.1.weight"])
        e = s["values"][t]
        hidden = sigmoid(dense(p, f"{name}.g.0", np.concatenate([q, e, q - e, q * e])))
        hidden = sigmoid(dense(p, f"{name}.g.2", hidden))
        scores.append(dense(p, f"{name}.g.4", hidden)[0])
    return np.array(scores)


def dmr_users(p: Parameters, name: str, s: dict[str, Any]) -> list[Array]:
    """Computes ``u_0 .. u_L`` by the full prefix definition.

    ``u_t`` attends to the first t behaviours; ``u_0`` to none.
    """
    scores = dmr_scores(p, f"{name}.scores", s, None)
    users = []
    for t in range(s["length"] + 1):
        attended = softmax(scores[:t]) @ s["values"][:t] if t else np.zeros(s["values"].shape[1])
        users.append(prelu(dense(p, f"{name}.user.0", attended), p[f"{name}.user.1.weight"]))
    return users


def dmr(
    p: Parameters,
    groups: list[Array],
    numeric: Array,
    sequences: list[dict[str, Any]],
    has_match: bool,
) -> tuple[float, list[float | None]]:
    """Computes the logit, and the match loss of each sequence or None where it does not count.

    ``groups`` are attributes, context and items.
    """
    attributes, context, items = groups
    parts, losses = [attributes.ravel(), items.ravel(), context.ravel(), numeric], []
    for index, s in enumerate(sequences):
        users = dmr_users(p, f"user_to_item.{index}", s)
        scores = dmr_scores(p, f"item_to_item.{index}.scores", s, s["target"])
        values = s["values"][: s["length"]]
        attended = softmax(scores) @ values if s["length"] else np.zeros(values.shape[1])
        wanted = s["match"]["target"] if has_match else s["target"]
        parts += [
            values.sum(0),
            s["target"] * values.sum(0),
            np.array([users[-1] @ wanted]),
            np.array([scores.sum()]),
            attended,
        ]
        counts = has_match and s["length"] >= 3 and not s["virtual"]
        m = s["match"]
        losses.append(
            sampled_softmax(
                users[-2],
                m["last"],
                m["negatives"],
                m["last_id"],
                m["negative_ids"],
                m["last_log_q"],
                m["negative_log_q"],
            )
            if counts
            else None
        )
    z = batch_norm(p, "mlp.0", np.concatenate(parts))
    for layer in (1, 3, 5):
        z = prelu(dense(p, f"mlp.{layer}", z), p[f"mlp.{layer + 1}.weight"])
    return float(dense(p, "mlp.7", z)[0]), losses
