"""Licences: stated ones first, else what the base model's own files say."""

import gguf
import pytest

from tasks.config import DataConfig, LicencesConfig
from tasks.registry.licences import data_licence, model_licence

NOTHING = LicencesConfig()


def test_what_is_stated_goes_first():
    stated = LicencesConfig(model="MIT", data="CC0-1.0")
    assert model_licence("tiny-llama", stated) == "MIT"
    assert data_licence(DataConfig(), stated) == "CC0-1.0"


def test_what_prefline_makes_is_its_own():
    assert model_licence("tiny-llama", NOTHING) == "Apache-2.0"
    assert data_licence(DataConfig(), NOTHING) == "Apache-2.0"
    assert data_licence(DataConfig(comparisons=["builtin", "mine.jsonl"]), NOTHING) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: gemma\n---", "gemma"),
        ("---\nlicense: [mit, gpl-3.0]\n---\n", "mit, gpl-3.0"),
        ("---\ntags: [a]\n---\n", ""),
        ("---\nlicense: [\n---\n", ""),
        ("---\n- a list\n---\n", ""),
        ("# license: mit", ""),
    ],
)
def test_a_folder_says_it_in_the_front_matter_of_its_card(tmp_path, text, expected):
    (tmp_path / "README.md").write_text(text)
    assert model_licence(str(tmp_path), NOTHING) == expected


def test_where_nothing_says_it_nothing_is_made_up(tmp_path):
    assert model_licence(str(tmp_path), NOTHING) == ""
    for missing in ("/no/such/folder", "nobody/nothing", "gone.gguf"):
        assert model_licence(missing, NOTHING) == ""


@pytest.mark.parametrize("licence", ["apache-2.0", ""])
def test_a_gguf_file_says_it_in_its_header(tmp_path, licence):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if licence:
        writer.add_license(licence)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert model_licence(str(path), NOTHING) == licence
