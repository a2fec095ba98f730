"""How many tokens a second the text tasks train on, and how much of the device's peak that uses.

    python benchmarks/text_step.py [--device cuda] [--tasks openwebtext-gpt2 …] [--scale small]

Each task with Nero. At paper scale the token ids are made up: windows of the true length, and pairs
as many and as long as the corpus's, in the batches that the task makes of them. At small scale it is
the task's own data, which every installation has. OpenWebText's windows come through the reading
thread as in training, but from memory.

A round times, in random order, making a batch (``data_ms``), a training step on a batch that is ready
(``train_ms``), and steps as in training, several in a row on a GPU (``both_ms``, for one); figures are
medians over the rounds. ``data_share`` is the first over the sum of the first two: what data would
cost if no thread read ahead. ``bucketing_ms`` is an epoch's sorting of pairs into batches.

``tokens_per_second`` counts real tokens, of sources and targets alike, padding and BOS left out, in
the time of both; ``padding_share`` is an epoch's. ``mfu`` is the usual model-flops utilisation
(Chowdhery et al., PaLM, 2022, appendix B): flops a token, times tokens a second, over the peak, with

    6 × parameters that multiply + 12 × layers × width × context    flops a token

The former are the entries of matrices; an embedding's look-up counts nothing, the output counts if it
is tied to one, too. Causal attention counts in full, recomputation and padding not at all. In
translation a token's context is its own sentence's length: a source token meets the encoder and the
matrices that make the decoder's keys and values of it, a target token the rest, and it attends to
both sentences. The peak is the published dense one of bfloat16 for GPUs in ``PEAKS``, else what a
matrix product reaches in the same run.

On a CPU a batch of text has about ``CPU_TOKENS`` tokens, fewer than published (``batch_size`` says).
Prints a table and writes it to ``benchmarks/results/``.
"""

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from timing import machine, seconds, show, time_rounds, write
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from robustlr.registry import load_task
from robustlr.scale import Scale
from robustlr.task import Batch, Config, GroupedPart, Part, SupervisedTask
from robustlr.tasks.data.pairs import PairPart
from robustlr.tasks.data.text import WEB, StreamPart
from robustlr.tasks.data.tokens import PAD, SPECIAL, UNKNOWN, Tokenizer
from robustlr.tasks.models.attention import Attention
from robustlr.tasks.models.translation import TranslationTransformer
from robustlr.training import batches, compiled, place, steps_an_epoch, take_step

TASKS = (
    "openwebtext-gpt2",
    "wikitext103-gpt2",
    "iwslt14-transformer",
    "multi30k-transformer",
    "wikitext2-transformer",
)

PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 flops a second by what a GPU's name contains, from Nvidia's data sheets."""

PRODUCTS = 30
"""Matrix products of which the fastest is the peak."""

TEXT_TOKENS = {"wikitext-2": 2_088_628}
MANY_TOKENS = 2**24
"""How many made-up tokens a text has: more than caches hold where the true number is larger."""

SENTENCES = {
    # Image captions: narrow
    "multi30k": {"pairs": 29_000, "mean": 12.4, "spread": 0.33, "ratio": 1.05},
    # Talks: 4,035,591 and 3,949,114 tokens, ends included, as fairseq prepares them
    "iwslt14": {"pairs": 160_239, "mean": 24.2, "spread": 0.65, "ratio": 0.967},
}
"""Lengths: log-normal with this mean and deviation of the logarithm; a target is 15 % about a ratio."""

CPU_TOKENS = 1024
CPU_STEPS, GPU_STEPS = 1, 10
CPU_WARMUP, GPU_WARMUP = 1, 2
"""Steps timed in a row, and how often each part runs first: pairs of many shapes must compile."""


def made_up(scale: Scale, device: str) -> Part:
    """Return random training data of a scale's true shape."""
    if scale.data in SENTENCES:
        return made_up_pairs(scale, device)
    context = scale.options["context"]
    windows = TEXT_TOKENS.get(scale.data, MANY_TOKENS) // context
    stream = torch.randint(scale.options["vocabulary"], (windows * context + 1,))
    if scale.data == WEB:
        return StreamPart(stream.to(torch.uint16).numpy(), context, device)
    stream = stream.to(device)
    return Batch(stream[:-1].view(windows, context), stream[1:].view(windows, context))


def made_up_pairs(scale: Scale, device: str) -> PairPart:
    """Return pairs of random words; the tokeniser's words are the numbers of its pieces."""
    facts, options = SENTENCES[scale.data], scale.options
    vocabulary, longest, spread = options["vocabulary"], options["longest"], facts["spread"]
    count = int(facts["pairs"])
    location = math.log(facts["mean"]) - spread**2 / 2
    lengths = (location + spread * torch.randn(count)).exp()
    ratios = facts["ratio"] * (0.15 * torch.randn(count)).exp()
    sources, targets = (
        random_lines(side.round().long().clamp(1, longest - 1), vocabulary)
        for side in (lengths, lengths * ratios)
    )
    engine = Engine(
        models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token=f"{UNKNOWN}")
    )
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    by_tokens = options["by_tokens"]
    return PairPart(
        sources, targets, Tokenizer(engine), longest=longest, by_tokens=by_tokens, device=device
    )


def random_lines(lengths: Tensor, vocabulary: int) -> list[str]:
    """Return lines of as many random numbers, none of a special piece."""
    ids = torch.randint(len(SPECIAL), vocabulary, (int(lengths.sum()),)).tolist()
    words = iter(map(str, ids))
    return [" ".join(islice(words, length)) for length in lengths.tolist()]


def peak(device: str) -> tuple[float, str]:
    """Return the device's flops a second, and where the number is from."""
    if device != "cpu":
        for name, flops in PEAKS.items():
            if name in machine(device):
                return flops, "published, bfloat16"
    size, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = torch.randn(2, size, size, dtype=dtype, device=device)
    best = min(seconds(lambda: a @ b, device) for _ in range(PRODUCTS))
    return 2 * size**3 / best, f"measured, {size}² {str(dtype).removeprefix('torch.')}"


def matrix_entries(module: nn.Module) -> int:
    """Return the number of weights that multiply in the linear layers of a module."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def work(model: nn.Module, batch: Batch, scale: Scale) -> tuple[int, float]:
    """Return the real tokens of a batch and the flops of a training step on them.

    Without padding that is to the digit what torch's ``FlopCounterMode`` counts.
    """
    options = scale.options
    output = options["vocabulary"] * options["width"]
    attended = 12 * options["layers"] * options["width"]  # flops for each token attended to
    if not isinstance(model, TranslationTransformer):
        untied = isinstance(getattr(model, "output", None), nn.Linear)
        entries = matrix_entries(model) + (0 if untied else output)
        tokens = batch.inputs.numel()
        return tokens, tokens * (6.0 * entries + attended * options["context"])
    sources, targets = lengths(batch)
    memory = sum(
        matrix_entries(linear)
        for layer in model.decoder
        if isinstance(layer.memory_attention, Attention)
        for linear in layer.memory_attention.inputs[1:]
    )
    by_source = 6 * (matrix_entries(model.encoder) + memory)
    by_target = 6 * (matrix_entries(model.decoder) - memory + output)
    pairs = sources**2 + targets**2 + sources * targets
    flops = by_source * sources + by_target * targets + attended * pairs
    return int((sources + targets).sum()), float(flops.sum())


def lengths(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the real tokens of each source, EOS included, and of each target, BOS left out."""
    sources, targets = ((side != PAD).sum(1).double() for side in batch)
    return sources, targets - 1


class Step:
    """A task's training step, in parts that can be timed."""

    def __init__(self, task: SupervisedTask, scale: Scale, data: Part, device: str) -> None:
        config = Config(task=task.name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=0)
        self.task, self.scale = task, scale
        self.model = place(task.model(scale), device)
        self.optimizer = config.build_optimizer(self.model, scale.gradient_clip)
        self.forward = compiled(self.model, device, scale.steps)
        self.stream = batches(data, scale, 0)
        self.part, self.picks = data, picks(data, scale)
        self.in_a_row = CPU_STEPS if device == "cpu" else GPU_STEPS
        self.trained_on: list[list[Batch]] = []

    def data(self) -> None:
        """Make a batch, with no thread that reads ahead."""
        self.ready = self.part.take(next(self.picks), 0)

    def train(self) -> None:
        """Take a step on the batch that was made last."""
        take_step(self.task, self.forward, self.optimizer, self.ready, self.scale)

    def both(self) -> None:
        """Take steps as in training."""
        self.trained_on.append([])
        for _ in range(self.in_a_row):
            batch = next(self.stream)
            take_step(self.task, self.forward, self.optimizer, batch, self.scale)
            self.trained_on[-1].append(batch)


def picks(data: Part, scale: Scale) -> Iterator[Tensor]:
    """Yield the examples of one batch after another."""
    while True:
        if isinstance(data, GroupedPart):
            yield from data.groups(scale.batch_size, seed=0)
        else:
            device = data.targets.device if isinstance(data, Batch) else None
            yield torch.randint(len(data), (scale.batch_size,), device=device)


def measure(
    task: SupervisedTask, scale: Scale, data: Part, device: str, rounds: int, flops: float
) -> dict[str, Any]:
    """Return one task's figures; ``flops`` is the device's peak."""
    step = Step(task, scale.sized(steps_an_epoch(data, scale)), data, device)
    parts = {"data": step.data, "train": step.train, "both": step.both}
    for _ in range(CPU_WARMUP if device == "cpu" else GPU_WARMUP):  # compile, and fill caches
        for part in parts.values():
            part()
    step.trained_on.clear()
    times = time_rounds(parts, device, rounds)
    median = {part: statistics.median(values) for part, values in times.items()}
    done = [[work(step.model, batch, scale) for batch in row] for row in step.trained_on]
    tokens, flops_a_second = (
        statistics.median(
            sum(one[i] for one in row) / time for row, time in zip(done, times["both"], strict=True)
        )
        for i in range(2)
    )
    pairs = isinstance(data, PairPart)
    return {
        "data_ms": 1e3 * median["data"],
        "train_ms": 1e3 * median["train"],
        "both_ms": 1e3 * median["both"] / step.in_a_row,
        "data_share": median["data"] / (median["data"] + median["train"]),
        "bucketing_ms": 1e3 * seconds(lambda: steps_an_epoch(data, scale), device)
        if pairs
        else 0.0,
        "padding_share": data.padding(scale.batch_size) if isinstance(data, PairPart) else 0.0,
        "tokens_per_second": tokens,
        "mfu": flops_a_second / flops,
    }


def measure_task(
    name: str, scale_name: str, batch_size: int | None, device: str, rounds: int, flops: float
) -> dict[str, Any]:
    """Return one task's figures at its batch size, or at a smaller one."""
    task = load_task(name)
    assert isinstance(task, SupervisedTask)
    published = task.scales[scale_name]
    torch.manual_seed(0)
    data = (
        made_up(published, device) if scale_name == "paper" else task.data(published, device).train
    )
    if batch_size is None and device == "cpu" and not isinstance(data, PairPart):
        batch_size = max(1, CPU_TOKENS // published.options["context"])
    size = min(batch_size or published.batch_size, published.batch_size)
    facts = {"task": name, "batch_size": size, "own_batch_size": published.batch_size}
    return facts | measure(task, replace(published, batch_size=size), data, device, rounds, flops)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--scale", choices=("paper", "small"), default="paper")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batch-size", type=int, help="at most this many windows or pairs (IWSLT: tokens)"
    )
    arguments = parser.parse_args()
    device, scale = arguments.device, arguments.scale
    flops, source = peak(device)
    print(f"peak {flops / 1e12:.4g} Tflop/s ({source})")
    rows = []
    for name in arguments.tasks:
        size, rounds = arguments.batch_size, arguments.rounds
        rows.append(measure_task(name, scale, size, device, rounds, flops))
        show(rows[-1])
    facts = {"scale": scale, "peak_tflops": flops / 1e12, "peak": source}
    write(f"text_step-{scale}", device, rows, **facts)


if __name__ == "__main__":
    main()
