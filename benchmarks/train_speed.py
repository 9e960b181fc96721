"""Compare training steps with a Hugging Face `Trainer` and multimolecule's model: tokens per second without padding.

    python benchmarks/train_speed.py                                  # nano; other packages are installed on first use
    python benchmarks/train_speed.py --preset micro --repeats 3 --batches 8 16 32
    python benchmarks/train_speed.py --fasta my_rnas.fa.gz            # their lengths instead of the built-in mix

    rinalmo             `pretrain` with the recipe pretrain-nano-cpu (or --recipe) in one process: bf16 (fp32 on a
                        processor without it), packed batches with a fixed number of tokens
    rinalmo × N         the same with torchrun, N processes of one thread
    default             multimolecule's model in a Trainer with `DataCollatorForLanguageModeling` and default
                        settings: fp32, dropout 0.1, batches of 8 in random order
    best SIZE           the same with bf16 autocast (or fp32, as ours), SDPA, no dropout, batches of SIZE grouped by
                        length
    best SIZE × N       the same with torchrun

All get sequences with the same distribution of lengths, cropped as in the recipe. A step is everything from the batch
to the updated weights. Tokens are nucleotides, CLS and EOS, not padding; the Trainer counts its own.

Each side repeats its own few steps, the first time untimed; the result is the median time of each step. The other
packages therefore see no length for the first time while timed, as they would in a real run. When grouped by length,
batches differ: the timed ones are spread evenly over the 50 that transformers sorts at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sides
from embed_speed import REAL
from sides import Side

NEVER = 10**6
GROUP = 50  # batches that transformers sorts by length at once, if there are four times as many


class Rounds:
    """Reports a side's steps to the parent one round at a time, and waits for a request before the next round."""

    def __init__(self, steps: int) -> None:
        self._steps, self._lines = steps, sides.answers()
        self._rounds: list[list[tuple[float, float]]] = [[]]

    def step(self, tokens: float, seconds: float) -> bool:
        """Record a step; returns False when no more steps are needed."""
        self._rounds[-1].append((tokens, seconds))
        if len(self._rounds[-1]) < self._steps:
            return True
        took = sum(seconds for _, seconds in self._rounds[-1])
        print(json.dumps({"seconds": took, "value": self._rounds[1:]}), file=self._lines)
        self._rounds.append([])
        return bool(sys.stdin.readline().strip())


# The sides.


def rinalmo(store: str, output: str, recipe: str, changes: list[str], steps: int) -> None:
    from rinalmo.training.pretrain import pretrain
    from rinalmo.training.recipes import load_recipe
    from rinalmo.training.trainer import Event, Listener

    whole = {"data.store": store, "train.max_steps": NEVER, "train.checkpoint_every": NEVER, "logging.every": 1}
    whole |= {"validation.every": NEVER, "logging.plots": False, "train.deadline": NEVER}
    chosen = load_recipe(recipe, [*changes, *(f"{key}={json.dumps(value)}" for key, value in whole.items())])
    rounds, seen = Rounds(steps), [0.0, 0.0]

    def hear(event: Event) -> None:
        now = [event.values["tokens"], event.values["seconds"]]
        tokens, seconds = (after - before for after, before in zip(now, seen, strict=True))
        seen[:] = now
        if not rounds.step(tokens, seconds):
            signal.raise_signal(signal.SIGTERM)  # requests the end of a run, on all its processes after the next step

    pretrain(chosen, output, listener=Listener(event=hear))


def trainer(output: str, batches: list[list[int]], model: dict[str, Any], training: dict[str, Any]) -> None:
    """multimolecule in a Trainer, on batches of sequences with these lengths."""
    import torch.distributed as dist
    from multimolecule import RiNALMoConfig, RiNALMoForMaskedLM, RnaTokenizer
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    tokenizer, draw = RnaTokenizer(), random.Random(0)
    texts = ["".join(draw.choices("ACGU", k=length)) for batch in batches for length in batch]
    rounds = Rounds(len(batches) // int(os.environ.get("WORLD_SIZE", "1")))

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.since, self.tokens = time.perf_counter(), 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tokens, seconds = state.num_input_tokens_seen - self.tokens, time.perf_counter() - self.since
            self.tokens = state.num_input_tokens_seen
            wanted = [state.is_world_process_zero and rounds.step(tokens, seconds)]
            if dist.is_initialized():
                dist.broadcast_object_list(wanted, src=0)
            control.should_training_stop = not wanted[0]
            self.since = time.perf_counter()

    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    counted = {"include_num_input_tokens_seen": "non_padding", "train_sampling_strategy": "sequential"}
    size = {"per_device_train_batch_size": len(batches[0]), "num_train_epochs": NEVER}
    cpu = {"use_cpu": True, "ddp_timeout": NEVER}
    Trainer(
        RiNALMoForMaskedLM(RiNALMoConfig(vocab_size=tokenizer.vocab_size, **model)),
        TrainingArguments(output, **quiet, **counted, **size, **cpu, **training),
        data_collator=DataCollatorForLanguageModeling(tokenizer),
        train_dataset=[{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]],
        callbacks=[Clock()],
    ).train()


def peak(precision: str) -> None:
    """FLOP/s of the machine in a large matrix product."""
    import torch

    from rinalmo.training.trainer import measure_peak

    rounds = Rounds(1)
    while rounds.step(measure_peak(torch.device("cpu"), precision), 1.0):
        pass


# The parent process.


def mix(fasta: str | None, crop: int) -> list[int]:
    """Lengths to draw from, cropped."""
    from rinalmo.io.sequences import read_fasta

    lengths = [len(record.sequence) for record in read_fasta(fasta)] if fasta else list(REAL)
    return [min(length, crop) for length in lengths]


def write_store(path: Path, lengths: list[int]) -> None:
    """Random sequences, each a cluster of its own."""
    from rinalmo.data.store import StoreWriter

    draw = random.Random(0)
    with StoreWriter(path, sources=["mix"]) as writer:
        for number, length in enumerate(draw.choices(lengths, k=4096)):
            writer.start_cluster()
            writer.add(str(number), "".join(draw.choices("ACGU", k=length)).encode())


def at_random(lengths: list[int], size: int, count: int) -> list[list[int]]:
    """Batches in random order, together spread evenly over the distribution."""
    ordered, number = sorted(lengths), size * count
    chosen = [ordered[(2 * i + 1) * len(ordered) // (2 * number)] for i in range(number)]
    random.Random(0).shuffle(chosen)
    return [chosen[start : start + size] for start in range(0, number, size)]


def grouped(lengths: list[int], size: int, count: int) -> list[list[int]]:
    """Batches of sequences of similar length, spread evenly over a sorted group."""
    group = sorted(random.Random(0).choices(lengths, k=GROUP * size), reverse=True)
    starts = [size * ((2 * i + 1) * GROUP // (2 * count)) for i in range(count)]
    return [group[start : start + size] for start in starts]


def native() -> str:
    """The fastest precision of this processor, used by all sides."""
    import torch

    from rinalmo.engine.devices import native_precision

    return native_precision(torch.device("cpu"))


def start(folder: Path, lengths: list[int], chosen: Any) -> dict[str, Side]:
    """All sides, by name, after their untimed round or failed."""
    many, one = {"threads": chosen.threads}, {"threads": 1, "processes": chosen.threads}
    ours = {"store": str(folder / "store"), "recipe": chosen.recipe, "changes": chosen.changes, "steps": chosen.steps}
    found = {"rinalmo": Side("rinalmo", **many, **ours, output=str(folder / "one"))}
    if chosen.threads > 1:
        found[f"rinalmo × {chosen.threads}"] = Side("rinalmo", **one, **ours, output=str(folder / "many"))
    if chosen.peer:
        found |= start_peers(str(folder / "peer"), lengths, chosen, many, one)
    return found | {"peak": Side("peak", **many, precision=native())}


def start_peers(output: str, lengths: list[int], chosen: Any, many: Any, one: Any) -> dict[str, Side]:
    sizes = {name: getattr(chosen.config, name) for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    common: Any = {"python": chosen.peer, "output": output}
    plain = at_random(lengths, 8, max(4, chosen.sequences // 8))
    found = {"default": Side("trainer", **many, **common, batches=plain, model=sizes, training={})}
    best = common | {"model": sizes | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "attn_implementation": "sdpa"}}
    for size in chosen.batches:
        batches = grouped(lengths, size, max(4, chosen.sequences // size))
        found[f"best {size}"] = Side("trainer", **many, **best, batches=batches, training={"bf16": native() == "bf16"})
    for size in chosen.spread_batches if chosen.threads > 1 else ():
        whole = grouped(lengths, size * chosen.threads, max(4, chosen.sequences // (size * chosen.threads)))
        batches = [batch[part :: chosen.threads] for batch in whole for part in range(chosen.threads)]
        several = best | {
            "training": {"bf16": native() == "bf16", "ddp_backend": "gloo", "ddp_find_unused_parameters": False}
        }
        found[f"best {size} × {chosen.threads}"] = Side("trainer", **one, **several, batches=batches)
    return found


def rate(side: Side) -> tuple[float, float]:
    """Tokens of a mean step, and tokens per second."""
    steps = list(zip(*side.value, strict=True))
    tokens = sum(tokens for (tokens, _), *_ in steps)
    seconds = sum(statistics.median(seconds for _, seconds in step) for step in steps)
    return tokens / len(steps), tokens / seconds


def report(found: dict[str, Side], lengths: list[int], chosen: Any) -> None:
    from rinalmo.training.trainer import training_flops

    whole = [length + 2 for length in lengths]
    flops = training_flops(chosen.config, whole, round(0.15 * sum(lengths))) / sum(whole)
    limit = statistics.median(value for ((value, _),) in found["peak"].value)
    rates = {name: rate(side) for name, side in found.items() if name != "peak" and side.value}
    best = max((speed for name, (_, speed) in rates.items() if name.startswith("best")), default=0.0)
    default = rates.get("default", (0.0, 0.0))[1]
    print(f"{chosen.preset}: mean {statistics.mean(whole):.0f} tokens a sequence, at most {max(whole)}", end="; ")
    print(f"{flops / 1e6:,.1f} MFLOPs a token; peak {limit / 1e9:,.0f} GFLOP/s.\n")
    rows = []
    for name, (size, speed) in rates.items():
        ratios = (f"{speed / base:.2f}" if base else "" for base in (default, best))
        rows.append((name, f"{size:,.0f}", f"{speed:,.0f}", *ratios, f"{flops * speed / limit:.3f}"))
    sides.table(("", "tokens a step", "tokens/s", "× default", "× best", "MFU"), rows)
    for name, side in found.items():
        if side.failure:
            print(f"\nNot measured: {name} ({side.failure}).")


def main() -> None:
    from rinalmo.training.recipes import load_recipe

    chosen = sides.options(
        __doc__,
        preset={"default": "nano"},
        recipe={"default": "pretrain-nano-cpu"},
        set={"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "change the recipe"},
        fasta={"help": "take the lengths of these sequences"},
        batches={"nargs": "*", "type": int, "default": [8, 16, 32, 64]},
        spread_batches={"nargs": "*", "type": int, "default": [16], "help": "those that are tried on N processes"},
        sequences={"type": int, "default": 64, "help": "in a round of a peer, at least"},
        steps={"type": int, "default": 4, "help": "in a round of ours"},
    )
    chosen.changes = [f"model.preset={chosen.preset}", *chosen.set]
    recipe = load_recipe(chosen.recipe, chosen.changes)
    chosen.config = recipe.model.config()
    lengths = mix(chosen.fasta, recipe.data.max_length)
    sides.head("Training steps", chosen)
    with tempfile.TemporaryDirectory() as scratch:
        write_store(Path(scratch, "store"), lengths)
        found = start(Path(scratch), lengths, chosen)
        sides.take_turns(found.values(), chosen.repeats)
        for side in found.values():
            side.close()
    report(found, lengths, chosen)


if __name__ == "__main__":
    serves = {f.__name__: f for f in (rinalmo, trainer, peak)}
    sides.serve_or(main, serves)
