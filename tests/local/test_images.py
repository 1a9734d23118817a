import os

import pytest

from matrixinfer.local import images


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("vllm/vllm-openai", "vllm/vllm-openai"),
        ("vllm/vllm-openai:v0.32.0", "vllm/vllm-openai"),
        ("docker.io/vllm/vllm-openai:latest", "vllm/vllm-openai"),
        ("localhost:5000/vllm/vllm-openai@sha256:abc", "vllm/vllm-openai"),
        ("busybox:1", "busybox"),
        ("", ""),
    ],
)
def test_the_repository_is_named_without_host_tag_and_digest(image, repository):
    assert images.repository(image) == repository


def test_the_simulators_image_stands_for_its_command():
    assert images.entry_point("matrixinfer/simulator:0.1.0", os.environ["PATH"]) == ("python", "-m", "engine.simulator")


def test_an_unknown_image_says_to_set_the_command():
    with pytest.raises(
        images.NoCommand, match=r"'busybox' is not one whose command is known .*: set the container's `command`"
    ):
        images.entry_point("busybox")


def test_a_known_image_whose_program_is_not_installed_says_so(tmp_path):
    with pytest.raises(images.NoCommand, match="stands for `vllm serve`, but vllm is not installed"):
        images.entry_point("vllm/vllm-openai", str(tmp_path))
