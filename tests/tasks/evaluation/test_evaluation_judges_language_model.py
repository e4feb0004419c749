"""A language model as judge, on a real server of this file: orders, replies that are kept, failures, budgets, and the key."""

import multiprocessing
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tasks.config import BudgetConfig, LanguageModelConfig
from tasks.data.records import user
from tasks.errors import EnvironmentRefused, PreflineError
from tasks.evaluation.judges.language_model import ByLanguageModel
from tasks.evaluation.judges.pairs import Pair, Side
from tasks.evaluation.judges.replies import Replies, key_of
from tasks.evaluation.judges.speakers import KEY, language_model
from tasks.evaluation.judges.template import Template

TEMPLATE = Template("{prompt}|{first}|{second}")
SECRET = "sk-very-secret"


@pytest.fixture
def server(chat_server):
    return chat_server


@pytest.fixture
def judge(server, tmp_path):
    """judge(...) -> one that asks the server and keeps replies in tmp_path."""

    def make(budget=None, template=TEMPLATE, progress=lambda done, total: None, **config):
        settings = LanguageModelConfig(
            **{"url": server.url, "model": "wise", "requests_a_minute": 1e6, "budget": budget or BudgetConfig()} | config
        )
        return ByLanguageModel(settings, language_model(settings, tmp_path), template, Replies(tmp_path / "runs" / "r.sqlite"), progress)

    return make


def pair(one, other, asked="How warm?"):
    return Pair([user(asked)], Side(one, len(one)), Side(other, len(other)))


PAIRS = [pair("It is warm.", "No."), pair("No.", "It is warm."), pair("Yes.", "Not."), pair("Same.", "Same.")]


def orders(verdicts):
    return [(verdict.outcome, verdict.by_order) for verdict in verdicts]


# Verdicts ----------------------------------------------------------------------------------------------------------------


def test_a_win_is_what_both_orders_say(judge, server):
    one = judge(reply_tokens=77)
    assert orders(one.verdicts(PAIRS)) == [
        ("win", ("win", "win")),
        ("loss", ("loss", "loss")),
        ("tie", ("tie", "tie")),
        ("tie", None),  # equal answers are not asked about
    ]
    assert {path for path, *_ in server.seen} == {"/v1/chat/completions"}
    texts = [body["messages"][0]["content"] for _, body, *_ in server.seen]
    assert sorted(texts) == sorted(
        [f"How warm?|{a}|{b}" for a, b in (("It is warm.", "No."), ("No.", "It is warm."), ("Yes.", "Not."), ("Not.", "Yes."))]
    )  # the second pair is the first one in the other order, so that nothing is asked twice
    common = {"model": "wise", "temperature": 0, "max_tokens": 77}
    assert all(body.items() >= common.items() for _, body, *_ in server.seen)
    assert (one.spent.calls, one.spent.cached, one.spent.tokens) == (4, 0, 40)
    assert one.about == f"wise at 127.0.0.1:{server.server_port}"


def test_who_always_says_a_decides_nothing(judge, server):
    server.judge = lambda first, second: "Verdict: A"
    assert orders(judge().verdicts(PAIRS[:1])) == [("tie", ("win", "loss"))]


def test_rubbish_is_no_error_and_no_verdict(judge, server):
    server.judge = lambda first, second: "Both! Verdict: A or B" if first == "No." else "Verdict: A"
    assert orders(judge().verdicts(PAIRS[:1])) == [("tie", ("win", None))]
    server.judge = lambda first, second: None  # of a model that only thought
    assert orders(judge(model="dull").verdicts(PAIRS[:1])) == [("tie", (None, None))]


# Replies that are kept ----------------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(judge, server):
    first = judge().verdicts(PAIRS)
    server.seen.clear()
    again = judge(budget=BudgetConfig(calls=1), timeout_seconds=5)
    assert again.verdicts(PAIRS) == first
    assert (again.spent.calls, again.spent.cached, again.spent.tokens) == (0, 4, 0)
    assert server.seen == []


@pytest.mark.parametrize(
    "change", [{"model": "wiser"}, {"reply_tokens": 9}, {"template": Template("So: {prompt}|{first}|{second}")}], ids=str
)
def test_another_model_setting_or_text_is_asked_anew(judge, server, change):
    judge().verdicts(PAIRS[:1])
    other = judge(**change)
    other.verdicts(PAIRS[:1])
    assert (other.spent.calls, other.spent.cached) == (2, 0)


def test_the_same_model_elsewhere_is_not(judge, server):
    judge().verdicts(PAIRS[:1])
    elsewhere = judge(url=server.url.replace("127.0.0.1", "localhost"))
    elsewhere.verdicts(PAIRS[:1])
    assert elsewhere.spent.calls == 0


def test_a_damaged_file_is_named(judge, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(EnvironmentRefused, match=r"r\.sqlite") as error:
        judge().verdicts(PAIRS)
    assert "deleted" in error.value.advice


def _keep(path, who):
    replies = Replies(path)
    for number in range(40):
        replies.keep(f"{number}", "m", f"{who} {number}")


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "r.sqlite"
    spawn = multiprocessing.get_context("fork")
    workers = [spawn.Process(target=_keep, args=(path, who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    known = Replies(path).known([str(number) for number in range(41)])
    assert {key: reply.split()[1] for key, reply in known.items()} == {str(number): str(number) for number in range(40)}


MANY = [pair("x" * (number + 1), "") for number in range(20)]


def test_a_killed_run_goes_on_from_there(judge, server):
    server.delay = 0.02
    kept = multiprocessing.Value("i", 0)

    def told(done, total):
        kept.value = done

    child = multiprocessing.get_context("fork").Process(target=lambda: judge(at_once=1, progress=told).verdicts(MANY))
    child.start()
    while kept.value < 5:
        assert child.is_alive()
        time.sleep(0.005)
    child.kill()
    child.join()
    server.delay = 0.0
    rest = judge()
    assert [verdict.outcome for verdict in rest.verdicts(MANY)] == ["win"] * 20
    assert kept.value <= rest.spent.cached < 40
    assert rest.spent.calls + rest.spent.cached == 40


# Failures -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", [(500, "down", {}), (503, "", {}), (429, "slow", {}), (429, "slow", {"Retry-After": "0.01"})], ids=str)
def test_what_passes_is_tried_again(judge, server, says):
    server.says = [says]
    one = judge(at_once=1)
    assert orders(one.verdicts(PAIRS[:1])) == [("win", ("win", "win"))]
    assert one.spent.calls == 3  # a request that fails may be billed, and counts


def test_the_server_says_how_long_to_wait(judge, server):
    server.says = [(429, "slow", {"Retry-After": "0.3"})]
    judge(at_once=1).verdicts(PAIRS[:1])
    assert server.seen[1][3] - server.seen[0][3] >= 0.3


@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "a date"])
def test_a_server_that_wants_an_hour_is_given_up(judge, server, as_date):
    wait = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True) if as_date else "3600"
    server.says = [(429, "quota", {"Retry-After": wait})]
    with pytest.raises(PreflineError, match=r"left alone for 3[56]"):
        judge(at_once=1).verdicts(PAIRS[:1])


def test_silence_ends_with_what_to_do_and_keeps_what_came(judge, server):
    judge().verdicts(PAIRS[:1])
    server.delay = 1.0
    with pytest.raises(PreflineError, match=r"language_model.*can't be reached: timed out") as error:
        judge(timeout_seconds=0.1).verdicts(PAIRS)
    assert "timeout_seconds" in error.value.advice
    server.delay = 0.0
    then = judge()
    then.verdicts(PAIRS)
    assert (then.spent.cached, then.spent.calls) == (2, 2)


def test_nobody_there(judge):
    with pytest.raises(PreflineError, match=r"can't be reached: .*refused"):
        judge(url="http://127.0.0.1:9").verdicts(PAIRS)


@pytest.mark.parametrize("text", ["<html>welcome</html>", "[]", '{"choices": []}', '{"choices": [{"message": "hello"}]}', '"x"'])
def test_something_else_than_a_chat_server(judge, server, text):
    server.says = [(200, text, {})] * 8
    with pytest.raises(PreflineError, match="something else than a chat completion") as error:
        judge().verdicts(PAIRS)
    assert "evaluation.language_model.url" in error.value.advice


@pytest.mark.parametrize(("status", "advice"), [(401, KEY), (403, KEY), (400, "model"), (404, "model"), (302, "address")])
def test_a_refusal_is_not_tried_again(judge, server, status, advice):
    server.says = [(status, "no such model", {"Location": "http://127.0.0.1:9/"})] * 8
    one = judge(at_once=1)
    with pytest.raises(PreflineError, match=f"status {status}") as error:
        one.verdicts(PAIRS[:1])
    assert advice in error.value.advice
    assert one.spent.calls == 1


def test_the_pace_is_kept(judge, server):
    judge(requests_a_minute=600.0).verdicts([*PAIRS, pair("Very warm.", "So.")])
    times = sorted(seen[3] for seen in server.seen)
    assert times[-1] - times[0] >= 0.45  # six requests, a tenth of a second apart


def test_no_more_than_so_many_at_once(judge, server):
    server.delay = 0.05
    began = time.monotonic()
    judge(at_once=2).verdicts([pair("x" * (number + 1), "") for number in range(3)])
    assert time.monotonic() - began >= 0.15


def test_progress_is_told(judge):
    told = []
    judge(progress=lambda done, total: told.append((done, total))).verdicts(PAIRS)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# What it costs ------------------------------------------------------------------------------------------------------------


def test_too_many_calls_are_refused_before_the_first(judge, server):
    with pytest.raises(PreflineError, match=r"4 replies are missing, and .*budget\.calls is 3"):
        judge(budget=BudgetConfig(calls=3)).verdicts(PAIRS)
    assert server.seen == []
    judge().verdicts(PAIRS[:1])
    judge(budget=BudgetConfig(calls=2)).verdicts(PAIRS)  # two are known already


def test_tries_count_as_calls(judge, server):
    server.says = [(500, "down", {})] * 2
    with pytest.raises(PreflineError, match=r"budget\.calls: 4 calls are spent, of 4"):
        judge(budget=BudgetConfig(calls=4), at_once=1).verdicts(PAIRS)


def test_used_up_tokens_end_it_and_the_next_run_goes_on(judge, server):
    with pytest.raises(PreflineError, match=r"budget\.tokens: 20 tokens are spent, of 15"):
        judge(budget=BudgetConfig(tokens=15), at_once=1).verdicts(PAIRS)
    assert len(server.seen) == 2
    rest = judge(budget=BudgetConfig(tokens=15), at_once=1)
    rest.verdicts(PAIRS)
    assert (rest.spent.cached, rest.spent.calls, rest.spent.tokens) == (2, 2, 20)


def test_a_limit_of_tokens_needs_a_server_that_counts_them(judge, server):
    server.counts = False
    with pytest.raises(PreflineError, match=r"usage\.total_tokens") as error:
        judge(budget=BudgetConfig(tokens=100)).verdicts(PAIRS)
    assert "budget.calls" in error.value.advice
    assert judge().verdicts(PAIRS)


# The key ------------------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_told(judge, server, monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, SECRET)
    judge().verdicts(PAIRS[:1])
    assert {headers["Authorization"] for _, _, headers, _ in server.seen} == {f"Bearer {SECRET}"}
    server.says = [(400, f"wrong key {SECRET}", {})] * 8
    with pytest.raises(PreflineError) as error:
        judge(model="other").verdicts(PAIRS)
    assert SECRET not in str(error.value)
    assert SECRET.encode() not in (tmp_path / "runs" / "r.sqlite").read_bytes()
    assert SECRET not in key_of("wise", 77, "text")


def test_the_key_follows_no_redirect(judge, server, other_chat_server, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    server.says = [(307, "", {"Location": f"{other_chat_server.url}/chat/completions"})] * 8
    with pytest.raises(PreflineError, match="elsewhere"):
        judge().verdicts(PAIRS)
    assert other_chat_server.seen == []
