"""Language models: the small transformer of Wikitext-2, and GPT2."""

from copy import deepcopy
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import linear

from robustlr.dropout import Dropout
from robustlr.optim.layers import add_gains, standardize_weights
from robustlr.tasks.models.attention import Attention, PositionedEmbedding, PostNormLayer


class WikitextTransformer(nn.Module):
    """A causal transformer with sinusoid positions and an output matrix of its own."""

    def __init__(
        self,
        embedding: PositionedEmbedding,
        layers: nn.ModuleList,
        output: nn.Linear,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = layers
        self.output = output

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``[b, t, vocabulary]`` of the tokens that follow ``tokens`` ``[b, t]``."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, causal=True)
        logits: Tensor = self.output(hidden)
        return logits


def wikitext_transformer(
    vocabulary: int,
    context: int,
    *,
    layers: int = 2,
    heads: int = 2,
    width: int = 200,
    hidden: int = 200,
    dropout: float = 0.2,
    norm: bool = False,
) -> WikitextTransformer:
    """Return the Wikitext-2 model of Learning by Turning, from ``[b, t]`` to ``[b, t, vocabulary]``.

    It is torch's ``nn.TransformerEncoder`` under a causal mask, initialisation included, between an
    embedding (times the root of ``width``) and an untied output with a bias.

    Args:
        vocabulary: number of tokens.
        context: the longest sequence.
        layers: number of layers. All start with the same weights, as torch's do: it copies one.
        heads: attention heads of each layer; divides ``width``.
        width: numbers in one token.
        hidden: width of the layers' perceptrons.
        dropout: rate on embeddings, attention, perceptrons and what each part adds.
        norm: whether the layers normalise, as in Fromage's paper; Learning by Turning's do not.

    Raises:
        UserError: the heads do not share the width evenly.
    """
    embedding = PositionedEmbedding(vocabulary, context, width, dropout=dropout, scale=width**0.5)
    layer = PostNormLayer(
        width,
        hidden,
        attention=partial(Attention, width, heads, packed=True, dropout=dropout),
        norm=nn.LayerNorm if norm else nn.Identity,
        dropout=dropout,
        hidden_dropout=dropout,
    )
    weight, bias = layer.attention.inputs.parameters()
    nn.init.xavier_uniform_(weight)
    nn.init.zeros_(bias)
    nn.init.zeros_(layer.attention.output.bias)
    output = nn.Linear(width, vocabulary)
    nn.init.uniform_(embedding.tokens.weight, -0.1, 0.1)
    nn.init.uniform_(output.weight, -0.1, 0.1)
    nn.init.zeros_(output.bias)
    stack = nn.ModuleList(deepcopy(layer) for _ in range(layers))
    return WikitextTransformer(embedding, stack, output)


class PreNormBlock(nn.Module):
    """GPT2's block: normalises before each part, and adds the part's output to its input.

    Weights are drawn from N(0, 0.02²), but for those whose outputs are added: ``residual_std``.
    """

    def __init__(
        self, width: int, heads: int, *, dropout: float, bias: bool, residual_std: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, packed=True, bias=bias, dropout=dropout)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width, bias=bias),
            nn.GELU(),
            nn.Linear(4 * width, width, bias=bias),
        )
        self.dropouts = nn.ModuleList(Dropout(dropout) for _ in range(2))
        residual = (self.attention.output, self.feed_forward[-1])
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=residual_std if module in residual else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the next representation of tokens ``[b, t, width]``."""
        gathered = self.attention(self.norm1(inputs), causal=True)
        tokens = inputs + self.dropouts[0](gathered)
        fed = self.feed_forward(self.norm2(tokens))
        outputs: Tensor = tokens + self.dropouts[1](fed)
        return outputs


class GPT2(nn.Module):
    """GPT2 (Radford et al., 2019): learnt positions, and one matrix for embedding and output."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        *,
        layers: int,
        heads: int,
        width: int,
        dropout: float,
        bias: bool,
        decay_embeddings: bool,
    ) -> None:
        super().__init__()
        self.decay_embeddings = decay_embeddings
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = Dropout(dropout)
        residual_std = 0.02 / (2 * layers) ** 0.5  # the sum of all parts stays at 0.02's scale
        self.blocks = nn.ModuleList(
            PreNormBlock(width, heads, dropout=dropout, bias=bias, residual_std=residual_std)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``[b, t, vocabulary]`` of the tokens that follow ``tokens`` ``[b, t]``."""
        positions = self.positions.weight[: tokens.shape[1]]
        hidden = self.dropout(self.tokens(tokens) + positions)
        for block in self.blocks:
            hidden = block(hidden)
        return linear(self.norm(hidden), self.tokens.weight)

    def undecayed(self) -> list[Tensor]:
        """Return the embeddings, where they have no weight decay."""
        return [] if self.decay_embeddings else [self.tokens.weight, self.positions.weight]


def gpt2(
    vocabulary: int,
    context: int,
    *,
    layers: int = 12,
    heads: int = 12,
    width: int = 768,
    dropout: float = 0.0,
    bias: bool = False,
    standardised: bool = False,
    gains: bool = False,
    decay_embeddings: bool = True,
) -> GPT2:
    """Return GPT2, from tokens ``[b, t]`` to logits ``[b, t, vocabulary]``.

    The defaults are its smallest size, without biases, as Rotational Equilibrium trains it.

    Args:
        vocabulary: number of tokens: 50,257, or 50,304 for the sake of the hardware.
        context: the longest sequence; its positions are learnt.
        layers: number of blocks.
        heads: attention heads of each block; divides ``width``.
        width: numbers in one token; the blocks' perceptrons are four times as wide.
        dropout: rate on embeddings, attention and what each part adds.
        bias: whether linear layers and normalisation have biases, as OpenAI's have.
        standardised: whether the blocks' weights are standardised, at the scale they start with.
        gains: whether each neuron of the blocks' weights has a learnable gain. The embedding stays
            bare under both, since it is the output too: a row's gain would change both.
        decay_embeddings: whether embeddings have weight decay, and rotate under Rotational
            Equilibrium's optimizers.

    Raises:
        UserError: the heads do not share the width evenly.
    """
    model = GPT2(
        vocabulary,
        context,
        layers=layers,
        heads=heads,
        width=width,
        dropout=dropout,
        bias=bias,
        decay_embeddings=decay_embeddings,
    )
    if standardised:  # neither changes embeddings
        standardize_weights(model, gain=gains)
    elif gains:
        add_gains(model)
    return model
