"""The pipeline as a Prefect flow: from human comparisons to a promoted model.

No `from __future__ import annotations` here: a worker loads this file by its path, where Prefect can't resolve
annotations that are texts.
"""

import prefect.runtime
from prefect import flow

from flows.approval import ask_person
from flows.clock import own_time
from flows.prefect_side import as_task, show_run
from flows.record import new_run_id
from flows.run import FlowRun, Outcome, run_line
from flows.settings import load_config, project_root
from tasks.config import PipelineConfig
from tasks.data.snapshot import snapshot
from tasks.data.validate import validate
from tasks.evaluation.evaluate import evaluate
from tasks.evaluation.plan import plan
from tasks.registry.baseline import baseline
from tasks.registry.promote import promote
from tasks.registry.register import register
from tasks.training.policy import optimise_policy
from tasks.training.scorers import train_judge, train_reward_model
from tasks.training.stages import base_model, train_sft

LINE = (
    snapshot,  # the data, as DVC knows them
    base_model,  # what is trained, and its tokenizer
    validate,  # bad data stop here, before anything is trained on them
    plan,  # how many held-out prompts the evaluation has, and needs
    train_sft,  # the form of an answer, from demonstrations
    train_reward_model,  # what people prefer, from comparisons
    train_judge,  # the same from other comparisons: to judge what the reward model was used for
    optimise_policy,  # for what people prefer, kept near SFT: PPO, or another method
    baseline,  # whom to beat: the champion, or SFT
    evaluate,  # on held-out prompts, by the judge
    register,  # in MLflow, with where everything came from
    promote,  # if every gate holds
)
"""Each stage's inputs are named by its function's parameters."""


@flow(name="rlhf", flow_run_name=new_run_id, persist_result=True, result_serializer="json", retries=0)
def rlhf(config: PipelineConfig | None = None, again_from: str = "") -> Outcome:
    """Snapshot, validate, plan, SFT, reward model, policy, evaluate, register, promote; where the policy asks for it, a person's word.

    config: what params.yaml says, by default. again_from: run this stage and all later ones even where nothing changed.
    """
    with own_time():
        root = project_root()
        this = FlowRun(prefect.runtime.flow_run.id, prefect.runtime.flow_run.ui_url or "")
        return run_line(
            LINE,
            root,
            config or load_config(root),
            run=prefect.runtime.flow_run.name,
            again_from=again_from,
            perform=as_task,
            flow_run=this,
            show=show_run,
            ask=ask_person,
        )
