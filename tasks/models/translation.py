"""Transformers that translate: Multi30k's of Learning by Turning, and fairseq's of IWSLT."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from robustlr.optim.layers import add_gains
from robustlr.tasks.data.tokens import PAD
from robustlr.tasks.models.attention import Attention, PositionedEmbedding, PostNormLayer


class TranslationTransformer(nn.Module):
    """An encoder and a causal decoder that attends to it; the output is the target's embedding.

    Sources and targets are padded at their ends with ``PAD``, and padding changes no real token's
    logits: a source's is masked, and a target's lies after every real token.
    """

    def __init__(
        self,
        source_embedding: PositionedEmbedding,
        target_embedding: PositionedEmbedding,
        layer: Callable[..., PostNormLayer],
        *,
        layers: int,
        input_norm: nn.Module,
        decay_embeddings: bool = True,
    ) -> None:
        super().__init__()
        self.decay_embeddings = decay_embeddings
        self.source_embedding = source_embedding
        self.target_embedding = target_embedding
        self.input_norm = input_norm
        self.encoder = nn.ModuleList(layer() for _ in range(layers))
        self.decoder = nn.ModuleList(layer(decoder=True) for _ in range(layers))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits ``[b, t, vocabulary]`` of the tokens that follow ``target`` ``[b, t]``.

        Args:
            source: the sentences to translate ``[b, s]``.
            target: their translations as far as they go, beginning with ``BOS``.
        """
        return self.decode(target, self.encode(source), source)

    def encode(self, source: Tensor) -> Tensor:
        """Return the memory ``[b, s, width]`` of the sentences ``source`` ``[b, s]``."""
        real = source != PAD
        memory: Tensor = self.input_norm(self.source_embedding(source))
        for layer in self.encoder:
            memory = layer(memory, mask=real)
        return memory

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Return the logits of ``forward`` from the memory ``[b, s, width]`` of ``source``."""
        return linear(self._decoded(target, memory, source), self.target_embedding.tokens.weight)

    def following(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Return the last of ``decode``'s logits alone, ``[b, vocabulary]``."""
        last = self._decoded(target, memory, source)[:, -1]
        return linear(last, self.target_embedding.tokens.weight)

    def undecayed(self) -> list[Tensor]:
        """Return the embeddings, where they have no weight decay."""
        embeddings = [self.source_embedding.tokens.weight, self.target_embedding.tokens.weight]
        return [] if self.decay_embeddings else embeddings

    def _decoded(self, target: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Return the decoder's ``[b, t, width]``."""
        real = source != PAD
        hidden: Tensor = self.input_norm(self.target_embedding(target))
        for layer in self.decoder:
            hidden = layer(hidden, memory, mask=real, causal=True)
        return hidden


def multi30k_transformer(
    vocabulary: int,
    longest: int,
    *,
    layers: int = 6,
    heads: int = 8,
    width: int = 512,
    hidden: int = 2048,
    dropout: float = 0.1,
) -> TranslationTransformer:
    """Return the Multi30k model of Learning by Turning ("WMT16 En-De" in the paper).

    Normalisation has no gains, attention no biases, and one matrix embeds both languages and is the
    output; nothing is scaled. Embedded tokens are normalised before the first layer. All weights
    are Xavier-uniform.

    Args:
        vocabulary: number of tokens of both languages together.
        longest: the most tokens of a source or target.
        layers: number of the encoder's layers, and of the decoder's.
        heads: attention heads of each layer; divides ``width``.
        width: numbers in one token.
        hidden: width of the layers' perceptrons.
        dropout: rate on embeddings, attention and what each part adds.

    Raises:
        UserError: the heads do not share the width evenly.
    """
    norm = partial(nn.LayerNorm, eps=1e-6, elementwise_affine=False)
    layer = partial(
        PostNormLayer,
        width,
        hidden,
        attention=partial(Attention, width, heads, bias=False, dropout=dropout),
        norm=norm,
        dropout=dropout,
    )
    embedding = PositionedEmbedding(vocabulary, longest, width, dropout=dropout)
    model = TranslationTransformer(
        embedding, embedding, layer, layers=layers, input_norm=norm(width)
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model


def iwslt_transformer(
    vocabulary: int,
    longest: int,
    *,
    layers: int = 6,
    heads: int = 4,
    width: int = 512,
    hidden: int = 1024,
    dropout: float = 0.3,
    gains: bool = False,
    decay_embeddings: bool = True,
) -> TranslationTransformer:
    """Return fairseq's ``transformer_iwslt_de_en``, which Rotational Equilibrium trains.

    The source's embedding is a matrix of its own; the target's is the output too. Attention weights
    are Xavier-uniform, those of queries, keys and values at 1/√2 of it; perceptrons start as
    torch's linear layers, as in fairseq since 2020. Positions are ``sinusoids``, where fairseq's
    are the same up to the order of columns, the first position and slightly lower frequencies.

    Args:
        vocabulary: number of tokens of both languages together.
        longest: the most tokens of a source or target.
        layers: number of the encoder's layers, and of the decoder's.
        heads: attention heads of each layer; divides ``width``.
        width: numbers in one token.
        hidden: width of the layers' perceptrons.
        dropout: rate on embeddings and what each part adds.
        gains: whether each neuron of the layers' weights has a learnable gain, as under Rotational
            Equilibrium's optimizers; embeddings have none.
        decay_embeddings: whether embeddings have weight decay, and rotate under those optimizers.

    Raises:
        UserError: the heads do not share the width evenly.
    """
    layer = partial(
        PostNormLayer,
        width,
        hidden,
        attention=partial(Attention, width, heads),
        norm=nn.LayerNorm,
        dropout=dropout,
    )
    embed = partial(PositionedEmbedding, vocabulary, longest, width, dropout=dropout)
    source, target = (embed(scale=width**0.5) for _ in range(2))
    model = TranslationTransformer(
        source,
        target,
        layer,
        layers=layers,
        input_norm=nn.Identity(),
        decay_embeddings=decay_embeddings,
    )
    _initialise_as_fairseq(model)
    return add_gains(model) if gains else model


def _initialise_as_fairseq(model: TranslationTransformer) -> None:
    for embedding in (model.source_embedding.tokens, model.target_embedding.tokens):
        nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
        with torch.no_grad():
            embedding.weight[PAD].zero_()
    for module in model.modules():
        if isinstance(module, Attention):
            for parameter in module.inputs.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter, gain=2**-0.5)
            nn.init.xavier_uniform_(module.output.weight)
            nn.init.zeros_(module.output.bias)
