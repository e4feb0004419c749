"""Answers over HTTP from a server of this file, which serves a small model through our own decoder as vLLM and SGLang do."""

import copy
import json
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import peft
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from tasks.errors import ConfigError, PreflineError
from tasks.training import sampling_server
from tasks.training.adapters import with_adapters
from tasks.training.logprobs import tree_logprobs
from tasks.training.online import optimise
from tasks.training.processes import Processes
from tasks.training.rollouts import Models, ask
from tasks.training.sampling import Sampling, sample
from tasks.training.sampling_server import KEY, Server, sampler_for, save_adapters
from tasks.training_config import AdapterConfig, ComputeConfig, PolicyConfig, ServerConfig

EOS = 1
PROMPTS = [[3, 4, 5, 6, 7], [8], [3, 2, 4], [8], [2, 2], [5]]
SAMPLING = Sampling(12, 0.9)


class Serving(BaseHTTPRequestHandler):
    """server.model is served; server.base takes adapters. server.says: replies, (status, body), that come before any other."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers))
        time.sleep(self.server.delay)
        with self.server.lock:
            scripted = self.server.says.pop(0) if self.server.says else None
            status, reply = scripted or (200, {"/v1/completions": self.complete}.get(self.path, self.reload)(body))
        text = reply if isinstance(reply, str) else json.dumps(reply)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", reply)
        self.end_headers()
        self.wfile.write(text.encode())

    def complete(self, body):
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"])
        (eos,) = body["stop_token_ids"]
        model = self.server.adapted.get(body["model"], self.server.model)
        (answer,) = sample(model, [body["prompt"]], sampling, eos, sampling.noise(1, body["seed"]))
        tokens = answer.tokens[:-1] if answer.stopped and self.server.trims else answer.tokens
        return {"choices": [{"index": 0, "text": "", "token_ids": tokens, "finish_reason": "stop" if answer.stopped else "length"}]}

    def reload(self, body):
        if self.path == "/v1/load_lora_adapter":
            adapted = peft.PeftModel.from_pretrained(copy.deepcopy(self.server.base), body["lora_path"])
            self.server.adapted[body["lora_name"]] = adapted.merge_and_unload()
            return "Success: LoRA adapter added."
        if self.path == "/v1/unload_lora_adapter":
            del self.server.adapted[body["lora_name"]]
            return "Success: LoRA adapter removed."
        self.server.model = AutoModelForCausalLM.from_pretrained(body["model_path"])
        return {"success": True, "message": "Succeeded to update model weights."}

    def log_message(self, *_): ...


@pytest.fixture
def server(make_llama, monkeypatch):
    monkeypatch.setattr(sampling_server, "WAITS", (0.0, 0.01))
    monkeypatch.delenv(KEY, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as serving:
        serving.model = serving.base = make_llama(12, seed=7)
        serving.adapted, serving.seen, serving.says, serving.lock = {}, [], [], threading.Lock()
        serving.delay, serving.trims = 0.0, False
        serving.url = f"http://127.0.0.1:{serving.server_port}"
        threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield serving
        serving.shutdown()


@pytest.fixture
def asking(server, tmp_path):
    """asking(reload="path", ...) -> a Server that asks the test's."""

    def make(**config):
        return Server(ServerConfig(**{"url": server.url, "reload": "path"} | config), tmp_path / "served", Processes(ComputeConfig()))

    return make


@pytest.fixture
def policy(make_llama):
    return make_llama(12, seed=58, spread=0.8)


def noise(seed=0):
    return SAMPLING.noise(len(PROMPTS), seed)


def expected(model, seed=0):
    """What a server must answer that has the model and takes each row's seed for its own."""
    rows = [SAMPLING.noise(1, zlib.crc32(row.numpy().tobytes()) >> 1) for row in noise(seed)]
    return sample(model, PROMPTS, SAMPLING, EOS, torch.cat(rows))


def same(found, wanted):
    assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
    assert [answer.stopped for answer in found] == [answer.stopped for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


# Answers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trims", [False, True], ids=["with the EOS", "without"])
def test_answers_are_the_policys_whatever_the_server_served_before(server, asking, policy, trims):
    server.trims = trims
    found = asking()(policy, PROMPTS, SAMPLING, EOS, noise())
    same(found, expected(policy))
    assert {answer.stopped for answer in found} == {True, False}


def test_each_row_has_a_seed_of_its_own_and_nothing_is_left_to_the_servers_defaults(server, asking, policy):
    sampler = asking(model="our-model")
    for seed in (0, 0, 1):
        sampler(policy, PROMPTS, Sampling(12, 0.9, 0.8), EOS, noise(seed))
    bodies = [body for path, body, _ in server.seen if path == "/v1/completions"]
    first, again, other = ({body["seed"] for body in bodies[i * 6 : (i + 1) * 6]} for i in range(3))
    assert len(first) == 6
    assert first == again
    assert not first & other
    assert all(0 <= seed < 2**31 for seed in first | other)
    common = {"model": "our-model", "n": 1, "max_tokens": 12, "temperature": 0.9, "top_p": 0.8, "stop_token_ids": [EOS]}
    switched_off = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    assert all(body.items() >= (common | switched_off).items() for body in bodies)
    assert sorted(body["prompt"] for body in bodies[:6]) == sorted(PROMPTS)


def test_logprobs_are_of_the_policy_that_is_trained_so_that_ratios_begin_at_1(asking, policy, models):
    config = PolicyConfig(temperature=0.9)
    kept = Models(policy, models.reference, models.reward_model, models.critic, asking())
    episodes = ask(kept, PROMPTS, config, SAMPLING, EOS, noise())
    fresh, _ = tree_logprobs(policy, [episode.tree for episode in episodes], 0.9)
    for row, episode in zip(fresh.tolist(), episodes, strict=True):
        assert episode.logprobs == pytest.approx(row[: len(episode.logprobs)], abs=1e-5)


# Weights -----------------------------------------------------------------------------------------------------------------


def test_every_round_gets_the_weights_of_its_policy_and_old_ones_are_deleted(server, asking, policy, tmp_path):
    sampler = asking()
    same(sampler(policy, PROMPTS, SAMPLING, EOS, noise()), expected(policy))
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(0.5)
    same(sampler(policy, PROMPTS, SAMPLING, EOS, noise()), expected(policy))
    folders = [body["model_path"] for path, body, _ in server.seen if path == "/update_weights_from_disk"]
    assert len(folders) == 2
    assert [str(path) for path in (tmp_path / "served").iterdir()] == folders[1:]


@pytest.fixture
def adapted(make_llama):
    """A base model, and the same with adapters that have learnt something."""
    base = make_llama(12, seed=58, spread=0.8)
    policy = with_adapters(copy.deepcopy(base), AdapterConfig(rank=2), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return base, policy


def test_adapters_are_loaded_beside_the_base_and_the_last_ones_unloaded(server, asking, adapted, tmp_path):
    server.base, policy = adapted
    sampler = asking(reload="lora")
    for seed in (0, 1):
        found = sampler(policy, PROMPTS, SAMPLING, EOS, noise(seed))
        same(found, expected(policy, seed))
    assert [answer.tokens for answer in found] != [answer.tokens for answer in expected(server.base, 1)]
    loaded = [body["lora_name"] for path, body, _ in server.seen if path == "/v1/load_lora_adapter"]
    assert len(set(loaded)) == 2
    assert list(server.adapted) == loaded[1:]
    assert [path.name for path in (tmp_path / "served").iterdir()] == loaded[1:]


def test_saved_adapters_are_read_by_peft(adapted, tmp_path):
    base, policy = adapted
    save_adapters(policy, tmp_path / "adapters")
    tokens = torch.tensor([PROMPTS[0]])
    wanted, without = policy(input_ids=tokens).logits, base(input_ids=tokens).logits
    read = peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
    torch.testing.assert_close(read(input_ids=tokens).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - without).abs().max() > 0.1


def test_whole_weights_of_a_policy_with_adapters_are_merged_and_it_keeps_them(asking, adapted):
    _, policy = adapted
    same(asking()(policy, PROMPTS, SAMPLING, EOS, noise()), expected(policy))
    assert any("lora_B" in name for name, _ in policy.named_parameters())


def test_adapters_without_adapters_are_refused(asking, policy):
    with pytest.raises(ConfigError, match="no adapters"):
        asking(reload="lora")(policy, PROMPTS, SAMPLING, EOS, noise())


def test_weights_that_the_server_could_not_load_end_the_round(server, asking, policy):
    server.says = [(200, {"success": False, "message": "no such folder"})]
    with pytest.raises(PreflineError, match="no such folder"):
        asking()(policy, PROMPTS, SAMPLING, EOS, noise())


def test_rounds_of_rloo_with_a_server(server, make_shop):
    settings = {"rounds": 2, "answers": 8, "minibatch": 8, "epochs": 1, "choose": "last"}
    found = optimise(make_shop(method="rloo", server={"url": server.url, "reload": "path"}, **settings))
    assert found.rounds == 2
    paths = [path for path, _, _ in server.seen]
    assert paths.count("/update_weights_from_disk") == 2
    assert paths.count("/v1/completions") == 16


# What goes wrong -----------------------------------------------------------------------------------------------------------


def served(server, asking, policy, *says, **config):
    """What the server's answers lead to, when these replies come after it has loaded the weights."""
    server.says = [(200, {"success": True}), *says]
    return asking(**config)(policy, PROMPTS, SAMPLING, EOS, noise())


def test_failures_that_may_pass_are_tried_again(server, asking, policy):
    busy = [(503, "starting"), (500, "out of memory"), (429, "slow down"), (502, "")]
    server.model = policy
    same(served(server, asking, policy, *busy), expected(policy))
    assert len(server.seen) == 1 + len(PROMPTS) + len(busy)


def test_a_server_that_keeps_failing_is_named_with_what_it_says(server, asking, policy):
    with pytest.raises(
        PreflineError, match=r"policy.server, http://127.0.0.1:\d+: /v1/completions failed with status 500: no memory"
    ) as caught:
        served(server, asking, policy, *[(500, "no memory")] * 100)
    assert "Asked 3 times" in caught.value.advice


def test_a_server_that_is_down(server, asking, policy):
    with pytest.raises(PreflineError, match=r"can't be reached: .*refused"):
        asking(url="http://127.0.0.1:9")(policy, PROMPTS, SAMPLING, EOS, noise())


def test_a_server_that_does_not_answer_in_time(server, asking, policy):
    server.delay = 0.5
    with pytest.raises(PreflineError, match=r"can't be reached: timed out") as caught:
        asking(timeout_seconds=0.05)(policy, PROMPTS, SAMPLING, EOS, noise())
    assert "timeout_seconds" in caught.value.advice


def reply(tokens, why="length"):
    return 200, {"choices": [{"token_ids": tokens, "finish_reason": why}]}


def test_an_answer_ends_at_its_eos_whatever_follows(server, asking, policy):
    server.model = policy
    with_more = reply([EOS, 3, 4], "length")
    assert [EOS] in [answer.tokens for answer in served(server, asking, policy, with_more)]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ((200, "<html>welcome</html>"), "something else than JSON: '<html>"),
        ((200, []), "no token ids"),
        ((200, {"choices": []}), "no token ids"),
        ((200, {"choices": [{"text": " Hello", "finish_reason": "stop"}]}), "no token ids"),
        (reply(None), "no token ids"),
        (reply(["3"]), "no token ids"),
        (reply([True]), "no token ids"),
        (reply([3, 12]), "token 12, and the policy has 12"),
        (reply([-1]), "token -1"),
        (reply([]), "0 tokens ended with 'length'"),
        (reply([2] * 13), "13 tokens ended with 'length'; at most 12"),
        (reply([2, 3], "abort"), "2 tokens ended with 'abort'"),
        (reply([2, 3], None), "2 tokens ended with None"),
        ((404, "no such model"), "refused with status 404: no such model"),
        ((400, "context too short"), "refused with status 400: context too short"),
    ],
)
def test_answers_that_are_none(server, asking, policy, said, problem):
    server.model = policy
    with pytest.raises(PreflineError) as caught:
        served(server, asking, policy, said)
    assert problem in caught.value.what
    assert server.url in caught.value.what
    assert caught.value.advice


def test_a_server_of_another_model_is_refused(server, asking, policy):
    """It says that it has loaded the weights, and has not."""
    with pytest.raises(PreflineError, match=r"finds its answers unlikely: \d\.\d nats a token, and drawn by lot they would have 2\.5"):
        served(server, asking, policy)


def test_the_key_is_sent_and_never_told(server, asking, policy, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret-word")
    server.model = policy
    served(server, asking, policy)
    assert {headers["Authorization"] for _, _, headers in server.seen} == {"Bearer s3cret-word"}
    with pytest.raises(PreflineError, match="refused with status 401") as caught:
        served(server, asking, policy, *[(401, "who are you?")] * 10)
    assert KEY in caught.value.advice
    assert "s3cret" not in str(caught.value)


def test_without_a_key_none_is_sent(server, asking, policy):
    server.model = policy
    served(server, asking, policy)
    assert {headers["Authorization"] for _, _, headers in server.seen} == {None}


def test_redirections_are_not_followed(server, asking, policy):
    with pytest.raises(PreflineError, match="status 302"):
        served(server, asking, policy, *[(302, f"{server.url}/v1/completions")] * 10)


# Configuration -------------------------------------------------------------------------------------------------------------


def test_without_a_url_our_own_decoder_samples(tmp_path):
    assert sampler_for(ServerConfig(), tmp_path, Processes(ComputeConfig())) is sample
    assert isinstance(sampler_for(ServerConfig(url="http://gpu:8000"), tmp_path, Processes(ComputeConfig())), Server)


@pytest.mark.parametrize("url", ["gpu:8000", "ftp://gpu", "http://user:word@gpu:8000", "", "file:///etc/passwd"])
def test_urls_that_are_none_or_hold_a_password_are_refused(url):
    with pytest.raises(ValidationError):
        ServerConfig(url=url)
