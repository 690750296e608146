"""Settings of what is asked over HTTP: a judge behind an endpoint, a served reward."""

from dataclasses import dataclass
from typing import Literal

from tether.validation import not_negative, positive, require, variable_name, web_address


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """A judge behind an OpenAI-compatible endpoint, and what it may cost."""

    base_url: str = ""
    """Address up to and without /chat/completions, such as http://localhost:8000/v1; "" = none"""
    model: str = ""
    """The model's name there"""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; "" = none is sent"""
    top_logprobs: int = 5
    """Log-probs asked for, of which the two letters are read; 0 = ask for votes only"""
    votes: int = 5
    """Answers sampled where log-probs do not tell"""
    vote_tokens: int = 8
    """Longest sampled answer; a model that reasons before it answers needs hundreds"""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the longest answer"""
    seed: int = 0
    """Vote i is asked for with seed + i"""
    concurrency: int = 8
    """Requests at a time"""
    timeout: float = 60.0
    """Seconds that a request may take from its beginning to the end of its answer"""
    attempts: int = 6
    """Tries of a request before the run stops"""
    budget_tokens: int = 0
    """Stop before input and output tokens together exceed this; 0 = no limit"""
    budget_money: float = 0.0
    """Stop before the cost exceeds this, in the currency of the prices; 0 = no limit"""
    price_input: float = 0.0
    """Price of a million input tokens"""
    price_output: float = 0.0
    """Price of a million output tokens"""
    cache: str = ""
    """SQLite file of answers and their cost; "" = judge.db in the stage's folder"""

    def __post_init__(self) -> None:
        if self.base_url:
            web_address("endpoint.base_url", self.base_url)
            rule = "must end before /chat/completions, which is added"
            whole = self.base_url.rstrip("/").endswith("/completions")
            require(not whole, "endpoint.base_url", self.base_url, rule)
            require(bool(self.model), "endpoint.model", self.model, "must name the server's model")
        variable_name("endpoint.key_env", self.key_env)
        rule = "must be a whole number from 0 to 20"
        require(0 <= self.top_logprobs <= 20, "endpoint.top_logprobs", self.top_logprobs, rule)
        for name in ("votes", "vote_tokens", "concurrency", "timeout", "attempts"):
            positive(f"endpoint.{name}", getattr(self, name))
        for name in ("seed", "budget_tokens", "budget_money", "price_input", "price_output"):
            not_negative(f"endpoint.{name}", getattr(self, name))
        priced = self.price_input > 0 or self.price_output > 0
        rule = "needs price_input and price_output, per million tokens"
        require(priced or not self.budget_money, "endpoint.budget_money", self.budget_money, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedConfig:
    """How a reward that is served over HTTP is called."""

    key_env: str = ""
    """Environment variable that holds a bearer token; "" = none is sent"""
    batch_size: int = 64
    """Completions a request"""
    timeout: float = 60.0
    """Seconds that a request may take from its beginning to the end of its answer"""
    attempts: int = 6
    """Tries of a request before the run stops"""

    def __post_init__(self) -> None:
        variable_name("served.key_env", self.key_env)
        for name in ("batch_size", "timeout", "attempts"):
            positive(f"served.{name}", getattr(self, name))
