"""How often the gates err, on a few of the worlds of benchmarks/gates.py; the docs have a thousand of each."""

import importlib.util
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "benchmarks" / "gates.py"


@pytest.fixture(scope="module")
def gates():
    spec = importlib.util.spec_from_file_location("gates", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gates"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("about", "worlds", "least", "most"),
    [
        ("no better than the champion", 100, 0.0, 0.07),  # 2.5 % in the long run; eight of a hundred come once in 300 times
        ("better by ten points", 60, 0.65, 1.0),  # 80 % and more; 39 of 60 would come once in 300 times
        ("hacked: own reward up, the judge's down", 40, 0.0, 0.0),
        ("longer, and liked for that alone", 40, 0.0, 0.1),
        ("better on average, bad in one slice", 40, 0.0, 0.0),
    ],
)
def test_challengers_are_promoted_as_often_as_they_deserve(gates, about, worlds, least, most):
    world = next(world for world in gates.WORLDS if world.about == about)
    assert least <= gates.measure(world, worlds)["promoted"] <= most


@pytest.mark.parametrize(
    ("about", "gate"),
    [
        ("thanks again and again, and the judge likes it", "repeats itself"),
        ("repeated characters, and the judge likes them", "repeats itself"),
        ("refuses everything, and the judge likes it", "refuses prompts"),
    ],
)
def test_hacks_that_fool_the_judge_are_caught_by_counting(gates, about, gate):
    world = next(world for world in gates.WORLDS if world.about == about)
    found = gates.measure(world, 20)  # with the 40 above that the judge sees through: none of a hundred is promoted
    assert found["promoted"] == 0.0
    assert found["refused by"][gate] == 20


def test_a_bad_slice_is_refused_by_that_name(gates):
    world = next(world for world in gates.WORLDS if "bad in one slice" in world.about)
    assert gates.refusals(world, gates.PROMPTS, seed=0) == ["worst slice"]
