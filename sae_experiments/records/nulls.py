"""Nulls for the findings of chapter 13: re-initialised twins, and the procedure's own error rate.

    python -m sae_experiments.records.nulls WHAT

    twins              trained model and its twins, layers 2 and 14; half an hour
    false-positives    the procedure on random models alone; 6 minutes

Run it from the repository's root. Finished runs are kept in runs/nulls; started again, the script resumes.
``--seconds`` ends it between two runs, to be resumed later.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import sae_lib
from sae_experiments import null_models, testbed
from sae_experiments.concept_search import permuted_scores, phi, search
from sae_lib import language_models, records
from sae_lib.metrics import nulls
from sae_lib.sweeps import sweep

ROOT = Path(__file__).resolve().parents[2]
RUNS, RECORDS = ROOT / "runs" / "nulls", ROOT / "book" / "records"
TRAINING = {"width": 256, "steps": 100, "batch_size": 256, "train": 12, "half": 8}
# layer, twins, whether they keep the trained embedding
DRAWS = ((2, 19, False), (2, 19, True), (14, 19, False), (14, 19, True))


def gba(layer: int) -> dict[str, tuple[float, float]]:
    """Return ladder and learning rate of chapter 10's search, as ``null_models.draw`` takes them."""
    rows = records.read(RECORDS / "10_search.json").rows
    chosen = testbed.settings(rows, "code", layer)["gba"]
    return {"gba": (chosen["knob"], chosen["lr"])}


def twins() -> list[dict[str, Any]]:
    """Return cells of ``null_models.draw``: the trained model at every layer, then its twins."""
    models: dict[tuple[int, int | None, bool], None] = dict.fromkeys((at, None, False) for at, _, _ in DRAWS)
    models |= dict.fromkeys((layer, i, keep) for layer, many, keep in DRAWS for i in range(many))
    return [
        {
            "number": number, "layers": [layer], "keep_embedding": keep,
            "methods": gba(layer), **TRAINING,
        }
        for layer, number, keep in models
    ]  # fmt: skip


def flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each model, layer and method."""
    flattened = []
    for row in rows:
        for statistics in row["found"]:
            knob, lr = row["methods"][statistics["method"]]
            kind = {"number": row["number"], "keep_embedding": row["keep_embedding"], "knob": knob, "lr": lr}
            flattened.append(kind | statistics)
    return flattened


@cache
def tiny() -> tuple[language_models.LanguageModel, null_models.Text]:
    """Return a random Llama of 3 blocks, d = 64, and the text of its search."""
    model, text = null_models.opened(1, 8, 6)
    config = LlamaConfig(
        vocab_size=model.vocabulary, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=128, initializer_range=0.05, tie_word_embeddings=True,
        max_position_embeddings=256,
    )  # fmt: skip
    return language_models.LanguageModel(
        AutoModelForCausalLM.from_config(config), model.tokenizer, "tiny"
    ), text


def trial(number: int, draws: int = 19, permutations: int = 99) -> dict[str, Any]:
    """Run the procedure with a random model in the trained one's place, and ``draws`` others as its null.

    Returns:
        For each model, the stand-in first, the φ of the latents that the search finds, on the half where they
        are chosen and on the other; the φ on both halves of latents with the same numbers in the twins, where
        nothing is searched for; and the scores of the same search with permuted labels.
    """
    model, text = tiny()
    chosen, scored, unsearched_chosen, unsearched, permuted = [], [], [], [], []
    for i in range(draws + 1):
        seed = number * (draws + 1) + i
        twin = language_models.reinitialised(model, seed)
        rows = null_models.rows_of(twin, text, ["resid_post.2"])["resid_post.2"]
        sae, _ = sae_lib.train(
            sae_lib.batches.Rows(rows["train"]), sae_lib.TopK(k=8, centre=True),
            lr=0.01, width=128, steps=40, batch_size=128, seed=seed, progress=False,
        )  # fmt: skip
        halves = null_models.halves(sae, rows, text)
        answer = search(*halves)
        chosen.append(answer.chosen.tolist())
        scored.append(answer.score.tolist())
        if i == 0:
            latents = answer.latent
            permuted = permuted_scores(*halves, permutations, seed=number).tolist()
        else:
            unsearched_chosen.append(phi(halves[0], halves[1][:, latents]).diagonal().tolist())
            unsearched.append(phi(halves[2], halves[3][:, latents]).diagonal().tolist())
    return {
        "chosen": chosen, "found": scored, "unsearched_chosen": unsearched_chosen, "unsearched": unsearched,
        "permuted": permuted,
    }  # fmt: skip


def verdicts(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each trial's least p-value by procedure: a discovery where it is at most 0.05.

    Benjamini–Hochberg needs more draws than one trial has, so its null is the models of all other trials.
    These verdicts share draws; all others are independent of each other.
    """
    rows = []
    every = [torch.tensor(t["found"], dtype=torch.float64) for t in trials]
    for i, t in enumerate(trials):
        scores, draws = every[i][0], every[i][1:]
        others = torch.cat([x for j, x in enumerate(every) if j != i])
        chosen, same, same_chosen, permuted = (
            torch.tensor(t[name], dtype=torch.float64)
            for name in ("chosen", "unsearched", "unsearched_chosen", "permuted")
        )
        p = {
            "max statistic": nulls.max_statistic_p_values(scores, draws),
            "max statistic, studentised": nulls.max_statistic_p_values(*nulls.studentised(scores, draws)),
            "max statistic, one half": nulls.max_statistic_p_values(chosen[0], chosen[1:]),
            "Benjamini–Hochberg": nulls.benjamini_hochberg(nulls.empirical_p_values(scores, draws)),
            "Benjamini–Hochberg, all others": nulls.benjamini_hochberg(
                nulls.empirical_p_values(scores, others)
            ),
            "no search in the null": nulls.max_statistic_p_values(scores, same),
            "no search in the null, one half": nulls.max_statistic_p_values(chosen[0], same_chosen),
            "labels permuted": nulls.max_statistic_p_values(scores, permuted),
        }
        least = {name: round(values.min().item(), 5) for name, values in p.items()}
        rows.append({"number": t["number"], "draws": len(draws), "others": len(others), "p": least})
    return rows


def collect(
    run: Callable[..., Mapping[str, Any]], cells: Sequence[Mapping[str, Any]], seconds: float, workers: int
) -> list[dict[str, Any]] | None:
    """Return all results, or None if the time runs out first."""
    start, rows = time.perf_counter(), []
    for i in range(0, len(cells), workers):
        if time.perf_counter() - start > seconds:
            print(f"{i} of {len(cells)} runs are kept; run the same command again to resume")
            return None
        rows += sweep(run, cells[i : i + workers], folder=RUNS, workers=workers, progress=False)
    return rows


def main(what: str, seconds: float = 1e9, workers: int = 1, trials: int = 40) -> None:
    """Make one of the records, or resume making it."""
    clock = RUNS / f"{what}.seconds.json"
    RUNS.mkdir(parents=True, exist_ok=True)
    before, start = json.loads(clock.read_text("utf8")) if clock.exists() else 0.0, time.perf_counter()
    if what == "twins":
        rows = collect(null_models.draw, twins(), seconds, workers)
        rows = rows and flat(rows)
    else:
        rows = collect(trial, [{"number": i} for i in range(trials)], seconds, workers)
        rows = rows and verdicts(rows)
    spent = before + time.perf_counter() - start
    with sae_lib.files.atomic.replacing(clock) as path:
        path.write_text(json.dumps(spent), "utf8")
    if rows:
        records.write(RECORDS / f"13_{what.replace('-', '_')}.json", rows, seconds=spent)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("twins", "false-positives"))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, default=40)
    return parser


if __name__ == "__main__":
    # under the module's own name, so that other processes find what it defines
    from sae_experiments.records import nulls as module

    module.main(**vars(parser().parse_args()))
