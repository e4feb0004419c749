"""Lineage on real git repositories."""

import pytest

from tasks.config import PipelineConfig
from tasks.errors import EnvironmentRefused
from tasks.registry.lineage import config_hash, lineage

CONFIG = PipelineConfig()


def test_a_clean_tree_has_a_commit_and_no_changes(project):
    found = lineage(project, CONFIG)
    assert len(found.commit) == 40
    assert not found.dirty


def test_changed_files_and_new_code_are_dirt_but_other_new_files_are_not(project):
    (project / "notes.txt").write_text("mine")
    assert not lineage(project, CONFIG).dirty
    (project / "params.yaml").write_text("seed: 1\n")
    (project / "tasks" / "new.py").write_text("")
    assert lineage(project, CONFIG).changes == ("params.yaml", "tasks/new.py")


def test_without_a_repository_it_says_what_to_run(tmp_path):
    with pytest.raises(EnvironmentRefused, match="git init && git add -A && git commit"):
        lineage(tmp_path, CONFIG)


def test_a_repository_without_a_commit(tmp_path):
    import subprocess

    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    with pytest.raises(EnvironmentRefused, match="no commit yet"):
        lineage(tmp_path, CONFIG)


def test_the_configuration_hash_sees_every_key():
    assert config_hash(CONFIG) == config_hash(PipelineConfig())
    assert config_hash(CONFIG) != config_hash(PipelineConfig(seed=1))
