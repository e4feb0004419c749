"""What Prefline and its peers are timed on: the same rows, the same tokens, the same weights.

Imported by processes of ours and by those in the peers' environments, so it needs torch, tokenizers and transformers
alone. Rows are made-up words whose number varies as that of real replies does (log-normal). The tiny model and its tokenizer
are made from nothing; with a folder the model in it is used instead.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{number}" for number in range(900)]
VOCABULARY = 1024
HELD_OUT_SEED = 1_000
DPO_BETA = 0.1
ONLINE = ("ppo", "ppo-shared", "ppo-mixed")
"""With answers that all run to their most tokens, because random weights hardly ever say EOS; the same where our critic is a head
on the policy (the peer's is always a model of its own); and with answers that end sometimes."""


@dataclass(frozen=True)
class Scale:
    """prompt, reply, question (a prompt of PPO and sampling): fewest and most words. batch: rows a step.

    rankings: a step's, where answers are ranked. answers: a round's, in PPO, and a batch's in sampling. answer_length: mean tokens
    of an answer where lengths are mixed: EOS is made so likely. device: "cpu", in fp32, or "cuda", in bf16 over weights in fp32.
    """

    batch: int
    rankings: int
    learning_rate: float
    prompt: tuple[int, int]
    reply: tuple[int, int]
    question: tuple[int, int]
    answers: int
    new_tokens: int
    online_learning_rate: float
    temperature: float = 0.7
    answer_length: int = 20
    device: str = "cpu"


TINY = Scale(32, 16, 1e-3, (8, 48), (4, 96), (8, 32), answers=64, new_tokens=48, online_learning_rate=1e-4)
SMOLLM = Scale(8, 4, 1e-5, (3, 8), (3, 12), (3, 8), answers=16, new_tokens=24, online_learning_rate=1e-6, answer_length=10)
GPU = Scale(64, 32, 1e-5, (8, 48), (4, 96), (8, 32), answers=128, new_tokens=48, online_learning_rate=1e-6, device="cuda")
SCALES = {"tiny": TINY, "smollm": SMOLLM, "gpu": GPU}


@dataclass(frozen=True)
class Ranking:
    """Answers, best first; a comparison has two. Texts: prompt + answer reads as one."""

    prompt: str
    answers: tuple[str, ...]


def rankings(count: int, prompt: tuple[int, int], reply: tuple[int, int], answers: int = 2, seed: int = 0) -> list[Ranking]:
    """The rows. With two answers they are the comparisons that the peers' own timing workload makes, word by word."""
    rng = random.Random(seed)

    def words(number: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(number))

    def answer() -> str:
        fewest, most = reply
        return " " + words(int(min(most, max(fewest, rng.lognormvariate(3.2, 0.7)))))

    return [Ranking(words(rng.randint(*prompt)) + " ?", tuple(answer() for _ in range(answers))) for _ in range(count)]


def pairs(rows: Iterable[Ranking]) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) for every two answers of every ranking."""
    return [(row.prompt, better, worse) for row in rows for i, better in enumerate(row.answers) for worse in row.answers[i + 1 :]]


# Models ---------------------------------------------------------------------------------------------------------------


def tokenizer(folder: Path | None = None, padding_side: str = "right") -> PreTrainedTokenizerBase:
    """The folder's, or one with a token a word: <pad> is 0, <eos> 1."""
    if folder:
        found = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
        found.pad_token = found.pad_token or found.unk_token
        return found
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", "?", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side=padding_side, **special)


def policy(folder: Path | None = None) -> PreTrainedModel:
    """The folder's language model in fp32, or a Llama of a million parameters, the same at every call."""
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return LlamaForCausalLM(_llama())


def end_sometimes(model: PreTrainedModel, scale: Scale) -> None:
    """Give the head of random weights a bias that makes EOS as likely at every token as answers of scale.answer_length need."""
    head, rate = model.get_output_embeddings(), 1 / scale.answer_length
    biased = nn.Linear(head.in_features, head.out_features, device=model.device)
    biased.weight = head.weight  # tied to the embeddings, as it was
    with torch.no_grad():
        biased.bias.zero_()
        biased.bias[model.config.eos_token_id] = scale.temperature * math.log(rate / (1 - rate) * (head.out_features - 1))
    model.set_output_embeddings(biased)


class EndsSometimes(nn.Module):
    """A head after which EOS is as likely at every token as answers of scale.answer_length need, whatever a trained model would say."""

    def __init__(self, head: nn.Module, eos: int, scale: Scale) -> None:
        super().__init__()
        rate = 1 / scale.answer_length
        self.head, self.eos, self.temperature, self.odds = head, eos, scale.temperature, math.log(rate / (1 - rate))

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.head(hidden)
        logits[..., self.eos] = -torch.inf
        others = (logits / self.temperature).logsumexp(-1)
        logits[..., self.eos] = self.temperature * (others + self.odds)
        return logits


def scorer(folder: Path | None = None) -> PreTrainedModel:
    """A sequence classifier of one label on the same body; its head is random, the same at every call."""
    torch.manual_seed(0)
    if folder:
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
    return LlamaForSequenceClassification(_llama(num_labels=1))


LAYOUTS = {
    "135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
}
"""Of SmolLM2-135M and Llama 3.2 1B."""


def write_random(layout: str, folder: Path) -> None:
    """A model of LAYOUTS with random weights, and the tokenizer of made-up words: where nothing can be downloaded, and as fast as any."""
    torch.manual_seed(0)
    LlamaForCausalLM(_llama(**LAYOUTS[layout], vocab_size=49152)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _llama(**more: int) -> LlamaConfig:
    tiny = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    always = {"max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "tie_word_embeddings": True}
    return LlamaConfig(**{"vocab_size": VOCABULARY} | tiny | always | more)


# What both sides are asked afterwards ------------------------------------------------------------------------------


@torch.inference_mode()
def held_out_loss(what: str, model: PreTrainedModel, scale: Scale, folder: Path | None) -> float:
    """The trained model's loss on 64 comparisons that nobody trained on: by plain forward passes, row by row.

    what: "sft" (nats a token of the chosen answer), "reward" or "dpo" (nats a pair).
    """
    model.eval()
    words = tokenizer(folder)
    rows = [encoded(words, row) for row in rankings(64, scale.prompt, scale.reply, seed=HELD_OUT_SEED)]
    if what == "sft":
        nats = torch.cat([-_logprobs(model, prompt, answers[0]) for prompt, answers in rows])
        return float(nats.mean())
    if what == "dpo":
        reference = policy(folder).eval().to(model.device)
        gains = [[(_logprobs(model, p, a) - _logprobs(reference, p, a)).sum() for a in answers] for p, answers in rows]
        return float(-F.logsigmoid(DPO_BETA * _margins(gains)).mean())
    scores = [[model(input_ids=torch.tensor([p + a], device=model.device)).logits.squeeze() for a in answers] for p, answers in rows]
    return float(-F.logsigmoid(_margins(scores)).mean())


def encoded(words: PreTrainedTokenizerBase, row: Ranking) -> tuple[list[int], list[list[int]]]:
    prompt = words(row.prompt, add_special_tokens=False)["input_ids"]
    return prompt, [[*words(answer, add_special_tokens=False)["input_ids"], words.eos_token_id] for answer in row.answers]


def _logprobs(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """log p of each of the answer's tokens, (tokens,)."""
    logits = model(input_ids=torch.tensor([prompt + answer], device=model.device)).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(answer, device=model.device).unsqueeze(-1)).squeeze(-1)


def _margins(values: list[list[Tensor]]) -> Tensor:
    return torch.stack([better - worse for better, worse in values])


def peak_mib() -> float:
    """Peak memory of this process: on the GPU, if it used one, else resident. Not ru_maxrss, which begins with its parent's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
