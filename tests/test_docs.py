"""What the documents point at is there, and is in the repository."""

import re
import subprocess
from dataclasses import fields

import pytest

import shared.errors
from launch.configuration_page import configuration_page
from learner.train_metrics import TrainMetrics
from shared.config_file import known_keys

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("architecture", "benchmarks", "configuration", "gpu")),
]
DOCUMENTS += [f"docs/{name}.md" for name in ("learning", "method", "profile", "runs", "scaling", "troubleshooting")]


@pytest.fixture(scope="module")
def tracked(request):
    """Every file that a clone has; of an unpacked copy without git, every file."""
    root = request.config.rootpath
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return set(listed.stdout.splitlines())


def test_the_configuration_reference_is_of_the_typed_tree_as_it_is(request):
    page = configuration_page()
    assert (request.config.rootpath / "docs/configuration.md").read_text() == page, (
        "run: primezero config --markdown > docs/configuration.md"
    )
    for key in known_keys():
        assert f"| `{key.rpartition('.')[2]}` |" in page


def test_every_error_has_a_word_on_what_to_do(request):
    named = set(re.findall(r"`(\w+Error)`", (request.config.rootpath / "docs/troubleshooting.md").read_text()))
    assert named == {name for name in vars(shared.errors) if name.endswith("Error")} - {"PrimezeroError"}


def test_keys_that_documents_name_exist(request):
    known = set(known_keys()) | {f"learner.{field.name}" for field in fields(TrainMetrics)}  # as metrics.jsonl has them
    sections = {key.partition(".")[0] for key in known}
    for document in DOCUMENTS:
        text = (request.config.rootpath / document).read_text()
        for key in re.findall(r"`(?:--)?([a-z]+\.[a-z_]+(?:\.[a-z_]+)?)(?:=[^`]*| [^`]*)?`", text):
            if key.partition(".")[0] in sections and not key.endswith((".py", ".toml", ".md", ".json")):
                assert key in known or any(each.startswith(f"{key}.") for each in known), f"{document}: {key}"


def test_every_document_is_looked_at(tracked):
    assert {name for name in tracked if name.endswith(".md")} == set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures_are_in_the_repository(request, tracked, document):
    root = request.config.rootpath
    text = (root / document).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            path = str(((root / document).parent / target).resolve().relative_to(root))
            assert path in tracked or any(name.startswith(f"{path}/") for name in tracked), f"{document}: {target}"
