"""A decoder's fixed prompt in fewer tokens: learned vectors, tokens chosen by surprise, or the first ones.

    python -m experiments.bench.prompts SMOLLM2 TRAIN.parquet TEST.parquet [--seeds 0 1 2] [--steps 30] [--rounds 3]

SMOLLM2 is the folder of SmolLM2-135M-Instruct; the tables have a column `text` of users' questions. The full prompt is
the system message `PROMPT`. For each test question the model answers greedily after the full prompt; then it reads the
same answer after each shorter prompt. Agreement is the share of the answer's tokens that are still the most probable,
KL the divergence of the next token from that after the full prompt, in nats. A seed draws the questions to learn from
and to test on, and the order.

Learned vectors (compare gist tokens, Mu et al. 2023, arXiv 2304.08467, and ICAE, Ge et al. 2024, arXiv 2307.06945)
take the place of the prompt's embeddings; they start as those of evenly spaced tokens and learn from the full prompt's
outputs with the model frozen. Surprise (LLMLingua, Jiang et al. 2023, arXiv 2310.05736) keeps the tokens that the
model itself finds least probable. Prefill is the prompt with a question of 24 tokens; `kept` reads the question alone
after a cache of the full prompt that was made before.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from predictors import Workload, measure
from predictors.measurement.timing import REFERENCE

PROMPT = (
    "You are Ada, the assistant of Northwind Bank. Answer in one short paragraph of plain English, "
    "politely and without jargon. Never ask for a password, a PIN or a full card number. Cards arrive "
    "within five working days; express delivery costs nine pounds. Cash machines abroad charge two "
    "percent. A transfer within the country takes one working day, one to another country up to four. "
    "Top-ups by card are free up to five hundred pounds a month. If a card is lost or stolen, tell the "
    "customer first to freeze it in the app, then to order a new one. Refunds appear after three to ten "
    "days. If you do not know something, say so and give the number of the hotline, 0800 111 222. Do not "
    "talk about other banks, shares or politics."
)
SHARES = (2, 4, 8)
TRAIN, TEST, ANSWER, LONGEST = 16, 10, 12, 60
"""Questions of a seed to learn from and to test on, tokens of an answer, letters of a question."""
RATE = 1e-2


@dataclass
class Example:
    """What follows the prompt, and what the model makes of it after the full one.

    Attributes:
        tokens: The question and all tokens of the answer but the last.
        answer: The tokens of the answer.
        teacher: (answer, vocabulary) log-probabilities.
    """

    tokens: Tensor
    answer: Tensor
    teacher: Tensor


class Prompts:
    """A model with a prompt, as embeddings of shape (tokens, channels)."""

    def __init__(self, folder: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
        self.table = self.model.get_input_embeddings()
        self.ids, self.head = self.tokens(PROMPT), self.tokens("<|im_start|>system\n")

    def tokens(self, text: str) -> Tensor:
        """(tokens,) of a text."""
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]

    def question(self, text: str) -> Tensor:
        """(tokens,) after the prompt."""
        return self.tokens(f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")

    def cache(self, prompt: Tensor) -> Any:
        """Keys and values of a prompt."""
        embeddings = torch.cat([self.table(self.head), prompt])[None]
        return self.model.model(inputs_embeds=embeddings, use_cache=True).past_key_values

    def example(self, text: str, cache: Any) -> Example:
        """The greedy answer after the full prompt."""
        past, fed, question = copy.deepcopy(cache), self.question(text), self.question(text)
        rows: list[Tensor] = []
        for _ in range(ANSWER):
            rows.append(log_softmax(self.model(fed[None], past_key_values=past).logits[0, -1], -1))
            fed = rows[-1].argmax()[None]
        answer = torch.stack([row.argmax() for row in rows])
        return Example(torch.cat([question, answer[:-1]]), answer, torch.stack(rows))

    def student(self, example: Example, cache: Any) -> Tensor:
        """(answer, vocabulary) log-probabilities after a prompt's cache."""
        out = self.model(example.tokens[None], past_key_values=copy.deepcopy(cache), logits_to_keep=ANSWER)
        return log_softmax(out.logits[0], -1)

    def scores(self, prompt: Tensor, examples: list[Example]) -> tuple[float, float]:
        """Agreement and KL."""
        with torch.inference_mode():
            cache = self.cache(prompt)
            rows = [(self.student(each, cache), each) for each in examples]
            agreement = np.mean([float((row.argmax(-1) == each.answer).float().mean()) for row, each in rows])
            return float(agreement), float(np.mean([float(divergence(row, each)) for row, each in rows]))

    def learned(self, count: int, examples: list[Example], steps: int, seed: int) -> Tensor:
        """So many vectors, distilled from the full prompt's outputs."""
        start = self.ids[np.linspace(0, len(self.ids) - 1, count).round().astype(int)]
        vectors = self.table(start).clone().requires_grad_(True)
        scale = float(vectors.detach().std())
        optimizer = torch.optim.Adam([vectors], RATE * scale / 0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, steps)
        order = np.random.default_rng(seed).choice(len(examples), steps)
        for index in order:
            example = examples[index]
            embeddings = torch.cat([self.table(self.head), vectors, self.table(example.tokens)])[None]
            logits = self.model(inputs_embeds=embeddings, logits_to_keep=ANSWER, use_cache=False).logits[0]
            optimizer.zero_grad()
            divergence(log_softmax(logits, -1), example).backward()
            optimizer.step()
            schedule.step()
        return vectors.detach()

    def surprising(self, count: int) -> Tensor:
        """The embeddings of the tokens that the model finds least probable, in their order."""
        with torch.inference_mode():
            read = torch.cat([self.head, self.ids])
            rows = log_softmax(self.model(read[None]).logits[0, len(self.head) - 1 : -1], -1)
            kept = rows.gather(1, self.ids[:, None])[:, 0].argsort()[:count].sort().values
        return self.table(self.ids[kept])


def divergence(student: Tensor, example: Example) -> Tensor:
    """Mean KL of the next token in nats."""
    return kl_div(student, example.teacher, log_target=True, reduction="batchmean")


def rows_of(prompts: Prompts, known: list[str], asked: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Name, tokens -> agreement and KL, for one seed."""
    generator, found = np.random.default_rng(seed), {}
    with torch.inference_mode():
        full = prompts.cache(prompts.table(prompts.ids))
        train, test = (
            [prompts.example(str(text), full) for text in generator.choice(texts, count, replace=False)]
            for texts, count in ((known, TRAIN), (asked, TEST))
        )
    train = [Example(each.tokens.clone(), each.answer.clone(), each.teacher.clone()) for each in train]
    embeddings = prompts.table(prompts.ids)
    found["full", len(prompts.ids)] = prompts.scores(embeddings, test)
    for share in SHARES:
        count = len(prompts.ids) // share
        found["learned", count] = prompts.scores(prompts.learned(count, train, steps, seed), test)
        found["surprise", count] = prompts.scores(prompts.surprising(count), test)
        found["first", count] = prompts.scores(embeddings[:count], test)
        print(seed, count, found, flush=True)
    found["none", 0] = prompts.scores(embeddings[:0], test)
    return found


def prefills(prompts: Prompts, rounds: int) -> dict[int, float]:
    """Tokens of the prompt -> prefill time over that of the full one; key -1: its cache is kept."""
    question, embeddings = prompts.table(prompts.question("x " * 14)[-24:]), prompts.table(prompts.ids)
    with torch.inference_mode():
        kept = prompts.cache(embeddings)

    def after_cache() -> None:
        prompts.model(inputs_embeds=question[None], past_key_values=kept, logits_to_keep=1)
        kept.crop(-len(question))

    def prefill(count: int) -> Any:
        fed = torch.cat([prompts.table(prompts.head), embeddings[:count], question])[None]
        return lambda: prompts.model(inputs_embeds=fed, use_cache=True, logits_to_keep=1)

    counts = [*(len(embeddings) // share for share in SHARES), 0]
    calls = {**{str(count): prefill(count) for count in counts}, "-1": after_cache}
    with torch.inference_mode():
        timings = measure(calls, prefill(len(embeddings)), Workload(), rounds=rounds)
    ratios = {len(embeddings): 1.0, **{int(name): timings[name].ratio for name in calls}}
    print(f"prefill of the full prompt: {timings[REFERENCE].latency_ms:.0f} ms, ratios {ratios}", flush=True)
    return ratios


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prompts = Prompts(arguments.model)
    texts = [pd.read_parquet(file)["text"] for file in (arguments.train, arguments.test)]
    known, asked = ([text for text in column if len(text) <= LONGEST] for column in texts)
    times = prefills(prompts, arguments.rounds)
    seeds = [rows_of(prompts, known, asked, arguments.steps, seed) for seed in arguments.seeds]
    config = prompts.model.config
    a_token = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4 / 1e6
    table = Table("prompt", "tokens", "agreement", "KL", "prefill", "KV cache of the prompt, MB")
    for name, count in seeds[0]:
        values = np.array([found[name, count] for found in seeds])
        errors = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else (np.nan, np.nan)
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(values.mean(0), errors, strict=True)]
        table.add_row(name, str(count), *cells, f"{times[count]:.2f}", f"{count * a_token:.1f}")
    kept = len(prompts.ids)
    table.add_row("full, kept", str(kept), "1", "0", f"{times[-1]:.2f}", f"{kept * a_token:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
