"""Log-probs by plain transformers, one text at a time: what the stages must agree with."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def logprobs(folder, texts):
    """Summed log-prob (float64) and number of tokens of each (prompt, completion) and its end."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sums, counts = [], []
    for prompt, completion in texts:
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double()
        found = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        sums.append(found[start - 1 :].sum())
        counts.append(len(ids) - start)
    return torch.stack(sums), torch.tensor(counts, dtype=torch.float64)


def pairs(folder, rows):
    """Log-probs of chosen and of rejected, and the numbers of their tokens."""
    chosen = logprobs(folder, [(row["prompt"], row["chosen"]) for row in rows])
    rejected = logprobs(folder, [(row["prompt"], row["rejected"]) for row in rows])
    return chosen[0], rejected[0], chosen[1], rejected[1]
