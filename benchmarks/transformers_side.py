"""transformers' worker: `model.generate` that keeps the logits, from which log-probs are taken."""

from pathlib import Path
from typing import Any

import torch
import transformers
from gate import Gate, read_job, read_jsonl


def generate(gate: Gate, job: dict[str, Any]) -> None:
    """An iteration is one batch of completions with their log-probs."""
    path = Path(job["world"]) / "policy"
    dtype = torch.bfloat16 if job["variant"] == "bf16" else torch.float32
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    rows = read_jsonl(Path(job["world"]) / "prompts.jsonl")[: job["batch_size"]]
    inputs = tokenizer([row["prompt"] for row in rows], padding=True, return_tensors="pt")
    while True:
        gate.turn()
        gate.phase("generate")
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=job["max_new_tokens"],
                do_sample=True,
                top_k=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            sampled = output.sequences[:, inputs["input_ids"].shape[1] :]
            logprobs = torch.stack(output.logits, 1).float().log_softmax(-1)
            logprobs.gather(-1, sampled[..., None])
        real = sampled != tokenizer.pad_token_id
        gate.count(tokens=int(real.sum()), rows=len(rows))


def main() -> None:
    """Run the task that the driver asks for."""
    gate, job = Gate(), read_job()
    torch.set_num_threads(1)
    gate.ready(torch=torch.__version__, transformers=transformers.__version__)
    generate(gate, job)


if __name__ == "__main__":
    main()
