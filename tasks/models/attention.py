"""What the transformers share: attention, sinusoid positions and the post-norm layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from robustlr.dropout import Dropout
from robustlr.errors import UserError


class Attention(nn.Module):
    """Lets each token attend to others, in several heads (Vaswani et al., 2017).

    Queries, keys and values are three linear maps, or one map three times as wide (``packed``),
    which is then one tensor to the optimizer, as in ``nn.MultiheadAttention`` and GPT2. They have
    torch's initialisation of linear layers; models that want another redraw them.

    Raises:
        UserError: the heads do not share the width evenly.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        packed: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads {heads} must divide width {width}.")
        self.heads = heads
        self.dropout = Dropout(dropout)
        widths = [3 * width] if packed else [width] * 3
        self.inputs = nn.ModuleList(nn.Linear(width, outputs, bias=bias) for outputs in widths)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return what each token of ``queries`` gathers, ``[b, t, width]``.

        Args:
            queries: the tokens that attend ``[b, t, width]``.
            memory: the tokens attended to ``[b, s, width]``: ``queries`` themselves, if none; packed
                maps know no others.
            mask: which of the tokens attended to are real ``[b, s]``: padding is not seen.
            causal: whether a token sees none after it; not together with a mask.
        """
        if len(self.inputs) == 1:
            projected = self.inputs[0](queries).chunk(3, dim=-1)
        else:
            memory = queries if memory is None else memory
            projected = [
                linear(tokens)
                for linear, tokens in zip(self.inputs, (queries, memory, memory), strict=True)
            ]
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)
        seen = None if mask is None else mask[:, None, None, :]  # over heads and queries
        if self.training and self.dropout.p:  # torch's own would draw its masks in an order
            gathered = self.dropout(_attention(query, key, seen, causal=causal)) @ value
        else:
            gathered = scaled_dot_product_attention(
                query, key, value, attn_mask=seen, is_causal=causal
            )  # [b, heads, t, width / heads]
        outputs: Tensor = self.output(gathered.transpose(1, 2).flatten(2))
        return outputs


def _attention(query: Tensor, key: Tensor, seen: Tensor | None, *, causal: bool) -> Tensor:
    """Return how much each query attends to each key, ``[b, heads, t, s]``, summing to 1."""
    scores: Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)


class PostNormLayer(nn.Module):
    """A layer of the first transformer: each part's output is added to its input, then normalised.

    Its parts are self-attention, attention to a memory if the layer is a decoder's, and a ReLU
    perceptron. Without normalisation (``nn.Identity``) it is the layer of Learning by Turning's
    language model.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        attention: Callable[[], Attention],
        norm: Callable[[int], nn.Module],
        dropout: float,
        hidden_dropout: float = 0.0,
        decoder: bool = False,
    ) -> None:
        super().__init__()
        self.attention = attention()
        self.memory_attention = attention() if decoder else None
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            Dropout(hidden_dropout),
            nn.Linear(hidden, width),
        )
        parts = 3 if decoder else 2
        self.norms = nn.ModuleList(norm(width) for _ in range(parts))
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(parts))

    def forward(
        self,
        inputs: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Return the next representation of tokens ``[b, t, width]``.

        Args:
            inputs: the tokens ``[b, t, width]``.
            memory: what a decoder's layer attends to besides ``[b, s, width]``.
            mask: which tokens of the memory, or of ``inputs`` if there is none, are real.
            causal: whether tokens see only those before them among ``inputs``.
        """
        own_mask = mask if self.memory_attention is None else None
        gathered = self.attention(inputs, mask=own_mask, causal=causal)
        tokens: Tensor = self.norms[0](inputs + self.dropouts[0](gathered))
        if self.memory_attention is not None:
            gathered = self.memory_attention(tokens, memory, mask=mask)
            tokens = self.norms[1](tokens + self.dropouts[1](gathered))
        fed = self.dropouts[-1](self.feed_forward(tokens))
        outputs: Tensor = self.norms[-1](tokens + fed)
        return outputs


class PositionedEmbedding(nn.Module):
    """Embeds tokens, multiplies by ``scale``, adds sinusoid positions, and drops out."""

    positions: Tensor

    def __init__(
        self, vocabulary: int, longest: int, width: int, *, dropout: float, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.scale = scale
        self.dropout = Dropout(dropout)
        self.register_buffer("positions", sinusoids(longest, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embedding ``[b, t, width]`` of ``tokens`` ``[b, t]``, ``t`` ≤ ``longest``."""
        embedded = self.scale * self.tokens(tokens) + self.positions[: tokens.shape[1]]
        outputs: Tensor = self.dropout(embedded)
        return outputs


def sinusoids(length: int, width: int) -> Tensor:
    """Return the positions of Vaswani et al. (2017), ``[length, width]``.

    Even columns are sines and odd ones cosines, a pair of each frequency: from 1 down to nearly
    1/10,000.

    >>> sinusoids(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    column = torch.arange(width)
    odd = column % 2
    frequencies = 10_000.0 ** (-(column - odd) / width)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.where(odd == 1, angles.cos(), angles.sin())
