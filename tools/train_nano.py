"""Train the bundled nano on, so that it knows base pairs.

    python tools/train_nano.py made-up WORK --redraw folded.csv      # RNA that only its pairs predict
    rinalmo data prepare STORE ncrna=ncrna.fa one=WORK/one.fa more=WORK/more.fa nested=WORK/nested.fa …
    python tools/train_nano.py heads RECIPE --structures WORK/structures.csv --structures folded.csv --output HEADS
    python tools/train_nano.py train RECIPE --set init=HEADS --structures … --output RUN
    python tools/train_nano.py mean RUN --last 4 --output MEAN

`train_nano.yaml` and `train_nano_decay.yaml` beside this file are the recipes of the bundled nano.

Masked language modeling alone does not teach a small model base pairs: after its first stage nano predicted paired
nucleotides no better than unpaired ones. Two things do (docs/log.md has the trials):

made-up    RNA with one perfect stem at a random place, with two to four of them, with random nested structures (bulges,
           GU pairs), and real structures with their letters drawn anew, from a table with the columns `sequence` and
           `structure`. `structures.csv` has the structures of all of them.
heads      Some heads of the last block get fresh queries and keys and learn to attend to the partner of a paired
           nucleotide, wherever a table (columns `sequence`, `structure`) has the sequence. Masked nucleotides count
           five times, since it is they that the language model predicts. Nothing else changes.
train      `rinalmo pretrain` with two additions for the sequences of the tables. That objective now also trains what
           the heads read, and unpaired nucleotides attend to `<cls>`. And half of the sequences are redrawn: some or
           all of their pairs get other letters, the unpaired ones stay, so that the letters of a pair are known from
           the partner alone.
mean       The mean of a run's last checkpoints: at a constant learning rate, single ones differ by a point of accuracy.

For nano the tables held ViennaRNA's structures and those of made-up RNA only: no structure of a test set taught it.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rinalmo.cli.options import print_note, training_progress
from rinalmo.data.batches import Batch, MaskedBatches, letters_of, make_batches
from rinalmo.data.sampling import Item
from rinalmo.data.store import TokenStore
from rinalmo.errors import InputError, RinalmoError
from rinalmo.io.tables import read_rows
from rinalmo.model.kernels import rotate
from rinalmo.rna.structure import Structure, pairs_of
from rinalmo.training.checkpoint import Checkpoints, damage, listed
from rinalmo.training.distributed import Ranks
from rinalmo.training.pretrain import MaskedLMTask, build_model, pretrain
from rinalmo.training.recipes import Recipe, load_recipe
from rinalmo.training.trainer import Listener
from rinalmo.weights.checkpoint import save

PAIRS = ("GC",) * 26 + ("CG",) * 26 + ("AU",) * 18 + ("UA",) * 18 + ("GU",) * 6 + ("UG",) * 6
PAIR_LETTERS = np.array([list(pair.encode()) for pair in PAIRS], dtype=np.uint8)
UNPAIRED = {"A": 34, "C": 20, "G": 22, "U": 24}  # frequencies in loops, percent
COMPLEMENT = dict(zip("ACGU", "UGCA", strict=True))
MASKED_WEIGHT = 5.0
HEADS_RATE = 3e-3  # learning rate of fresh heads

RNA = tuple[str, str]
"""A sequence and its structure in dot-bracket notation."""


# Made-up RNA.


def join(*parts: RNA) -> RNA:
    return "".join(sequence for sequence, _ in parts), "".join(structure for _, structure in parts)


def uniform(draw: random.Random, length: int) -> RNA:
    return "".join(draw.choices("ACGU", k=length)), "." * length


def loop(draw: random.Random, length: int) -> RNA:
    return "".join(draw.choices(list(UNPAIRED), list(UNPAIRED.values()), k=length)), "." * length


def perfect_stems(draw: random.Random, count: int) -> RNA:
    """Stems of Watson-Crick pairs of uniform letters, beside or within each other: nothing but the pairs is known."""
    if not count:
        return uniform(draw, draw.randint(3, 9))
    enclosed = draw.randint(0, count - 1) if draw.random() < 0.4 else 0
    strand = "".join(draw.choices("ACGU", k=draw.randint(6, 14)))
    inner = perfect_stems(draw, enclosed)
    if enclosed:
        inner = join(uniform(draw, draw.randint(0, 5)), inner, uniform(draw, draw.randint(0, 5)))
    other = "".join(COMPLEMENT[letter] for letter in reversed(strand))
    helix = join((strand, "(" * len(strand)), inner, (other, ")" * len(strand)))
    rest = count - 1 - enclosed
    return join(helix, uniform(draw, draw.randint(0, 12)), perfect_stems(draw, rest)) if rest else helix


def stem(draw: random.Random, pairs: int, inner: RNA, bulge: float) -> RNA:
    """A stem around `inner`, with GU pairs; before each pair, with probability `bulge`, a bulge or an internal loop."""
    for _ in range(pairs):
        if draw.random() < bulge:
            kind, few, some = draw.random(), draw.randint(1, 2), (draw.randint(1, 3), draw.randint(1, 3))
            left, right = (few, 0) if kind < 0.3 else (0, few) if kind < 0.6 else some
            inner = join(loop(draw, left), inner, loop(draw, right))
        first, second = draw.choice(PAIRS)
        inner = join((first, "("), inner, (second, ")"))
    return inner


def nested(draw: random.Random, room: int) -> RNA:
    """A random nested structure of about `room` nucleotides."""
    parts: list[RNA] = []
    while room > 14:
        if room > 50 and draw.random() < 0.4:
            inside = nested(draw, draw.randint(25, min(room - 12, 120)))
            inside = join(loop(draw, draw.randint(0, 4)), inside, loop(draw, draw.randint(0, 4)))
            parts.append(stem(draw, draw.randint(4, 8), inside, 0.06))
        else:
            pairs = draw.randint(4, min(22, max(4, (room - 4) // 2)))
            parts.append(stem(draw, pairs, loop(draw, draw.randint(3, 8)), 0.1))
        parts.append(loop(draw, min(int(draw.expovariate(0.2)), 20)))
        room -= len(parts[-1][0]) + len(parts[-2][0])
    return join(*parts)


def redrawn(draw: random.Random, rna: RNA) -> RNA:
    """A structure with new letters: all of them, or each pair and each unpaired letter with some probability."""
    keep = draw.choice((0.0, 0.0, 0.3, 0.6))
    letters = list(rna[0])
    paired = dict(pairs_of(rna[1]))
    for i, j in paired.items():
        if draw.random() > keep:
            letters[i], letters[j] = draw.choice(PAIRS)
    for i in set(range(len(letters))) - paired.keys() - set(paired.values()):
        if draw.random() > keep:
            letters[i] = loop(draw, 1)[0]
    return "".join(letters), rna[1]


def with_flanks(draw: random.Random, rna: RNA) -> RNA:
    return join(uniform(draw, draw.randint(0, 15)), rna, uniform(draw, draw.randint(0, 15)))


def make_up(work: Path, redraw: Path | None, seed: int) -> None:
    draw = random.Random(seed)
    folded = [(row["sequence"], row["structure"]) for _, row in read_rows(redraw)] if redraw else []
    kinds: dict[str, tuple[int, Any]] = {
        "one": (60_000, lambda: with_flanks(draw, perfect_stems(draw, 1))),
        "more": (80_000, lambda: with_flanks(draw, perfect_stems(draw, draw.randint(2, 4)))),
        "nested": (60_000, lambda: nested(draw, draw.randint(30, 230))),
        "redrawn": (60_000 if folded else 0, lambda: redrawn(draw, draw.choice(folded))),
    }
    work.mkdir(parents=True, exist_ok=True)
    with (work / "structures.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["sequence", "structure"])
        for name, (count, make) in kinds.items():
            made = [make() for _ in range(count)]
            (work / f"{name}.fa").write_text("".join(f">{name}{n}\n{rna[0]}\n" for n, rna in enumerate(made)))
            writer.writerows(made)
            print(f"{work / name}.fa: {count:,} RNAs", flush=True)


# The second objective.


class Partners:
    """The partner of every nucleotide of the sequences of a store whose structure is in one of the tables."""

    def __init__(self, store: TokenStore, tables: Sequence[Path]) -> None:
        structures: dict[bytes, str] = {}
        for table in tables:
            for where, row in read_rows(table):
                sequence, structure = row["sequence"].upper().replace("T", "U"), row["structure"]
                if len(sequence) != len(structure):
                    raise InputError(f"{where}: {len(sequence)} nucleotides, but a structure of {len(structure)}")
                structures[sequence.encode()] = structure
        self._partners: dict[int, np.ndarray] = {}
        for index in range(len(store)):
            letters = store[index].tobytes()
            if (known := structures.get(letters)) is not None:
                partners = Structure.from_dot_bracket(store.name(index), letters.decode(), known).partners()
                self._partners[index] = np.array(partners, dtype=np.int16)
        if not self._partners:
            raise InputError(f"{store.path}: none of its sequences is in {', '.join(map(str, tables))}")

    def __len__(self) -> int:
        return len(self._partners)

    def of(self, item: Item) -> np.ndarray:
        """What each token of the item should attend to: its partner, `<cls>` if it is unpaired, -1 if that is unknown.

        A crop has no `<cls>`, and the partner may lie outside it: then the answer is -1, too.
        """
        known = self._partners.get(item.sequence)
        if known is None:
            return np.full(item.tokens, -1, dtype=np.int64)
        partners = known[item.start : item.start + item.length].astype(np.int64)
        places = partners - item.start + item.whole
        places[(partners < item.start) | (partners >= item.start + item.length)] = -1
        if not item.whole:
            return places
        places[partners < 0] = 0
        return np.concatenate([[-1], places, [-1]])


@dataclass(frozen=True)
class PairedBatch(Batch):
    """A batch with what each token should attend to, as a place within its sequence, or -1."""

    partners: Tensor


class PairedBatches(MaskedBatches):
    """Batches with partners, and with other letters in the pairs of a share of the items."""

    partners: Partners
    redraw: float

    def make(self, parts: Sequence[list[Item]], rank: int, world: int) -> list[Batch]:
        batches = make_batches(self.store, self.alphabet, parts, self.data.masking, rank, world, self._letters)
        own = parts[rank::world]
        paired = []
        for batch, items in zip(batches, own, strict=False):
            places = [self.partners.of(item) for item in items]
            paired.append(PairedBatch(**vars(batch), partners=torch.from_numpy(np.concatenate(places))))
        for batch in batches[len(own) :]:
            paired.append(PairedBatch(**vars(batch), partners=torch.full((batch.layout.total,), -1)))
        return paired

    def _letters(self, store: TokenStore, item: Item) -> np.ndarray:
        """The nucleotides of an item; in `redraw` of the items, canonical pairs, a share drawn for each, are new."""
        letters = letters_of(store, item)
        draw = np.random.default_rng(item.key)
        if draw.random() >= self.redraw:
            return letters
        places = self.partners.of(item)[item.whole : item.whole + item.length] - item.whole
        (i,) = np.nonzero(places > np.arange(item.length))  # the 5' one of each pair
        j = places[i]
        first, second = (letters[at].tobytes().decode() for at in (i, j))
        canonical = np.array([a + b in PAIRS for a, b in zip(first, second, strict=True)], dtype=bool)
        chosen = canonical & (draw.random(len(i)) < draw.uniform(0.2, 1.2))
        letters = letters.copy()
        letters[i[chosen]], letters[j[chosen]] = PAIR_LETTERS[draw.integers(len(PAIRS), size=chosen.sum())].T
        return letters


def paired_task(
    tables: Sequence[Path], heads: Sequence[int], weight: float, redraw: float, unpaired_weight: float
) -> type[MaskedLMTask]:
    """The task with both objectives."""

    class PairedTask(MaskedLMTask):
        source_type = PairedBatches

        def __init__(self, recipe: Any, store: TokenStore, model: Any, ranks: Any) -> None:
            super().__init__(recipe, store, model, ranks)
            partners = Partners(store, tables)
            self.source.partners, self.source.redraw = partners, redraw  # type: ignore[attr-defined]
            if not ranks.rank:
                print_note(f"structures of {len(partners):,} of {len(store):,} sequences")
            attention = model.encoder.blocks[-1].attention
            # Within the block's own forward pass, where FSDP has gathered its weights.
            attention.register_forward_pre_hook(self._attend)
            self.places: Tensor | None = None
            self.selected: Tensor | None = None
            # Sum of losses and their number; of masked paired nucleotides: those that attend to the partner most, all.
            self.sums = np.zeros(4)
            self.pair_loss: Tensor | float = 0.0

        def _attend(self, attention: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self.places is None or self.selected is None:
                return
            x, layout, rope = inputs[:3]
            size = attention.head_size
            rows = attention.qkv.weight.unflatten(0, (3, -1, size))[:2, list(heads)].flatten(0, 2)
            q, k = F.linear(x, rows).float().unflatten(-1, (2, len(heads), size)).unbind(1)
            q, k = rotate(q, rope) * size**-0.5, rotate(k, rope)
            total, count = x.new_zeros((), dtype=torch.float32), 0.0
            for group in layout.groups:
                span, shape = slice(group.start, group.stop), (group.count, group.length)
                partner, selected = self.places[span].view(shape), self.selected[span].view(shape)
                known = (partner >= 0).any(dim=1)
                if not known.any():
                    continue
                partner, selected = partner[known], selected[known]
                queries, keys = (t[span].unflatten(0, shape)[known].transpose(1, 2) for t in (q, k))
                attended = (queries @ keys.transpose(-1, -2)).log_softmax(dim=-1)
                at = partner.clamp(min=0)[:, None, :, None].expand(-1, len(heads), -1, 1)
                losses = -attended.gather(-1, at)[..., 0].mean(dim=1)
                unpaired = torch.where(partner == 0, unpaired_weight, 1.0)
                counts = (partner >= 0) * unpaired * torch.where(selected, MASKED_WEIGHT, 1.0)
                total, count = total + (losses * counts).sum(), count + float(counts.sum())
                with torch.no_grad():
                    here = (partner > 0) & selected
                    most = attended.exp().mean(dim=1).argmax(dim=-1) == partner
                    self.sums[2:] += [float(most[here].sum()), float(here.sum())]
            self.sums[:2] += [float(total.detach()), count]
            self.pair_loss = total / count if count else 0.0

        def loss(self, module: nn.Module, batch: Batch) -> Tensor:
            if not len(batch.targets):
                return super().loss(module, batch)
            self.places = batch.partners.to(batch.ids.device)  # type: ignore[attr-defined]
            self.selected = torch.zeros_like(batch.ids, dtype=torch.bool)
            self.selected[batch.positions] = True
            masked = super().loss(module, batch)
            self.places, loss = None, masked + weight * len(batch.targets) * self.pair_loss
            return loss

        def evaluate(self, module: nn.Module, ranks: Any) -> Iterator[tuple[str, float]]:
            """As before, and how the heads did in training since the last validation."""
            yield from super().evaluate(module, ranks)
            loss, count, found, paired = ranks.all_gather(self.sums.tolist()).sum(dim=0).tolist()
            self.sums[:] = 0
            if count:
                yield "pairs/loss", loss / count
            if paired:
                yield "pairs/found", found / paired

    return PairedTask


def teach_heads(recipe: Recipe, tables: Sequence[Path], heads: Sequence[int], steps: int, output: Path) -> None:
    """Write the model of `recipe.init` with fresh queries and keys of the heads, trained for the second objective."""
    if output.exists():
        raise InputError(f"{output} exists; choose another name")
    if recipe.data.store is None:
        raise InputError("data.store is missing: use --set data.store=FOLDER with a store from `rinalmo data prepare`")
    model, _ = build_model(recipe)
    # Only partners: with <cls> as a target from the start, the heads would learn nothing else.
    task = paired_task(tables, heads, 1.0, 0.0, 0.0)(recipe, TokenStore.open(recipe.data.store), model, Ranks())
    attention = model.encoder.blocks[-1].attention
    fresh = torch.Generator().manual_seed(recipe.train.seed)
    rows = attention.qkv.weight.data.unflatten(0, (3, -1, attention.head_size))[:2]
    for head in heads:
        rows[:, head] = torch.randn(rows[:, head].shape, generator=fresh) * model.config.initializer_range
    model.requires_grad_(False)
    attention.qkv.weight.requires_grad_(True)
    optimizer = torch.optim.AdamW([attention.qkv.weight], lr=HEADS_RATE, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(1, steps + 1):
        batches = task.batches()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                task.loss(task.module, batch)
            if isinstance(task.pair_loss, Tensor):  # type: ignore[attr-defined]
                (task.pair_loss / len(batches)).backward()  # type: ignore[attr-defined]
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps:
            loss, count, found, paired = task.sums  # type: ignore[attr-defined]
            share = found / max(1, paired)
            print_note(f"{step} of {steps} steps, loss {loss / count:.3f}, {share:.1%} of masked partners found")
            task.sums[:] = 0  # type: ignore[attr-defined]
    save(model, output)


def write_mean(run: Path, last: int, output: Path) -> None:
    """Write the mean of the weights of a run's last checkpoints, as a model."""
    if output.exists():
        raise InputError(f"{output} exists; choose another name")
    folder = run / "checkpoints"
    steps = listed(folder)[-last:]
    if not 0 < last <= len(steps):
        raise InputError(f"{folder}: {len(steps)} checkpoints; the mean of {last} cannot be taken")
    for step in steps:
        if reason := damage(step):
            raise InputError(f"{step}: {reason}")
    model, _ = build_model(load_recipe(str(run / "recipe.yaml")))
    mean = torch.optim.swa_utils.AveragedModel(model)
    for step in steps:
        Checkpoints(folder, Ranks()).restore(step, {f"model.{name}": t for name, t in model.state_dict().items()})
        mean.update_parameters(model)
    save(mean.module, output)
    print_note(f"{output}: the mean of {', '.join(step.name for step in steps)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    made = commands.add_parser("made-up", help="write FASTA files and structures of made-up RNA")
    made.add_argument("work", type=Path)
    made.add_argument("--redraw", type=Path, help="table of RNAs with structures")
    made.add_argument("--seed", type=int, default=0)
    taught = commands.add_parser("heads", help="teach fresh heads of a model to attend to partners")
    taught.add_argument("--steps", type=int, default=300)
    train = commands.add_parser("train", help="pre-train with both objectives")
    for command in (taught, train):
        command.add_argument("recipe")
        command.add_argument("--structures", type=Path, action="append", default=[], required=True)
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--set", action="append", default=[], dest="overrides")
        command.add_argument("--heads", type=int, nargs="+", default=[1, 3, 7, 11, 15, 17], help="of the last block")
    train.add_argument("--resume", action="store_true")
    train.add_argument("--weight", type=float, default=0.2, help="weight of the heads' cross-entropy")
    train.add_argument(
        "--unpaired",
        type=float,
        default=0.7,
        help="weight of unpaired nucleotides, in it; small until partners are found",
    )
    train.add_argument("--redraw", type=float, default=0.5, help="share of the sequences whose pairs get new letters")
    mean = commands.add_parser("mean", help="write the mean of a run's last checkpoints")
    mean.add_argument("run", type=Path)
    mean.add_argument("--last", type=int, default=4)
    mean.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        if options.command == "made-up":
            make_up(options.work, options.redraw, options.seed)
            return
        if options.command == "mean":
            write_mean(options.run, options.last, options.output)
            return
        recipe = load_recipe(options.recipe, options.overrides)
        if options.command == "heads":
            teach_heads(recipe, options.structures, options.heads, options.steps, options.output)
            return
        task = paired_task(options.structures, options.heads, options.weight, options.redraw, options.unpaired)
        with training_progress() as callbacks:
            pretrain(recipe, options.output, resume=options.resume, listener=Listener(*callbacks), task=task)
    except RinalmoError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
