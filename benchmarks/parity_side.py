"""TRL's side of the parity check: the loss of each trainer on its first batch. Needs no tether."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import torch
import transformers


def trainers() -> dict[str, tuple[Any, Any]]:
    """Trainer and settings by name."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # pyright: ignore[reportMissingImports]
    from trl.experimental.cpo import CPOConfig, CPOTrainer  # pyright: ignore[reportMissingImports]
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # pyright: ignore[reportMissingImports]

    return {
        "dpo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
        "cpo": (CPOTrainer, CPOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
    }


def loss(job: dict[str, Any], world: Path, batch_size: int, out: str) -> float:
    """The loss that a trainer computes for all rows in one batch."""
    trainer, config = trainers()[job["trainer"]]
    lines = Path(job["data"]).read_text(encoding="utf-8").splitlines()
    models = {"model": load(world / "policy")}
    if job["trainer"] in ("dpo", "kto"):
        models["ref_model"] = load(world / "reference")
    running = trainer(
        **models,
        args=config(
            output_dir=out,
            per_device_train_batch_size=batch_size,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            **job["settings"],
        ),
        processing_class=transformers.AutoTokenizer.from_pretrained(world / "policy"),
        train_dataset=datasets.Dataset.from_list([json.loads(line) for line in lines]),
    )
    batch = next(iter(running.get_train_dataloader()))
    with torch.no_grad():
        return float(running.compute_loss(running.model.train(), batch))


def load(path: Path) -> Any:
    """A model in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def main() -> None:
    """Print the losses of all jobs as the last line."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as out:
        world, size = Path(job["world"]), job["batch_size"]
        found = [loss(each, world, size, out) for each in job["jobs"]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
