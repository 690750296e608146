"""A real vLLM server as a process of the tests' own, on a free port of loopback."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

PATIENCE = 400.0  # seconds until it answers; it takes 30 to 60 on a machine that is not busy


class VLLMProcess:
    """A server of `model`, in the environment whose Python is named."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        self.python, self.model, self.log = python, model, log
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self, **environment: str) -> None:
        """Start it and wait until it answers."""
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--served-model-name", "policy"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"]
        command += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
        command += ["--weight-transfer-config", '{"backend": "file"}']
        settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        settings |= {"VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**known, **settings, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"{self.url}/health", timeout=5.0).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(1.0)
        raise RuntimeError(f"vLLM did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End it and its workers at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
