"""The configuration: what params.yaml may say, checked before anything runs.

One model a section, those of training in tasks/training_config.py; unknown keys are refused. The same model is the
Prefect flow's parameter. Secrets have no place here: they come from the environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.training_config import AdapterConfig, ComputeConfig, Count, Part, PolicyConfig, Positive, RewardConfig, Section, SFTConfig, Share

Sources = Annotated[list[str], Field(min_length=1)]
Phrase = Annotated[str, Field(pattern=r"\w")]
JudgeKind = Literal["reward_model", "language_model", "people"]
"""Who may decide an evaluation."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
FormatName = Literal[
    "auto",
    "prefline",
    "hh-rlhf",
    "ultrafeedback",
    "label-studio",
    "argilla",
    "summarize",
    "helpsteer2",
    "helpsteer2-preference",
    "helpsteer3",
    "vertex",
    "pandalm",
    "fine-grained",
    "llmbar",
    "oasst",
    "self-instruct",
    "mt-bench",
    "sharegpt",
    "alpaca",
    "messages",
    "completion",
    "trl",
]
"""The formats of tasks.data.formats, in the order in which "auto" asks them."""


class BuiltInConfig(Section):
    """The built-in shop set: how much of it, and the seed of its facts, writers and annotators.

    second_opinions: share of the rankings that a second annotator makes too.
    """

    seed: Seed = 0
    demonstrations_per_question: Count = 16
    rankings_per_question: Count = 16
    second_opinions: Share = 0.1


class SplitConfig(Section):
    """Shares of the groups (prompts). What is left over trains SFT and the reward model."""

    judge: Part = 0.3
    validation: Part = 0.12
    test: Part = 0.18

    @model_validator(mode="after")
    def _something_left(self) -> SplitConfig:
        if self.judge + self.validation + self.test >= 0.95:
            raise ValueError("judge + validation + test must leave at least 0.05 for training")
        return self


class DataConfig(Section):
    """Where comparisons and demonstrations come from. comparisons: "builtin", or files, folders and "hub:OWNER/NAME".

    fields: what a labelling configuration calls a field, by what we call it. rating: weights of the attributes that
    make a rated answer's score. near_duplicates: how alike two prompts are that stay in one split; 0 for equal ones only.
    """

    comparisons: Sources = ["builtin"]
    demonstrations: Sources = ["builtin"]
    format: FormatName = "auto"
    fields: dict[str, str] = {}
    rating: dict[str, float] = {"helpfulness": 1.0}
    near_duplicates: Share = 0.8
    builtin: BuiltInConfig = BuiltInConfig()
    split: SplitConfig = SplitConfig()

    @model_validator(mode="after")
    def _alike_enough(self) -> DataConfig:
        if 0 < self.near_duplicates < 0.5:
            raise ValueError("near_duplicates must be 0, or at least 0.5: below, texts of one pattern all count as one")
        return self


class Limit(Section):
    """How many rows may break a rule before the data are refused, or before a warning."""

    max: Annotated[int, Field(ge=0)] = 0


class ContractConfig(Section):
    """Thresholds of the data contract. Shares are of all rows.

    position: how often the answer shown first may be chosen, from and to. min_agreement: Krippendorff's alpha, asked for
    where several people judged at least min_shared pairs. at_chance: comparisons by people whose choices are no better
    than drawn lots. evaluation_sets: files whose prompts must not be trained on.
    """

    min_comparisons: Count = 100
    min_demonstrations: Count = 20
    rejected_share: Share = 0.01
    identical_pairs: Limit = Limit()
    over_length: Limit = Limit()
    control_characters: Limit = Limit()
    garbled: Share = 0.01
    turns: Share = 0.01
    special_tokens: Limit = Limit()
    duplicates: Share = 0.2
    near_duplicates: Share = 0.3
    near_other_group: Share = 0.05
    evaluation_sets: list[str] = []
    contaminated: Limit = Limit()
    ties: Share = 0.5
    annotator_share: Share = 1.0
    contradictions: Share = 0.05
    at_chance: Share = 0.5
    min_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.1
    min_shared: Count = 50
    longer_chosen: tuple[Share, Share] = (0.2, 0.8)
    position: tuple[Share, Share] = (0.4, 0.6)
    ai_labels: Share = 0.0
    personal_data: Limit = Limit()

    @model_validator(mode="after")
    def _bounds_in_order(self) -> ContractConfig:
        for name in ("longer_chosen", "position"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"{name} must be a lower and an upper share, not {[low, high]}")
        return self


class TinyConfig(Section):
    """The shape of "tiny-llama", the model from random weights."""

    layers: Count = 2
    width: Count = 128
    feed_forward: Count = 384
    heads: Count = 2
    vocabulary: Annotated[int, Field(ge=300)] = 640
    context: Count = 256

    @model_validator(mode="after")
    def _heads_divide(self) -> TinyConfig:
        if self.width % (2 * self.heads):
            raise ValueError("width must be a multiple of 2 * heads")
        return self


class BudgetConfig(Section):
    """What one evaluation may ask of a language model, replies that are known already not counted; None for no limit."""

    calls: Count | None = 5000
    tokens: Count | None = None


class LanguageModelConfig(Section):
    """A language model that judges. url: of a server that speaks OpenAI's chat completions, and model: its name there.

    Without a url model is a Hugging Face name, a folder or a .gguf file, and read here. Without a model none is asked.
    human_pairs: of people's held-out comparisons that it is measured on, at most. at_once: requests under way.
    The server's key is the environment's PREFLINE_JUDGE_KEY.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    model: Annotated[str, Field(min_length=1)] | None = None
    template: str = "mlflow/judge.txt"
    reply_tokens: Count = 512
    human_pairs: Count = 200
    requests_a_minute: Positive = 300.0
    at_once: Count = 8
    timeout_seconds: Positive = 60.0
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _a_model_there(self) -> LanguageModelConfig:
        if self.url and not self.model:
            raise ValueError("url names a server, but model does not say which of its models to ask")
        return self


class EvaluationConfig(Section):
    """prompts: at most so many held-out prompts. resamples: of the bootstrap. refusals: phrases by which an answer refuses.

    effect: a true win rate that four evaluations in five should find to be above one half.

    judge: whose verdicts decide; the others' are shown beside them. people: files or folders with comparisons that people made
    of the answers of this evaluation.
    best_of_n: the largest n of best-of-n beside the policy's rounds; 0 for none.
    reward_bench: files, folders and "hub:OWNER/NAME" sets of comparisons by category, to measure the scorers on.
    probes: files or folders of probes (docs/evaluation.md).
    against: registered versions or aliases to compare the policy with, besides the champion and the SFT model.
    """

    prompts: Count = 300
    temperature: Annotated[float, Field(ge=0)] = 1.0
    resamples: Count = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    effect: Annotated[float, Field(gt=0.5, le=1)] = 0.6
    refusals: Annotated[list[Phrase], Field(min_length=1)] = [
        "I can not help",
        "I can not assist",
        "I can not do that",
        "I can not provide",
        "I can not comply",
        "I will not help",
        "I will not do that",
        "I am unable to",
        "I am not able to",
        "I have to decline",
        "I must decline",
        "I refuse",
    ]
    best_of_n: Annotated[int, Field(ge=0, le=1024)] = 16
    reward_bench: list[str] = []
    judge: JudgeKind = "reward_model"
    language_model: LanguageModelConfig = LanguageModelConfig()
    people: list[str] = []
    against: list[Annotated[str, Field(coerce_numbers_to_str=True)]] = []
    probes: list[str] = ["data/probes/shop", "data/probes/general"]

    @model_validator(mode="after")
    def _somebody_judges(self) -> EvaluationConfig:
        if self.judge == "language_model" and not self.language_model.model:
            raise ValueError("judge: language_model needs language_model.model")
        if self.judge == "people" and not self.people:
            raise ValueError("judge: people needs files with their comparisons in people, as in [data/batches]")
        return self

    @property
    def files(self) -> list[str]:
        """Files and folders whose content decides what is found. A name that is no file has none."""
        asked = self.language_model
        of_model = [asked.template, *([] if asked.url else [asked.model])] if asked.model else []
        return [*self.reward_bench, *self.probes, *self.people, *of_model]


class NamesConfig(Section):
    """Names in MLflow: the experiment and the registered models."""

    experiment: str = "prefline"
    policy: str = "prefline-policy"
    reward_model: str = "prefline-reward-model"
    sft: str = "prefline-sft"


class LicencesConfig(Section):
    """Licences of what was not made here, for the model card. "": what the base model's own files say; nothing of the data."""

    model: str = ""
    data: str = ""


class PipelineConfig(Section):
    """Everything a run may be told. seed: of training and sampling; the data have their own."""

    seed: Seed = 0
    model: str = "tiny-llama"
    tiny: TinyConfig = TinyConfig()
    max_tokens: Count = 128
    max_new_tokens: Count = 48
    threads: Annotated[int, Field(ge=0)] = 0
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    compute: ComputeConfig = ComputeConfig()
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    contract: ContractConfig = ContractConfig()
    sft: SFTConfig = SFTConfig()
    reward_model: RewardConfig = RewardConfig()
    judge: RewardConfig = RewardConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: Path = Path("mlflow/promotion.yaml")
    names: NamesConfig = NamesConfig()
    licences: LicencesConfig = LicencesConfig()

    @model_validator(mode="after")
    def _answers_fit(self) -> PipelineConfig:
        if self.max_new_tokens >= self.max_tokens:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) must be below max_tokens ({self.max_tokens}), which counts the prompt too"
            )
        if self.compute.sharding == "fsdp" and self.adapter.base == "4bit":
            raise ValueError("compute.sharding: fsdp spreads whole weights, not those of adapter.base: 4bit: choose one of the two")
        if self.compute.sharding == "fsdp" and self.policy.method in ("ppo", "rloo", "grpo"):
            raise ValueError(f"compute.sharding: fsdp can't sample, and policy.method {self.policy.method} does: use dpo, or no sharding")
        if self.model == "tiny-llama" and self.max_tokens > self.tiny.context:
            raise ValueError(f"max_tokens ({self.max_tokens}) is more than tiny.context ({self.tiny.context})")
        return self
