"""Chat requests to a registered policy: what of a request is honoured, and a real `mlflow models serve` that answers one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from tasks.data.encoding import decode, encode_prompt
from tasks.registry.ask import ask
from tasks.registry.champion import copy_model
from tasks.registry.chat import Chat
from tasks.registry.register import register
from tasks.training.sampling import Sampling, sample

QUESTION = "How warm is the red lamp?"
DEFAULTS = {"max_tokens": 12, "temperature": 0.0}


def said(chat, **request):
    return chat.predict(pd.DataFrame([{"messages": [{"role": "user", "content": QUESTION}]} | request]))


def text_of(completion):
    return completion["choices"][0]["message"]["content"]


def end_of(completion):
    return completion["choices"][0]["finish_reason"]


@pytest.fixture
def chat(llama, tokenizer):
    return Chat("policy 1", llama, tokenizer, DEFAULTS)


def test_at_temperature_0_it_says_what_training_samples(chat, llama, tokenizer):
    sampling = Sampling(max_new_tokens=12, temperature=0.0)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": QUESTION}])
    answer = sample(llama, [prompt], sampling, tokenizer.eos_token_id, sampling.noise(1, 0))[0]
    found = said(chat)
    assert text_of(found) == decode(tokenizer, answer.tokens)
    assert found["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 12, "total_tokens": len(prompt) + 12}
    assert (end_of(found), found["model"], found["object"]) == ("length", "policy 1", "chat.completion")


def test_eos_ends_an_answer(chat, llama, tokenizer):
    import torch

    with torch.no_grad():
        llama.lm_head.weight.zero_()
        llama.lm_head.register_forward_hook(lambda *args: args[2].index_fill_(-1, torch.tensor([tokenizer.eos_token_id]), 9.0))
    found = said(chat)
    assert (text_of(found), end_of(found), found["usage"]["completion_tokens"]) == ("", "stop", 1)


def test_max_tokens_and_stop_texts_cut_an_answer(chat):
    whole = text_of(said(chat))
    short = said(chat, max_tokens=3)
    assert short["usage"]["completion_tokens"] == 3
    assert whole.startswith(text_of(short))
    stopped = said(chat, stop=["never said", whole[5:7]])
    assert text_of(stopped) == whole[: whole.index(whole[5:7])].strip()
    assert end_of(stopped) == "stop"
    assert stopped["usage"]["completion_tokens"] < 12


def test_temperature_top_p_and_top_k_decide_what_is_drawn(chat):
    likeliest = text_of(said(chat))
    assert len({text_of(said(chat, temperature=1.5)) for _ in range(5)}) > 1
    assert text_of(said(chat, temperature=1.5, top_k=1)) == likeliest
    assert text_of(said(chat, temperature=1.5, top_p=1e-6)) == likeliest


def test_the_base_models_own_settings_have_no_say(llama, tokenizer):
    plain = text_of(said(Chat("policy 1", llama, tokenizer, DEFAULTS)))
    llama.generation_config.update(repetition_penalty=5.0, min_new_tokens=12, bad_words_ids=[[5]])
    assert text_of(said(Chat("policy 1", llama, tokenizer, DEFAULTS))) == plain


def test_an_answer_ends_where_the_model_can_read_no_more(chat):
    asked = [{"role": "user", "content": "x " * 57}]
    found = said(chat, messages=asked, max_tokens=500)
    assert found["usage"]["total_tokens"] == 128
    with pytest.raises(MlflowException, match="the model reads 128 in all"):
        said(chat, messages=[{"role": "user", "content": "x " * 200}])


def test_several_rows_are_several_answers(chat):
    row = {"messages": [{"role": "user", "content": QUESTION}]}
    found = chat.predict(pd.DataFrame([row, row | {"max_tokens": 2}]))
    assert [one["usage"]["completion_tokens"] for one in found] == [12, 2]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"messages": []}, "messages: give one or more"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages: give one or more"),
        ({"messages": [{"role": "user"}]}, "messages: give one or more"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"stop": [""]}, "stop: an empty text"),
        ({"n": 2}, "n can't be had here"),
        ({"stream": True}, "stream can't be had here"),
        ({"frequency_penalty": 0.5}, "frequency_penalty can't be had here"),
        ({"tools": [{"type": "function"}]}, "tools can't be had here"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(chat, request_, why):
    with pytest.raises(MlflowException, match=why) as caught:
        said(chat, **request_)
    assert caught.value.get_http_status_code() == 400


def test_a_template_that_refuses_is_told(chat, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('Roles must take turns') }}")
    with pytest.raises(MlflowException, match="chat template refuses them \\(Roles must take turns\\)"):
        said(chat)


def test_a_version_registered_for_text_generation_is_read_as_well(tracked, policy_folder, llama, tokenizer, tmp_path):
    import mlflow.transformers
    from transformers import pipeline

    llama.name_or_path = "a policy"
    old = tmp_path / "old"
    mlflow.transformers.save_model(
        pipeline("text-generation", model=llama, tokenizer=tokenizer), str(old), task="text-generation", pip_requirements=["torch"]
    )
    tracked.store.client.create_registered_model("prefline-policy")
    version = tracked.store.client.create_model_version("prefline-policy", source=old.as_uri())
    assert len(ask(tracked.store, "prefline-policy", QUESTION, max_new_tokens=4, version="1").text) > 0
    copy_model(tracked.store, version, tmp_path / "copy")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "copy").iterdir()}


# A real server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(project, tracked, line, run_stage):
    """The address of a server of the policy that was just registered."""
    results = line()
    run_stage(register, tracked, **{name: results[name] for name in register.inputs})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ["-m", "models:/prefline-policy@challenger", "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (project / "served.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *asked, "--workers", "1"],
            env={**os.environ, "MLFLOW_TRACKING_URI": tracked.store.uri, "PATH": path},
            cwd=project.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240  # most of it imports, and the machine may be busy
        while not answers(f"{address}/ping"):
            assert server.poll() is None, (project / "served.log").read_text()
            assert time.monotonic() < deadline, (project / "served.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def post(address, body):
    asked = urllib.request.Request(f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as reply:
        return json.load(reply)


def test_mlflow_models_serve_answers_a_chat_request_as_ask_does(served, tracked):
    request = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
    found = post(served, request)
    expected = ask(tracked.store, "prefline-policy", QUESTION, max_new_tokens=8, version="1")
    assert text_of(found) == expected.text
    assert found["model"].startswith("prefline-policy ")
    assert found["usage"]["completion_tokens"] == 8
    assert post(served, request | {"max_tokens": 2})["usage"]["completion_tokens"] == 2
    with pytest.raises(urllib.error.HTTPError, match="400"):
        post(served, request | {"stream": True})
