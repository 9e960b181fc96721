"""Losses and heads on the encoder's states, but for those of secondary structure that look at candidate pairs alone.

Losses follow the published model card, by kind of problem; ignored entries are left out:

    regression   mean squared error; NaN targets are ignored
    binary       binary cross-entropy on logits; -100 is ignored
    multiclass   cross-entropy; -100 is ignored
    multilabel   soft-margin loss, averaged over the labels; a -100 masks that entry

A batch in which everything is ignored gives 0, with a gradient of 0.

Heads take packed states, or those of one sequence (contacts, structure). `StructureHead` is the paper's network on all
pairs of nucleotides; without gradients it works on blocks of rows, so that only one and a half maps are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rinalmo.errors import InputError
from rinalmo.model.config import ModelConfig
from rinalmo.model.kernels import is_hooked, sum_dtype
from rinalmo.model.packing import Layout

# --- Losses ---

ProblemType = Literal["regression", "binary", "multiclass", "multilabel"]
PROBLEM_TYPES: dict[str, ProblemType] = {
    **{name: name for name in get_args(ProblemType)},
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
}
"""Our name of each kind of problem, by ours and by transformers'."""
IGNORE = -100


def infer_problem_type(labels: Tensor, num_labels: int) -> ProblemType:
    """The kind of problem, from the type, shape and values of the labels. -100 never counts as a value."""
    if labels.is_floating_point():
        return "regression"
    if num_labels == 1:
        return "binary"
    values = labels[labels != IGNORE].unique()
    is_matrix = labels.dim() > 1 and labels.shape[-1] == num_labels
    two_valued = len(values) == 2 or bool(((values == 0) | (values == 1)).all())
    return "multilabel" if is_matrix and two_valued else "multiclass"


def label_loss(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> Tensor:
    """Mean loss in fp32 of logits `(…, labels)` against labels `(…)` (multiclass) or `(…, labels)`."""
    logits, labels = logits.float(), labels.to(logits.device)
    if problem_type == "multiclass":
        if labels.shape != logits.shape[:-1]:
            raise _shape_mismatch(logits, labels)
        if bool((labels == IGNORE).all()):
            return logits.sum() * 0.0
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORE)
    if logits.shape[-1] == 1 and labels.shape == logits.shape[:-1]:
        labels = labels.unsqueeze(-1)
    if labels.shape != logits.shape:
        raise _shape_mismatch(logits, labels)
    if problem_type == "regression":
        keep = ~labels.isnan()
        return _mean(F.mse_loss(logits[keep], labels[keep].float(), reduction="none"))
    keep = labels != IGNORE
    invalid = labels[keep & (labels != 0) & (labels != 1)]
    if invalid.numel():
        raise InputError(f"{problem_type} labels must be 0 or 1 (or {IGNORE} to ignore), not {invalid[0].item()}")
    losses = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
    if problem_type == "binary":
        return _mean(losses[keep])
    # Soft margin: entries are averaged within each row first, then rows.
    return _mean((losses * keep).sum(-1)[keep.any(dim=-1)] / losses.shape[-1])


def structure_loss(
    logits: Tensor,
    pairs: Tensor,
    region: Literal["upper", "full"] = "upper",
    problem_type: Literal["binary", "regression"] = "binary",
) -> Tensor:
    """Mean loss of one structure's logits `(length, length)` against its 0/1 pair matrix.

    `upper` counts each pair of positions once, as the paper does; `full` averages over the whole square. `binary` is
    the paper's cross-entropy; `regression` the squared error that the port computes when the labels are floats.
    Entries of -100 are ignored.
    """
    if logits.shape != pairs.shape:
        raise _shape_mismatch(logits, pairs)
    keep = pairs != IGNORE
    if region == "upper":
        keep = keep & torch.ones_like(keep).triu(1)
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return _mean(loss(logits[keep].float(), pairs[keep].float(), reduction="none"))


def _mean(values: Tensor) -> Tensor:
    return values.mean() if values.numel() else values.sum()


def _shape_mismatch(logits: Tensor, labels: Tensor) -> InputError:
    return InputError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")


# --- Masked-language-modeling head and pooling ---


class Fp32Linear(nn.Linear):
    """Computes in fp32 whatever the type of its weights."""

    def forward(self, input: Float[Tensor, "*any into"]) -> Float[Tensor, "*any out"]:
        return F.linear(input.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class Fp32LayerNorm(nn.LayerNorm):
    """Computes in fp32 whatever the type of its weights."""

    def forward(self, input: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any hidden"]:
        return F.layer_norm(input.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class MaskedLMHead(nn.Module):
    """Logits over the vocabulary, in fp32. The decoder is not tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = Fp32Linear(config.hidden_size, config.hidden_size)
        self.norm = Fp32LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = Fp32Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any vocabulary"]:
        with torch.autocast(x.device.type, enabled=False):
            return self.decoder(self.norm(F.gelu(self.dense(x.float()))))


def first_tokens(x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
    """The hidden state of each sequence's first token; an empty sequence has none and is refused."""
    if 0 in layout.lengths:
        raise InputError(f"sequence {layout.lengths.index(0) + 1} of the batch has no token")
    return x[layout.starts]


def mean_tokens(x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
    """The mean of each sequence's hidden states, CLS and EOS included; an empty sequence is refused."""
    if 0 in layout.lengths:
        raise InputError(f"sequence {layout.lengths.index(0) + 1} of the batch has no token")
    return layout.means(x)


# How the tokens of a sequence become one vector. All published models use CLS.
POOLINGS: dict[str, Callable[[Tensor, Layout], Tensor]] = {"cls": first_tokens, "mean": mean_tokens}


class Pooler(nn.Module):
    """One vector per sequence: tanh of a linear layer on its first token (CLS), or on the mean of all (`POOLINGS`)."""

    def __init__(self, config: ModelConfig, pooling: str = "cls") -> None:
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences hidden"]:
        return torch.tanh(self.dense(self.pool(x, layout)))


def ends(
    ids: Int[Tensor, " tokens"], layout: Layout, config: ModelConfig
) -> tuple[Bool[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Masks of each sequence's leading CLS and trailing EOS, if it has them; heads on nucleotides leave them out."""
    last = layout.cu_seqlens.long().diff()[layout.sequence_ids] - 1
    leading = (layout.indices == 0) & (ids == config.cls_token_id)
    return leading, (layout.indices == last) & (ids == config.eos_token_id)


# --- Labels per sequence, nucleotide or pair of nucleotides ---

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}

# Above this many numbers the pairwise product of hidden states is built in blocks of rows.
_PAIR_BLOCK = 1 << 24


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a `LabelHead`: optional transform, then one linear layer."""

    num_labels: int = 1
    transform: str | None = None  # None, "linear" or "nonlinear"
    transform_act: str = "gelu"
    act: str | None = None
    bias: bool = True
    dropout: float = 0.0
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.transform not in (None, "linear", "nonlinear"):
            raise InputError(f"head transform {self.transform!r} is unknown; use None, 'linear' or 'nonlinear'")
        for name in (self.transform_act, self.act):
            if name is not None and name not in ACTIVATIONS:
                raise InputError(f"activation {name!r} is unknown; there are {', '.join(ACTIVATIONS)}")


class Transform(nn.Module):
    """Linear layer, activation (nonlinear form only), layer norm."""

    def __init__(self, hidden_size: int, activation: str | None, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation] if activation else None
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any hidden"]:
        x = self.dense(x)
        return self.norm(self.activation(x) if self.activation else x)


class LabelHead(nn.Module):
    """Dropout, optional transform, linear layer: the part that all prediction heads share."""

    def __init__(self, hidden_size: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        activation = config.transform_act if config.transform == "nonlinear" else None
        self.transform = Transform(hidden_size, activation, config.layer_norm_eps) if config.transform else None
        self.decoder = nn.Linear(hidden_size, config.num_labels, bias=config.bias)

    def forward(self, x: Float[Tensor, "*any hidden"]) -> Float[Tensor, "*any labels"]:
        x = self.dropout(x)
        x = self.decoder(self.transform(x) if self.transform is not None else x)
        return ACTIVATIONS[self.config.act](x) if self.config.act else x


class SequenceHead(LabelHead):
    """Labels per sequence, from the pooled vector `(sequences, hidden)`."""


class TokenHead(LabelHead):
    """Labels per nucleotide, from hidden states without CLS and EOS `(tokens, hidden)`."""


class LinearHead(nn.Module):
    """Labels per sequence, by a linear model of fixed features (`rinalmo.training.linear_models`), in fp32.

    Args:
        hidden_size: Of the encoder.
        num_labels: Number of outputs.
        layers: Number of vectors of `hidden_size` among the features.
        others: Number of other features.
        inputs: Number of all features, instead of these two.
    """

    def __init__(
        self, hidden_size: int, num_labels: int = 1, layers: int = 1, others: int = 0, inputs: int | None = None
    ) -> None:
        super().__init__()
        self.decoder = Fp32Linear(layers * hidden_size + others if inputs is None else inputs, num_labels)

    def forward(self, features: Float[Tensor, "sequences features"]) -> Float[Tensor, "sequences labels"]:
        return self.decoder(features)


class JointHead(nn.Module):
    """Labels from the vectors of one or two sequences and other features, side by side, by a network of two layers.

    Args:
        hidden_size: Of the encoder, and of the network's first layer.
        num_labels: Number of outputs.
        vectors: Number of vectors of `hidden_size`: 4 for a pair (`rinalmo.tasks.inputs.join_pairs`).
        features: Number of other features.
        inputs: Number of all inputs, instead of these two.
    """

    def __init__(
        self, hidden_size: int, num_labels: int = 1, vectors: int = 1, features: int = 0, inputs: int | None = None
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(vectors * hidden_size + features if inputs is None else inputs, hidden_size)
        self.decoder = nn.Linear(hidden_size, num_labels)

    def forward(self, x: Float[Tensor, "examples inputs"]) -> Float[Tensor, "examples labels"]:
        return self.decoder(F.gelu(self.dense(x)))


class ContactHead(LabelHead):
    """Labels per pair of nucleotides of one sequence, from the product of their hidden states."""

    def forward(
        self, x: Float[Tensor, "*batch length hidden"], mask: Bool[Tensor, "*batch length"] | None = None
    ) -> Float[Tensor, "*batch length length labels"]:
        """The logits; with a mask, of a padded batch, 0 at padding.

        Without a transform the product is folded into a bilinear form: no length² × hidden tensor.

        The decoder is affine, so its values at the unit vectors give weights and bias. It is called, its weight is not
        read, so that adapters, offloading and quantisation take part.
        """
        if self.transform is None:
            return _pairs_of_tokens(self._bilinear(self.dropout(x)), mask)
        blocks = x.split(max(1, _PAIR_BLOCK // max(1, x.numel()))) if mask is None else [x]
        products = (block[..., :, None, :] * x[..., None, :, :] for block in blocks)
        scores = torch.cat([super(ContactHead, self).forward(product) for product in products], dim=-3)
        return _pairs_of_tokens((scores + scores.transpose(-3, -2)) / 2, mask)

    def _bilinear(self, x: Tensor) -> Tensor:
        points = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            bias, values = self.decoder(torch.cat([torch.zeros_like(points[:1]), points])).split([1, len(points)])
            weights = (values - bias).T
        scores = torch.stack([(x * weight) @ x.mT for weight in weights], dim=-1) + bias[0]
        # Floating-point sums need not be symmetric to the last bit; averaging makes them so.
        scores = (scores + scores.transpose(-3, -2)) / 2
        return ACTIVATIONS[self.config.act](scores) if self.config.act else scores


def _pairs_of_tokens(
    x: Float[Tensor, "*batch length length labels"], mask: Bool[Tensor, "*batch length"] | None
) -> Float[Tensor, "*batch length length labels"]:
    return x if mask is None else x.masked_fill(~(mask[..., :, None] & mask[..., None, :])[..., None], 0.0)


# --- Published heads on whole sequences ---


class SequenceBlock(nn.Module):
    """Residual block along the sequence: two convolutions of width 3, each with instance norm and ELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Float[Tensor, "1 channels length"]) -> Float[Tensor, "1 channels length"]:
        y = F.elu(_instance_norm(self.conv1(x)))
        return x + F.elu(_instance_norm(self.conv2(y)))


class RibosomeLoadHead(nn.Module):
    """One number per sequence, for ribosome load, translation efficiency and expression.

    The network predicts the standardized target, which the stored mean and deviation scale back.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, hidden_size: int, channels: int = 32, num_blocks: int = 6, dropout: float = 0.2) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, channels)
        self.blocks = nn.ModuleList(SequenceBlock(channels) for _ in range(num_blocks))
        self.dropout = nn.Dropout(dropout)
        self.prediction = nn.Linear(channels, 1)
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_std", torch.ones(()))

    def forward(
        self, x: Float[Tensor, "tokens hidden"], layout: Layout, *, standardized: bool = False
    ) -> Float[Tensor, " sequences"]:
        """The prediction in the targets' own units, or standardized, as the loss takes it.

        The mean is over each sequence's valid tokens, CLS and EOS included. The published model was trained on
        sequences padded to 102 tokens, and its instance norms include the padding: `pack_padded` reproduces that.
        """
        predictions = []
        for states, valid in zip(layout.split(x), layout.valid_lengths, strict=True):
            y = self.projection(states).T[None]
            for block in self.blocks:
                y = block(y)
            predictions.append(self.prediction(self.dropout(y[0, :, :valid].mean(dim=1)))[0])
        prediction = torch.stack(predictions)
        return prediction if standardized else prediction * self.target_std + self.target_mean


class ClassificationHead(nn.Module):
    """Two-layer network on the CLS vector, or on the mean of all tokens (`POOLINGS`): splice sites, ncRNA families."""

    def __init__(self, hidden_size: int, width: int, num_labels: int, pooling: str = "cls") -> None:
        super().__init__()
        self.pool = POOLINGS[pooling]
        self.dense = nn.Linear(hidden_size, width)
        self.decoder = nn.Linear(width, num_labels)

    def forward(self, x: Float[Tensor, "tokens hidden"], layout: Layout) -> Float[Tensor, "sequences labels"]:
        return self.decoder(F.gelu(self.dense(self.pool(x, layout))))


def _instance_norm(x: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over the positions of each channel; with a mask over its positions, 0 at others.

    `torch.nn.functional.instance_norm` refuses a single position in training; here it becomes 0, as in evaluation.
    """
    if mask is not None:
        axes = tuple(range(2, x.dim()))
        count = mask.sum(dim=axes, keepdim=True).clamp(min=1)
        centered = (x - (x * mask).sum(dim=axes, keepdim=True) / count) * mask
        return centered * (centered.square().sum(dim=axes, keepdim=True) / count + eps).rsqrt()
    return F.instance_norm(x, use_input_stats=True, eps=eps) if x[0, 0].numel() > 1 else torch.zeros_like(x)


# --- Structure: a map of all pairs of nucleotides of one sequence ---

# A map in blocks of rows, each `(channels, rows, columns)`. Where only the upper triangle is kept, later blocks lack
# columns on the left.
Rows = Sequence[Tensor]

BLOCK = 1 << 19  # numbers in one block: 2 MB, which fit into the cache of a core
GPU_BLOCK = 1 << 27  # a map of 1,400 nt as a whole: small blocks would leave most of a GPU idle


class StructureHead(nn.Module):
    """Pairing logits of one sequence.

    The paper projects the concatenation [h_i; h_j] of every pair. Splitting the projection in two,
    `W_a h_i + W_b h_j + b`, gives the same numbers without the length² × 2·hidden tensor.
    """

    def __init__(self, hidden_size: int, channels: int = 64, num_blocks: int = 2, num_labels: int = 1) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * hidden_size, channels)
        self.blocks = nn.ModuleList(PairBlock(channels) for _ in range(num_blocks))
        self.prediction = nn.Conv2d(channels, num_labels, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "*batch length hidden"], mask: Bool[Tensor, "*batch length"] | None = None
    ) -> Float[Tensor, "*batch length length labels"]:
        """Symmetric logits; only the map's upper triangle is used, the diagonal is 0.

        With a mask, of a padded batch, each sequence at its own length, 0 at padding.
        """
        *_, length, width = x.shape
        if length == 0:  # convolutions refuse it
            return x.new_zeros(0, 0, self.prediction.out_channels)
        # `W_a h` and `W_b h + b` by one call of the projection, so that hooks and adapters (LoRA) take part.
        ends = [F.pad(x, (0, width)), F.pad(x, (width, 0)), F.pad(torch.zeros_like(x[..., :1, :]), (0, width))]
        first, second, bias = self.projection(torch.cat(ends, dim=-2)).split([length, length, 1], dim=-2)
        first, second = (first - bias).mT, second.mT
        if mask is not None:
            inside = (mask[:, :, None] & mask[:, None, :])[:, None]
            pairs = (first[..., :, None] + second[..., None, :]) * inside
            for block in self.blocks:
                pairs = block(pairs, inside)
            upper = (self.prediction(pairs) * inside).triu(1)
            return (upper + upper.mT).permute(0, 2, 3, 1)
        # In blocks of rows the weights of the convolutions are read, which would bypass hooks and adapters.
        layers = [layer for block in self.blocks for layer in block.children()] + [self.prediction]
        customised = is_hooked(self) or any(type(layer) is not nn.Conv2d for layer in layers)
        if torch.is_grad_enabled() or length * first.numel() <= _block_size(first) or customised:
            pairs = (first[:, :, None] + second[:, None, :])[None]
            for block in self.blocks:
                pairs = block(pairs)
            logits = self.prediction(pairs)[0]
        else:
            logits = self._by_rows(first, second)
        upper = logits.triu(1)
        return (upper + upper.transpose(1, 2)).permute(1, 2, 0)

    def _by_rows(
        self, first: Float[Tensor, "channels length"], second: Float[Tensor, "channels length"]
    ) -> Float[Tensor, "labels length length"]:
        pairs: Rows = _OuterSum(first, second)
        for block in self.blocks:
            assert isinstance(block, PairBlock)
            pairs = block.by_rows(pairs, upper=block is self.blocks[-1])
        length = first.shape[1]
        out = first.new_zeros(self.prediction.out_channels, length, length)
        heights = [rows.shape[1] for rows in pairs]
        for part, rows in zip(out.split(heights, dim=1), _with_neighbours(pairs), strict=True):
            y = _convolve(rows, self.prediction)
            part[..., -y.shape[2] :] = y
        return out


class PairBlock(nn.Module):
    """Bottleneck residual block on a map of pairs: three convolutions, each with instance norm and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch channels length length"],
        mask: Bool[Tensor, "batch 1 length length"] | None = None,
    ) -> Float[Tensor, "batch channels length length"]:
        y = x
        for conv in (self.conv1, self.conv2, self.conv3):
            y = F.relu(_instance_norm(conv(y), mask), inplace=True)
        return x + y

    def by_rows(self, x: Rows, *, upper: bool) -> Rows:
        """As `forward`, without gradients. With `upper` only what the upper triangle needs; `x` is then overwritten."""
        starts = [0] * len(x)
        if upper:  # each block begins where a 3 × 3 convolution has all it needs right of the diagonal
            x = list(x)
            starts = [max(0, row - 1) for row in accumulate((block.shape[1] for block in x[:-1]), initial=0)]
        # The output in one piece of memory, which never fragments.
        shapes = [(*block.shape[:2], block.shape[2] - start) for block, start in zip(x, starts, strict=True)]
        sizes = [channels * rows * columns for channels, rows, columns in shapes]
        parts = zip(x[0].new_empty(sum(sizes)).split(sizes), shapes, strict=True)
        out = [part.view(shape) for part, shape in parts]

        # The first two convolutions. Columns before `starts` go into `x`, where they are no longer read.
        moments = _Moments()
        for k, rows in enumerate(_with_neighbours(self._first(x))):
            y = _convolve(rows, self.conv2)
            moments.add(y)
            out[k].copy_(y[..., starts[k] :])
            if starts[k]:
                x[k][..., : starts[k]] = y[..., : starts[k]]

        # The last convolution, in place; of the columns before `starts` only the moments count.
        (scale, shift), moments, weight = moments.affine(), _Moments(), self.conv3.weight[:, :, 0, 0]
        for k, kept in enumerate(out):
            for y in (kept, x[k][..., : starts[k]]) if starts[k] else (kept,):
                z = _mix(torch.addcmul(shift, y, scale).relu_(), weight)
                moments.add(z)
                if y is kept:
                    kept.copy_(z)
        scale, shift = moments.affine()
        for k, kept in enumerate(out):
            torch.addcmul(shift, kept, scale, out=kept).relu_().add_(x[k][..., starts[k] :])
        return out

    def _first(self, x: Rows) -> Iterator[Tensor]:
        """The first convolution with its norm, which is folded into the weight, and ReLU."""
        weight = self.conv1.weight[:, :, 0, 0]
        if isinstance(x, _OuterSum):
            return (rows.relu_() for rows in x.mixed_and_normed(weight))
        moments = _Moments()
        for rows in x:
            moments.add(_mix(rows, weight))
        scale, shift = moments.affine()
        return (_mix(rows, weight * scale[:, 0], shift[:, 0]).relu_() for rows in x)


class _OuterSum(Sequence[Tensor]):
    """`first[:, i] + second[:, j]` for all i and j, in blocks that are computed on access."""

    def __init__(self, first: Float[Tensor, "channels length"], second: Float[Tensor, "channels length"]) -> None:
        self.first, self.second = first, second
        self.parts = first[:, :, None].split(max(1, _block_size(first) // first.numel()), dim=1)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> Tensor:  # type: ignore[override]  # no slices
        return self.parts[k] + self.second[:, None]

    def mixed_and_normed(self, weight: Float[Tensor, "out channels"], eps: float = 1e-5) -> _OuterSum:
        """A 1 × 1 convolution and its instance norm: an outer sum again, whose means and variances add up."""
        first, second = weight @ self.first, weight @ self.second
        first, second = first - first.mean(dim=1, keepdim=True), second - second.mean(dim=1, keepdim=True)
        variance = first.square().mean(dim=1, keepdim=True) + second.square().mean(dim=1, keepdim=True)
        scale = (variance + eps).rsqrt()
        return _OuterSum(first * scale, second * scale)


class _Moments:
    """Sums over a map that comes in blocks, from which an instance norm follows; in fp64 where there is one."""

    def __init__(self) -> None:
        self.count, self.dtype = 0, torch.float32
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, rows: Float[Tensor, "channels rows columns"]) -> None:
        flat = rows.flatten(1).float()
        self.count, self.dtype = self.count + flat.shape[1], rows.dtype
        wide = sum_dtype(flat.device)
        self.sum = self.sum + flat.sum(1).to(wide)
        self.squares = self.squares + flat.square().sum(1).to(wide)

    def affine(self, eps: float = 1e-5) -> tuple[Float[Tensor, "channels 1 1"], Float[Tensor, "channels 1 1"]]:
        """The norm as scale and shift of each channel."""
        mean = torch.as_tensor(self.sum) / self.count
        scale = ((self.squares / self.count - mean**2).clamp(min=0) + eps).rsqrt()
        return scale.to(self.dtype)[:, None, None], (-mean * scale).to(self.dtype)[:, None, None]


def _block_size(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else GPU_BLOCK


def _with_neighbours(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each block with the row above and the row below; zeros outside of the map and for missing columns."""
    above = here = None
    for below in chain(blocks, [None]):
        if here is not None:
            columns, zeros = here.shape[2], torch.zeros_like(here[:, :1])
            top = zeros if above is None else above[..., -columns:]
            bottom = zeros if below is None else F.pad(below[:, :1], (columns - below.shape[2], 0))
            yield torch.cat((top, here, bottom), dim=1)
            above = here[:, -1:]
        here = below


def _mix(
    rows: Float[Tensor, "into rows columns"], weight: Float[Tensor, "out into"], bias: Tensor | None = None
) -> Float[Tensor, "out rows columns"]:
    """A 1 × 1 convolution."""
    flat = rows.flatten(1)
    mixed = weight @ flat if bias is None else torch.addmm(bias, weight, flat)
    return mixed.unflatten(1, rows.shape[1:])


def _convolve(rows: Float[Tensor, "into rows_and_two columns"], conv: nn.Conv2d) -> Float[Tensor, "out rows columns"]:
    """A 3 × 3 convolution of a block with its neighbours."""
    return F.conv2d(rows[None], conv.weight, conv.bias, padding=(0, 1))[0]
