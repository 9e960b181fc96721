"""Time and peak memory of the structure head at giga width, compared with other packages.

    python benchmarks/ss_head.py --official path/to/RiNALMo

    rinalmo         `StructureHead` in inference, fp32
    rinalmo train   the same with gradients recorded, forward and backward
    official        the authors' `SecStructPredictionHead`, fp32
    multimolecule   `RiNALMoForSecondaryStructurePrediction`'s head, fp32

All have the same weights and get the same random hidden states. Memory is the growth of a process while it computes
once, after a first run. The other packages build the concatenated states of all pairs, length² × 2,560 numbers; they
are skipped if those do not fit into free memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sides
from sides import Run, Side

HIDDEN, CHANNELS = 1280, 64
SAMPLES = 8  # rows of the logits that are compared


def fill(head: Any) -> Any:
    """Set the same weights in every implementation; their parameters are in the same order."""
    import torch

    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * max(1, parameter[0].numel()) ** -0.5)
    return head.eval()


def states(length: int) -> Any:
    import torch

    return torch.randn(length, HIDDEN, generator=torch.Generator().manual_seed(1))


def sampled(logits: Any, length: int) -> Any:
    return logits.view(length, length)[:: max(1, length // SAMPLES)].detach().clone()


def rinalmo(length: int) -> Run:
    import torch

    from rinalmo.model.heads import StructureHead

    head, x = fill(StructureHead(HIDDEN)), states(length)

    @torch.inference_mode()
    def run() -> Any:
        return sampled(head(x), length)

    return run


def rinalmo_train(length: int) -> Run:
    from rinalmo.model.heads import StructureHead

    head, x = fill(StructureHead(HIDDEN)).train(), states(length)

    def run() -> Any:
        logits = head(x)
        logits.square().mean().backward()
        return sampled(logits, length)

    return run


def official(length: int, checkout: str) -> Run:
    sides.use_official(checkout)
    import torch
    from rinalmo.model.downstream import SecStructPredictionHead

    head, x = fill(SecStructPredictionHead(HIDDEN, num_blocks=2)), states(length)[None]

    @torch.inference_mode()
    def run() -> Any:
        return sampled(head(x), length)

    return run


def multimolecule(length: int) -> Run:
    import torch
    from multimolecule import RiNALMoConfig
    from multimolecule.models.rinalmo.modeling_rinalmo import RiNALMoSecondaryStructurePredictionHead

    config = RiNALMoConfig(hidden_size=HIDDEN, num_hidden_layers=1)
    head, x = fill(RiNALMoSecondaryStructurePredictionHead(config)), torch.zeros(1, length + 2, HIDDEN)
    x[0, 1:-1] = states(length)
    ids = torch.tensor([[config.bos_token_id, *[6] * length, config.eos_token_id]])

    @torch.inference_mode()
    def run() -> Any:
        return sampled(head((x,), torch.ones_like(ids), ids).logits, length)

    return run


def start(length: int, chosen: Any) -> dict[str, Side]:
    found = {"rinalmo": Side("rinalmo", chosen.threads, length=length)}
    if fits("rinalmo train", length, 20 * CHANNELS):  # the pair maps that the backward pass needs
        found["rinalmo train"] = Side("rinalmo_train", chosen.threads, length=length)
    if chosen.peer and fits("peers", length, 2 * HIDDEN):
        if chosen.official:
            found["official"] = Side("official", chosen.threads, chosen.peer, length=length, checkout=chosen.official)
        found["multimolecule"] = Side("multimolecule", chosen.threads, chosen.peer, length=length)
    return found


def fits(name: str, length: int, numbers: int) -> bool:
    """Whether `numbers` fp32 values per pair fit into free memory; prints a note if not."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    needed = 4 * numbers * length**2
    if 1.2 * needed > free:
        print(f"Not measured at {length:,} nt: {name}, which needs {sides.megabytes(needed)}.\n")
    return 1.2 * needed <= free


def rows(length: int, chosen: Any) -> list[tuple[str, ...]]:
    found = start(length, chosen)
    sides.take_turns(found.values(), chosen.repeats)
    memory = {name: side.memory() for name, side in found.items()}
    for side in found.values():
        side.close()
    ours = found["rinalmo"]
    return [
        (
            *(name, side.failure or f"{side.median:.3f}", sides.megabytes(memory[name])),
            *(f"{side.median / ours.median:.1f}", f"{memory[name] / max(1, memory['rinalmo']):.1f}"),
            "" if side.failure else f"{difference(side.value, ours.value):.0e}",
        )
        for name, side in found.items()
    ]


def difference(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for r, s in zip(one, other, strict=True) for a, b in zip(r, s, strict=True))


def main() -> None:
    chosen = sides.options(__doc__, lengths={"nargs": "+", "type": int, "default": [200, 500, 1000, 2000]})
    sides.head("Structure head", chosen)
    for length in chosen.lengths:
        found = rows(length, chosen)
        print(f"{length:,} nt\n")
        sides.table(("", "seconds", "memory", "time, × rinalmo", "memory, × rinalmo", "difference"), found)
        print()


if __name__ == "__main__":
    sides.serve_or(main, {f.__name__: f for f in (rinalmo, rinalmo_train, official, multimolecule)})
