"""What a start-up says where a GPU can't be used: the driver's library is one of ours, and has each fault in turn."""

import os
import subprocess

import pytest

from volley import BINARY, HOME, ROOT

# What is wrong with the driver (cuda/libcuda.c), and words of the line that says so and what to do.
FAULTS = {
    "old": ["for CUDA 12.4; 13.0 is needed", "install driver 580"],
    "none": ["sees no GPU", "CUDA_VISIBLE_DEVICES", "CUDA_ERROR_NO_DEVICE"],
    "hidden": ["sees no GPU", "CUDA_VISIBLE_DEVICES"],
    "stub": ["is the toolkit's stub", "LD_LIBRARY_PATH"],
    "mismatch": ["different versions", "restart the machine"],
    "fabric": ["not ready", "nvidia-fabricmanager"],
    "taken": ["another process has the GPU for itself", "nvidia-smi -c 0"],
    "full": ["memory is full", "end what else uses it"],
    "faulty": ["CUDA_ERROR_ILLEGAL_ADDRESS", "must be started again"],
    "": ["GTX 1080 is of architecture sm_61", "sm_80"],  # nothing but its age
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests/e2e/cuda/libcuda.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1", source], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def volley(*arguments, **variables):
    env = {**os.environ, "VOLLEY_HOME": str(HOME), **variables}
    return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=120, env=env)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_cannot_have_its_gpu_says_why_and_what_to_do(driver, fault):
    done = volley("worker", "--device=cuda", "--log=error", FAKE_CUDA=fault, **driver)
    *before, line = done.stderr.splitlines()
    assert all(said.startswith("loading ") for said in before), before
    assert done.returncode == 1 and line.startswith("error: device cuda:0: "), done.stderr
    assert line.endswith("; --device cpu works anywhere") and all(word in line for word in FAULTS[fault]), line


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_says_the_same_and_takes_the_cpu(driver, fault):
    done = volley("doctor", FAKE_CUDA=fault, **driver)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert all(word in done.stdout for word in FAULTS[fault] if fault != "hidden"), done.stdout
    assert "--device auto computes on the CPU" in done.stdout


def test_serve_says_it_before_it_loads_anything(driver):
    serve = ["serve", "--listen=127.0.0.1:0", "--model=does-not-exist"]
    done = volley(*serve, "--device=cuda", FAKE_CUDA="none", **driver)
    assert done.returncode == 1 and "sees no GPU" in done.stderr and "does-not-exist" not in done.stderr
    done = volley(*serve, "--device=cuda:2", **driver)
    assert "device cuda:2: there is no GPU 2: 2 can be seen" in done.stderr


def test_serve_starts_a_process_for_each_gpu_and_ends_when_none_can_have_its_own(driver):
    done = volley("serve", "--listen=127.0.0.1:0", "--device=cuda", **driver)
    assert done.returncode == 1 and "before it was ready" in done.stderr, done.stderr
    # The other one's may have come too late.
    said = [index for index in (0, 1) if f"error: device cuda:{index}: the GPU GTX 1080" in done.stderr]
    assert said, done.stderr
