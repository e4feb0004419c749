"""The sections of the configuration that training reads: machine, supervised training, reward models, the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeastZero = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]

Method = Literal["ppo", "rloo", "grpo", "dpo", "rejection"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComputeConfig(Section):
    """What trains. processes: side by side, each with its share of every batch. sharding: fsdp spreads the weights over them.

    precision: bf16 computes in it and keeps weights in fp32. gradient_checkpointing: less memory for a third more time.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Count = 1
    sharding: Literal["none", "fsdp"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _something_to_shard_over(self) -> ComputeConfig:
        if self.sharding == "fsdp" and self.processes == 1:
            raise ValueError("sharding: fsdp needs processes of at least 2 to spread the weights over")
        return self


class AdapterConfig(Section):
    """Low-rank adapters (Hu et al. 2021) in SFT, reward models and policy. rank: 0 trains all weights.

    layers: names of the linear layers that get one, or "all-linear". base: 4bit keeps the frozen weights in four bits.
    """

    rank: Annotated[int, Field(ge=0)] = 0
    alpha: Positive = 16.0
    layers: str | list[str] = "all-linear"
    base: Literal["fp32", "4bit"] = "fp32"

    @model_validator(mode="after")
    def _frozen_weights_need_adapters(self) -> AdapterConfig:
        if self.base == "4bit" and self.rank == 0:
            raise ValueError("base: 4bit freezes the weights: give the adapters a rank of at least 1")
        return self


class FitConfig(Section):
    """One pass of supervised training. batch: rows a step. tokens_at_once: what fits in memory; no effect on the result.

    looks: how often the validation split is looked at on the way. patience: looks without a better one before it stops.
    """

    epochs: Positive = 1.0
    batch: Count = 64
    tokens_at_once: Count = 8192
    learning_rate: Positive = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05
    weight_decay: AtLeastZero = 0.0
    clip_gradient: Positive = 1.0
    checkpoint_seconds: AtLeastZero = 60.0
    looks: Annotated[int, Field(ge=0)] = 0
    patience: Count | None = None

    @model_validator(mode="after")
    def _looks_to_be_patient_over(self) -> FitConfig:
        if self.patience is not None and self.looks <= self.patience:
            raise ValueError(f"patience ({self.patience}) needs more looks than that (looks is {self.looks})")
        return self


def _choice_needs_looks(choose: str, looks: int) -> None:
    if choose != "last" and looks == 0:
        raise ValueError(f"choose: {choose} needs looks of at least 1: nothing is measured on the way")


class SFTConfig(FitConfig):
    """trained: the answer only, or every turn of the assistant. packing: a step's short rows share rows of max_tokens."""

    max_demonstrations: Count | None = None
    trained: Literal["answer", "assistant"] = "answer"
    packing: bool = False
    choose: Literal["last", "perplexity"] = "last"

    @model_validator(mode="after")
    def _measured(self) -> SFTConfig:
        _choice_needs_looks(self.choose, self.looks)
        if self.patience is not None and self.choose == "last":
            raise ValueError("patience waits for a better look: say what is better, as in choose: perplexity")
        return self


class RewardConfig(FitConfig):
    """max_comparisons: use only so many, to see what too few do. weights: how much each comparison counts.

    margin: reward by which the chosen answer must win, for each unit of a comparison's strength. label_smoothing: share
    of labels taken to be wrong. ties: left out, or with Rao and Kupper's likelihood. members: of an ensemble, which
    scores as combine says, with variance_weight taken off for each unit of variance. min_accuracy: what the lower bound of the accuracy
    on held-out comparisons must exceed, or nothing is trained against the model; 0 asks for nothing.
    """

    max_comparisons: Count | None = None
    weights: Literal["none", "annotator"] = "none"
    centring: AtLeastZero = 0.0
    margin: AtLeastZero = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    ties: Literal["leave_out", "rao_kupper"] = "leave_out"
    members: Count = 1
    combine: Literal["mean", "min", "mean_minus_variance"] = "mean"
    variance_weight: AtLeastZero = 1.0
    min_accuracy: Annotated[float, Field(ge=0, lt=1)] = 0.5
    choose: Literal["last", "accuracy", "loss"] = "last"

    @model_validator(mode="after")
    def _measured(self) -> RewardConfig:
        _choice_needs_looks(self.choose, self.looks)
        if self.patience is not None and self.choose == "last":
            raise ValueError("patience waits for a better look: say what is better, choose: accuracy or loss")
        return self


class KLConfig(Section):
    """weight: of the KL penalty, 0 for none. target: nats a sequence that the weight is steered to, or null for a fixed weight.

    place: taken off the reward of each token, or a loss of its own. estimator: k1, k2 or k3 of Schulman 2020.
    """

    weight: AtLeastZero = 0.1
    target: Positive | None = None
    horizon: Count = 10_000
    place: Literal["reward", "loss"] = "reward"
    estimator: Literal["k1", "k2", "k3"] = "k1"

    @model_validator(mode="after")
    def _steerable(self) -> KLConfig:
        if self.target is not None and self.weight == 0:
            raise ValueError("target needs a weight above 0 to start from: steering multiplies it")
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError("estimator: k1 as a loss has a gradient of mean 0: choose k2 or k3")
        return self


class PPOConfig(Section):
    """What PPO alone needs: a critic, and advantages by token. Names and defaults after Stiennon et al. 2020, Huang et al. 2024.

    critic: a model of its own that starts from the reward model, or a head on the policy ("shared").
    """

    critic: Literal["separate", "shared"] = "separate"
    critic_learning_rate: Positive = 3e-4
    value_clip: Positive = 0.2
    value_weight: Positive = 0.1
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: bool = False


class GRPOConfig(Section):
    """scale: divide a group's advantages by the standard deviation of its rewards (Shao et al. 2024), or not (Liu et al. 2025)."""

    scale: bool = True


class DPOConfig(FitConfig):
    """Direct preference optimisation. beta: how firmly the policy is held to its reference. loss: sigmoid or ipo.

    label_smoothing: share of labels taken to be wrong (conservative DPO). length_normalised: log-ratios are means over
    an answer's tokens. ties and strength are not used. max_comparisons: use only so many.
    """

    beta: Positive = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    length_normalised: bool = False
    max_comparisons: Count | None = None
    epochs: Positive = 2.0
    batch: Count = 32
    learning_rate: Positive = 1e-4
    looks: Annotated[int, Field(ge=1)] = 6

    @model_validator(mode="after")
    def _smoothing_of_labels(self) -> DPOConfig:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is of the sigmoid loss: leave it at 0 with loss: ipo, which wrong labels pull only so far")
        return self


class RejectionConfig(FitConfig):
    """Fine-tuning on the best of n answers by the reward model. answers: n."""

    answers: Annotated[int, Field(ge=2)] = 8
    epochs: Positive = 2.0
    batch: Count = 32
    learning_rate: Positive = 5e-4
    looks: Annotated[int, Field(ge=1)] = 4


class ServerConfig(Section):
    """A server that samples in the rounds of ppo, rloo and grpo: vLLM, SGLang or another that returns token ids.

    url: null samples here. model: its name there, of no account with lora. reload: how the policy's weights get there each
    round, as adapters (vLLM) or as the path of whole weights (SGLang); the server must see the run's folder.
    Its key is the environment's PREFLINE_SERVER_KEY.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = None
    model: str = "default"
    reload: Literal["lora", "path"] = "lora"
    timeout_seconds: Positive = 300.0


class PolicyConfig(Section):
    """How the policy is optimised. method: the one key between PPO, RLOO, GRPO, DPO and rejection sampling.

    rounds to pretraining_weight are of the methods that learn from their own answers (ppo, rloo, grpo). group: answers to
    one prompt, which RLOO and GRPO compare; PPO samples one. frozen_layers: lower layers that stay as they are, and that
    the reference shares. pretraining_weight: of the demonstrations' loss that is mixed in (PPO-ptx). choose: which
    round or look is kept. stop_kl, stop_judge: nats, and looks without a better judge, after which training ends.
    """

    method: Method = "ppo"
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    rounds: Count = 24
    answers: Count = 128
    group: Annotated[int, Field(ge=2)] = 4
    minibatch: Count = 64
    epochs: Count = 4
    learning_rate: Positive = 1e-4
    clip: Positive = 0.2
    kl: KLConfig = KLConfig()
    score_clip: Positive | None = None
    no_stop_penalty: AtLeastZero = 1.0
    clip_gradient: Positive = 1.0
    tokens_at_once: Count = 8192
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    pretraining_weight: AtLeastZero = 0.0
    checkpoint_seconds: AtLeastZero = 60.0
    judge_every: Count = 3
    choose: Literal["judge", "last"] = "judge"
    stop_kl: Positive | None = None
    stop_judge: Count | None = None
    ppo: PPOConfig = PPOConfig()
    grpo: GRPOConfig = GRPOConfig()
    dpo: DPOConfig = DPOConfig()
    rejection: RejectionConfig = RejectionConfig()
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _answers_divide(self) -> PolicyConfig:
        if self.answers % self.minibatch:
            raise ValueError(f"answers ({self.answers}) must be a multiple of minibatch ({self.minibatch})")
        if self.answers < 8:
            raise ValueError(f"answers ({self.answers}) must be at least 8: advantages are whitened over them")
        if self.method in ("rloo", "grpo") and self.answers % self.group:
            raise ValueError(f"answers ({self.answers}) must be a multiple of group ({self.group})")
        return self

    @model_validator(mode="after")
    def _patient_over_the_judge(self) -> PolicyConfig:
        for name in ("dpo", "rejection"):
            if self.choose == "last" and getattr(self, name).patience is not None:
                raise ValueError(f"{name}.patience waits for a better look: it needs choose: judge")
        return self
