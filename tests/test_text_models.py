"""The transformers of the text tasks: sizes as published, and what they may see."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, linear, relu

from robustlr.dropout import Dropout
from robustlr.errors import UserError
from robustlr.optim import Nero, RVAdamW
from robustlr.optim.neurons import parameter_groups
from robustlr.tasks.data.tokens import PAD, UNKNOWN
from robustlr.tasks.models.attention import Attention, PostNormLayer, sinusoids
from robustlr.tasks.models.language_model import gpt2, wikitext_transformer
from robustlr.tasks.models.translation import (
    iwslt_transformer,
    multi30k_transformer,
)

Make = Callable[..., Any]

WORDS = 23
SMALL: dict[str, Any] = {"layers": 2, "heads": 2, "width": 16}
LANGUAGE_MODELS: dict[str, Make] = {
    "wikitext": partial(wikitext_transformer, WORDS, 12, **SMALL, hidden=24),
    "wikitext, norm": partial(wikitext_transformer, WORDS, 12, **SMALL, hidden=24, norm=True),
    "gpt2": partial(gpt2, WORDS, 12, **SMALL, dropout=0.1),
    "gpt2, biases": partial(gpt2, WORDS, 12, **SMALL, bias=True),
    "gpt2, standardised": partial(gpt2, WORDS, 12, **SMALL, standardised=True),
    "gpt2, gains": partial(gpt2, WORDS, 12, **SMALL, gains=True),
}
TRANSLATORS: dict[str, Make] = {
    "multi30k": partial(multi30k_transformer, WORDS, 12, **SMALL, hidden=24),
    "iwslt": partial(iwslt_transformer, WORDS, 12, **SMALL, hidden=24),
    "iwslt, gains": partial(iwslt_transformer, WORDS, 12, **SMALL, hidden=24, gains=True),
}


def _seeded(make: Make, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return make().eval()


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _words(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(UNKNOWN, WORDS, shape, generator=generator)


def _inputs(name: str) -> tuple[Tensor, ...]:
    """Return what the small model of that name takes: of the translators' sources one is padded."""
    if name in LANGUAGE_MODELS:
        return (_words(3, 9),)
    source = _words(3, 7)
    source[1, 4:] = PAD
    return source, _words(3, 9, seed=2)


EVERY = LANGUAGE_MODELS | TRANSLATORS


# sizes as published


def test_wikitexts_transformer_has_the_published_size() -> None:
    with torch.device("meta"):
        assert _counts(wikitext_transformer(33_278, 35)) == (19, 13_826_878)
        # two norms a layer, each 200 gains and 200 biases
        normalised = wikitext_transformer(33_278, 35, norm=True)
        assert _counts(normalised) == (27, 13_826_878 + 2 * 2 * 400)


def test_gpt2_has_the_published_size() -> None:
    with torch.device("meta"):
        assert _counts(gpt2(50_257, 1024, bias=True)) == (148, 124_439_808)
        # A block: 3 + 1 widths squared in attention, 4 + 4 in its perceptron, and two norms. Before
        # the blocks tokens and positions, after them a norm. 2 + 12 * 6 + 1 tensors.
        block = (3 + 1 + 4 + 4) * 768**2 + 2 * 768
        numbers = (50_304 + 1024) * 768 + 12 * block + 768
        assert numbers == 124_373_760
        assert _counts(gpt2(50_304, 1024)) == (75, numbers)


def test_multi30ks_transformer_has_the_published_number_of_tensors() -> None:
    # 6 encoder layers: 4 attention matrices and a perceptron (2 matrices, 2 biases); 6 decoder
    # layers: 4 matrices more; one matrix for all tokens. Norms have no parameters.
    perceptron = 2 * 512 * 2048 + 2048 + 512
    encoder, decoder = 4 * 512**2 + perceptron, 8 * 512**2 + perceptron
    with torch.device("meta"):
        counts = _counts(multi30k_transformer(9000, 100))
    assert counts == (6 * 8 + 6 * 12 + 1, 6 * (encoder + decoder) + 9000 * 512)
    assert counts[0] == 121


def test_iwslts_transformer_has_fairseqs_size() -> None:
    # fairseq's count is with 8,848 German and 6,632 English tokens; its output is English's matrix
    layers = 39_469_056 - (8848 + 6632) * 512
    with torch.device("meta"):
        plain = iwslt_transformer(10_000, 100)
    # 4 matrices and 4 biases an attention, 4 tensors a perceptron and 2 a norm
    tensors = 6 * (8 + 4 + 2 * 2) + 6 * (2 * 8 + 4 + 3 * 2) + 2
    assert _counts(plain) == (tensors, layers + 2 * 10_000 * 512)


def test_gains_are_one_a_neuron_of_each_matrix_in_the_layers() -> None:
    for plain, gained in (("gpt2", "gpt2, gains"), ("iwslt", "iwslt, gains")):
        (tensors, numbers), counts = _counts(EVERY[plain]()), _counts(EVERY[gained]())
        matrices = [
            m for m in EVERY[plain]().modules() if isinstance(m, nn.Linear)
        ]  # embeddings are none
        rows = sum(m.out_features for m in matrices)
        assert counts == (tensors + len(matrices), numbers + rows)


def _counts(model: nn.Module) -> tuple[int, int]:
    parameters = list(model.parameters())
    return len(parameters), sum(parameter.numel() for parameter in parameters)


# initial weights


def _assert_uniform(weight: Tensor, bound: float) -> None:
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.98 * bound
    assert abs(weight.std().item() * 3**0.5 / bound - 1) < 0.05


def _assert_normal(weight: Tensor, std: float) -> None:
    assert abs(weight.std().item() / std - 1) < 0.05
    assert abs(weight.mean().item()) < 0.05 * std
    assert weight.abs().max() > 3 * std  # unlike a uniform one's


def _xavier(*shape: int) -> float:
    return math.sqrt(6 / sum(shape))


def test_wikitexts_transformer_starts_as_torchs_does() -> None:
    model = _seeded(partial(wikitext_transformer, 500, 35, hidden=100))
    _assert_uniform(model.embedding.tokens.weight, 0.1)
    _assert_uniform(model.output.weight, 0.1)
    layer = model.layers[0]
    _assert_uniform(layer.attention.inputs[0].weight, _xavier(600, 200))
    for weight in (layer.attention.output.weight, layer.feed_forward[0].weight):
        _assert_uniform(weight, 200**-0.5)
    _assert_uniform(layer.feed_forward[3].weight, 100**-0.5)
    zeros = (model.output, layer.attention.inputs[0], layer.attention.output)
    assert not any(module.bias.any() for module in zeros)
    assert layer.feed_forward[0].bias.any()
    for first, second in zip(layer.parameters(), model.layers[1].parameters(), strict=True):
        assert torch.equal(first, second)
        assert first is not second


def test_gpt2_starts_normal_and_smaller_where_outputs_are_added() -> None:
    model = _seeded(partial(gpt2, 500, 64, layers=8, heads=2, width=64, bias=True))
    _assert_normal(model.tokens.weight, 0.02)
    _assert_normal(model.positions.weight, 0.02)
    for block in model.blocks:
        for weight in (block.attention.inputs[0].weight, block.feed_forward[0].weight):
            _assert_normal(weight, 0.02)
        for weight in (block.attention.output.weight, block.feed_forward[2].weight):
            _assert_normal(weight, 0.005)  # 0.02 / sqrt(2 * 8)
        layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
        assert len(layers) == 4
        assert not any(layer.bias.any() for layer in layers)


def test_every_matrix_of_multi30ks_transformer_starts_xavier_uniform() -> None:
    model = _seeded(partial(multi30k_transformer, 500, 20, layers=1, width=64, hidden=128))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    assert len(matrices) == 1 + 6 + 10
    for matrix in matrices:
        _assert_uniform(matrix, _xavier(*matrix.shape))


def test_iwslts_transformer_starts_as_fairseqs_does() -> None:
    model = _seeded(partial(iwslt_transformer, 500, 20, layers=1, width=64, hidden=128))
    for embedding in (model.source_embedding, model.target_embedding):
        assert not embedding.tokens.weight[PAD].any()
        _assert_normal(embedding.tokens.weight[1:], 64**-0.5)
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(attentions) == 3
    for attention in attentions:
        for projection in attention.inputs:
            _assert_uniform(projection.get_parameter("weight"), _xavier(64, 64) / 2**0.5)
        _assert_uniform(attention.output.weight, _xavier(64, 64))
        assert not attention.output.bias.any()
    _assert_uniform(model.decoder[0].feed_forward[0].weight, 64**-0.5)


# what a token sees


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_a_token_sees_those_before_it_and_none_after_it(name: str) -> None:
    model = _seeded(EVERY[name])
    *source, tokens = _inputs(name)
    logits = model(*source, tokens)
    assert logits.shape == (3, 9, WORDS)
    other = tokens.clone()
    other[:, 5] = UNKNOWN + (tokens[:, 5] - UNKNOWN + 1) % (WORDS - UNKNOWN)
    change = (model(*source, other) - logits).abs().amax(dim=(0, 2))
    assert change[:5].max() < 1e-6
    assert change[5:].min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_earlier_tokens_matters(name: str) -> None:
    model = _seeded(EVERY[name])
    *source, tokens = _inputs(name)
    swapped = tokens[:, [1, 0, *range(2, 9)]]
    assert (model(*source, swapped) - model(*source, tokens))[:, -1].abs().max() > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSLATORS)
def test_padding_changes_no_real_logits(name: str) -> None:
    model = _seeded(TRANSLATORS[name])
    source, target = _words(3, 7), _words(3, 9, seed=2)
    padding = torch.full((3, 3), PAD)
    padded = model(torch.cat([source, padding], dim=1), torch.cat([target, padding], dim=1))
    torch.testing.assert_close(padded[:, :9], model(source, target), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSLATORS)
def test_every_source_token_matters_to_every_logit(name: str) -> None:
    model = _seeded(TRANSLATORS[name])
    source, target = _words(3, 7), _words(3, 9, seed=2)
    logits = model(source, target)
    for position in (0, 6):
        other = source.clone()
        other[:, position] = UNKNOWN + (source[:, position] - UNKNOWN + 1) % (WORDS - UNKNOWN)
        assert (model(other, target) - logits).abs().amax(dim=(0, 2)).min() > 1e-4


# equality with torch's


def _copy_attention(attention: Attention, into: nn.MultiheadAttention) -> None:
    inputs = list(attention.inputs.named_parameters())
    into.in_proj_weight.copy_(torch.cat([p for n, p in inputs if n.endswith("weight")]))
    into.in_proj_bias.copy_(torch.cat([p for n, p in inputs if n.endswith("bias")]))
    into.out_proj.load_state_dict(attention.output.state_dict())


@torch.no_grad()
def test_packed_causal_attention_is_torchs() -> None:
    attention = _seeded(partial(Attention, 12, 3, packed=True))
    expected = nn.MultiheadAttention(12, 3, batch_first=True)
    _copy_attention(attention, expected)
    tokens, causal = _random(2, 5, 12), nn.Transformer.generate_square_subsequent_mask(5)
    for mask, is_causal in ((None, False), (causal, True)):
        outputs, _ = expected(tokens, tokens, tokens, attn_mask=mask)
        torch.testing.assert_close(attention(tokens, causal=is_causal), outputs)


@torch.no_grad()
def test_masked_attention_to_a_memory_is_torchs() -> None:
    attention = _seeded(partial(Attention, 12, 3))
    expected = nn.MultiheadAttention(12, 3, batch_first=True)
    _copy_attention(attention, expected)
    tokens, memory = _random(2, 5, 12), _random(2, 7, 12, seed=2)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    outputs, _ = expected(tokens, memory, memory, key_padding_mask=~real)
    torch.testing.assert_close(attention(tokens, memory, mask=real), outputs)


def _copy_layer(layer: PostNormLayer, into: Any) -> None:
    _copy_attention(layer.attention, into.self_attn)
    if layer.memory_attention is not None:
        _copy_attention(layer.memory_attention, into.multihead_attn)
    into.linear1.load_state_dict(layer.feed_forward[0].state_dict())
    into.linear2.load_state_dict(layer.feed_forward[3].state_dict())
    for index, norm in enumerate(layer.norms, start=1):
        getattr(into, f"norm{index}").load_state_dict(norm.state_dict())


def _jitter(model: nn.Module) -> None:
    """Move every parameter off its start, lest gains of 1 and biases of 0 hide one left out."""
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(_random(*parameter.shape, seed=index), alpha=0.1)


@torch.no_grad()
def test_wikitexts_transformer_with_norms_is_torchs() -> None:
    model = _seeded(LANGUAGE_MODELS["wikitext, norm"])
    _jitter(model)
    tokens = _words(2, 7)
    expected = 4 * model.embedding.tokens(tokens) + sinusoids(7, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    for layer in model.layers:
        torchs = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
        _copy_layer(layer, torchs)
        expected = torchs(expected, src_mask=causal)
    torch.testing.assert_close(model(tokens), model.output(expected))


@torch.no_grad()
def test_wikitexts_layer_without_norms_only_adds() -> None:
    layer = _seeded(LANGUAGE_MODELS["wikitext"]).layers[0]
    tokens = _random(2, 5, 16)
    attended = tokens + layer.attention(tokens, causal=True)
    first, last = layer.feed_forward[0], layer.feed_forward[3]
    expected = attended + last(relu(first(attended)))
    torch.testing.assert_close(layer(tokens, causal=True), expected)


@torch.no_grad()
def test_gpt2_is_torchs_prenorm_encoder_between_its_embeddings() -> None:
    model = _seeded(LANGUAGE_MODELS["gpt2, biases"])
    _jitter(model)
    tokens = _words(2, 7)
    hidden = model.tokens(tokens) + model.positions(torch.arange(7))
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    for block in model.blocks:
        torchs = nn.TransformerEncoderLayer(
            16, 2, 64, activation="gelu", norm_first=True, batch_first=True
        ).eval()
        _copy_attention(block.attention, torchs.self_attn)
        torchs.linear1.load_state_dict(block.feed_forward[0].state_dict())
        torchs.linear2.load_state_dict(block.feed_forward[2].state_dict())
        torchs.norm1.load_state_dict(block.norm1.state_dict())
        torchs.norm2.load_state_dict(block.norm2.state_dict())
        hidden = torchs(hidden, src_mask=causal)
    expected = linear(model.norm(hidden), model.tokens.weight)
    torch.testing.assert_close(model(tokens), expected)


@torch.no_grad()
def test_iwslts_layers_are_torchs() -> None:
    model = _seeded(TRANSLATORS["iwslt"])
    _jitter(model)
    source, target = _inputs("iwslt")
    padding = source == PAD
    memory = 4 * model.source_embedding.tokens(source) + sinusoids(7, 16)
    for layer in model.encoder:
        encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
        _copy_layer(layer, encoder)
        memory = encoder(memory, src_key_padding_mask=padding)
    hidden = 4 * model.target_embedding.tokens(target) + sinusoids(9, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(9)
    for layer in model.decoder:
        decoder = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True).eval()
        _copy_layer(layer, decoder)
        hidden = decoder(hidden, memory, tgt_mask=causal, memory_key_padding_mask=padding)
    expected = linear(hidden, model.target_embedding.tokens.weight)
    torch.testing.assert_close(model(source, target), expected)


# what a model does around and in its layers


def test_positions_are_sines_and_cosines_of_falling_frequencies() -> None:
    positions = sinusoids(50, 6)
    assert positions.shape == (50, 6)
    for position, pair in product((0, 1, 49), range(3)):
        angle = position / 10_000 ** (2 * pair / 6)
        found = positions[position, 2 * pair : 2 * pair + 2]
        expected = torch.tensor([math.sin(angle), math.cos(angle)])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_multi30ks_embedding_is_not_scaled_but_normalised_and_is_the_output() -> None:
    model = _seeded(partial(multi30k_transformer, WORDS, 12, layers=0, heads=2, width=16))
    target = _words(2, 7)
    (matrix,) = model.parameters()
    hidden = layer_norm(matrix[target] + sinusoids(7, 16), (16,), eps=1e-6)
    torch.testing.assert_close(model(target, target), hidden @ matrix.T)
    torch.testing.assert_close(model.encode(target), hidden)


@torch.no_grad()
def test_multi30ks_layer_normalises_without_gains_after_each_of_its_parts() -> None:
    layer = _seeded(TRANSLATORS["multi30k"]).decoder[0]
    tokens, memory = _random(2, 5, 16), _random(2, 7, 16, seed=2)
    norm = partial(layer_norm, normalized_shape=(16,), eps=1e-6)
    expected = norm(tokens + layer.attention(tokens, causal=True))
    expected = norm(expected + layer.memory_attention(expected, memory))
    expected = norm(expected + layer.feed_forward(expected))
    torch.testing.assert_close(layer(tokens, memory, causal=True), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["wikitext", "gpt2", "multi30k", "iwslt"])
def test_dropout_is_for_training_alone(name: str) -> None:
    model, inputs = _seeded(EVERY[name]), _inputs(name)
    assert torch.equal(model(*inputs), model(*inputs))
    model.train()
    assert not torch.allclose(model(*inputs), model(*inputs), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "dropped"),
    [("wikitext", True), ("gpt2", True), ("multi30k", True), ("iwslt", False)],
)
def test_attention_itself_has_dropout_but_in_fairseqs_model(name: str, dropped: bool) -> None:
    model, inputs = _seeded(EVERY[name]).train(), _inputs(name)
    for path, module in model.named_modules():
        if isinstance(module, Dropout) and "attention" not in path:
            module.p = 0.0
    assert torch.allclose(model(*inputs), model(*inputs)) is not dropped


@torch.no_grad()
def test_hidden_units_have_dropout_in_wikitexts_model_alone() -> None:
    for name, rate in (("wikitext", 0.2), ("multi30k", 0.0), ("iwslt", 0.0)):
        model = _seeded(EVERY[name])
        layer = model.layers[0] if name == "wikitext" else model.encoder[0]
        dropped = layer.feed_forward[:3].train()(_random(2000, 16)) == 0
        layer.feed_forward.eval()
        inactive = layer.feed_forward[:3](_random(2000, 16)) == 0
        expected = inactive.float().mean() + rate * (~inactive).float().mean()
        assert abs(dropped.float().mean() - expected) < 0.01


@pytest.mark.parametrize(("plain", "gained"), [("gpt2", "gpt2, gains"), ("iwslt", "iwslt, gains")])
def test_gains_leave_a_model_as_it_was_and_can_change_each_of_its_matrices(
    plain: str, gained: str
) -> None:
    inputs = _inputs(plain)
    model = _seeded(EVERY[gained])
    logits = model(*inputs)
    torch.testing.assert_close(logits, _seeded(EVERY[plain])(*inputs))
    torch.autograd.backward(logits.square().mean())
    gains = [p for name, p in model.named_parameters() if name.endswith("gain")]
    assert gains
    assert all(gain.grad is not None and gain.grad.any() for gain in gains)


@torch.no_grad()
def test_a_standardised_gpt2_ignores_the_scale_of_its_blocks_weights_but_not_of_its_tokens() -> (
    None
):
    inputs = _inputs("gpt2")
    model = _seeded(LANGUAGE_MODELS["gpt2, standardised"])
    both = _seeded(partial(LANGUAGE_MODELS["gpt2, gains"], standardised=True))
    logits = model(*inputs)
    torch.testing.assert_close(both(*inputs), logits)
    assert sum(name.endswith("gain") for name, _ in both.named_parameters()) == 2 * 4
    scaled = [p for name, p in model.named_parameters() if name.endswith("original")]
    assert len(scaled) == 2 * 4
    for weight in scaled:
        weight.mul_(10.0)
    torch.testing.assert_close(model(*inputs), logits, rtol=0.01, atol=0.001)
    model.tokens.weight.mul_(10.0)
    assert (model(*inputs) - logits).abs().max() > 0.1


@pytest.mark.parametrize(
    "make", [wikitext_transformer, gpt2, multi30k_transformer, iwslt_transformer]
)
def test_heads_must_share_the_width(make: Make) -> None:
    with pytest.raises(UserError, match="heads 3 must divide width 16"):
        make(WORDS, 8, layers=1, heads=3, width=16)


# training


def _loss(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    logits = model(*(tokens[:, :-1] if tokens is inputs[-1] else tokens for tokens in inputs))
    return cross_entropy(logits.flatten(0, 1).float(), inputs[-1][:, 1:].flatten())


@pytest.mark.parametrize("name", EVERY)
def test_a_step_of_a_neuron_wise_optimizer_stays_finite(name: str) -> None:
    for optimizer_of in (partial(Nero, lr=0.01), partial(RVAdamW, lr=0.01, weight_decay=0.1)):
        model, inputs = _seeded(EVERY[name]), _inputs(name)
        optimizer = optimizer_of(model.parameters())
        losses = []
        for _ in range(4):
            loss = _loss(model, inputs)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            assert all(parameter.grad is not None for parameter in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", EVERY)
def test_a_model_runs_in_bfloat16(name: str) -> None:
    model, inputs = _seeded(EVERY[name]), _inputs(name)
    expected = _loss(model, inputs).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(model, inputs)
    torch.autograd.backward(loss)
    assert abs(loss.item() / expected - 1) < 0.02
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["wikitext", "gpt2, standardised", "multi30k", "iwslt, gains"])
def test_a_model_compiles_as_one_graph(name: str) -> None:
    model, inputs = _seeded(EVERY[name]), _inputs(name)
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    logits = compiled(*inputs)
    torch.testing.assert_close(logits, model(*inputs))
    torch.autograd.backward(logits.square().mean())
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.compiler.reset()


@pytest.mark.parametrize("decayed", [True, False])
def test_embeddings_have_weight_decay_or_none(decayed: bool) -> None:
    """Rotational Equilibrium: they rotate with nanoGPT and do not with llm-baselines and fairseq."""
    models: list[tuple[nn.Module, int]] = [
        (gpt2(20, 8, layers=1, heads=1, width=4, gains=True, decay_embeddings=decayed), 2),
        (iwslt_transformer(20, 8, layers=1, heads=1, width=4, decay_embeddings=decayed), 2),
    ]
    for model, embeddings in models:
        matrices = sum(p.dim() > 1 for p in model.parameters())
        groups = parameter_groups(model)
        decayed_matrices = [p for g in groups if "weight_decay" not in g for p in g["params"]]
        assert len(decayed_matrices) == matrices - (0 if decayed else embeddings)
