# A CUDA image that runs launch/single_a100.sh:
#   docker build --tag primezero .
#   mkdir -p models runs && sudo chown 1000 models runs    # the number of the image's user
#   docker run --gpus all --shm-size 8g -v "$PWD/models:/primezero/models" -v "$PWD/runs:/primezero/runs" primezero
# Words after the image's name go to the script, as in `... primezero --dry-run`.
# The development image: DeepSpeed asks for nvcc, and Triton and AdamW on the host's cores for a compiler.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# Ubuntu's archive keeps no version for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ninja-build python3.12 python3.12-dev python3.12-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user of its own with this number.
RUN userdel --remove ubuntu && useradd --create-home --uid 1000 primezero && install --directory --owner primezero /primezero
USER 1000
WORKDIR /primezero

# What setup.sh reads comes first, so that a change of code installs nothing again; every package has to be there to be
# found by it.
COPY --chown=primezero pyproject.toml README.md LICENSE ./
COPY --chown=primezero launch/setup.sh launch/
COPY --chown=primezero launch/locks launch/locks
COPY --chown=primezero shared/__init__.py shared/
COPY --chown=primezero rollout/__init__.py rollout/
COPY --chown=primezero learner/__init__.py learner/
COPY --chown=primezero launch/__init__.py launch/
RUN bash launch/setup.sh gpu

COPY --chown=primezero shared shared
COPY --chown=primezero rollout rollout
COPY --chown=primezero learner learner
COPY --chown=primezero launch launch

RUN mkdir models runs && chmod 700 runs
VOLUME ["/primezero/models", "/primezero/runs"]
ENTRYPOINT ["bash", "launch/single_a100.sh"]
