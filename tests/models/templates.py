"""Chat templates in the known shapes, written anew for the tests, and tokenizers that have them."""

from tests.tiny import byte_bpe_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# A header with the date of today, contents trimmed.
LLAMA3 = (
    "{{ bos_token }}{% set date = strftime_now('%d %b %Y') %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}<|start|>system<|end|>\n\nToday Date: {{ date }}\n\n{{ system }}<|eot|>"
    "{% for m in rest %}{{ '<|start|>' + m.role + '<|end|>\\n\\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)

# The system prompt goes into the last message of the user; nothing opens the assistant's turn.
MISTRAL = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0].role == 'system' %}"
    "{% set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (system if loop.index0 == ns.last else '') "
    "+ m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)

# No place for a system message; the assistant is the model; a turn's end is no end token.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

# Thoughts are kept in the last answer, where there is room for them anyway, and dropped before.
THINKER = (
    "{% set ns = namespace(asked=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% if loop.index0 > ns.asked %}{% set thought = m.content.split('</think>')[0].split("
    "'<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}"
    "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' + said }}{% else %}{{ said }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

SPECIAL = {
    CHATML: ("<|im_start|>", "<|im_end|>"),
    LLAMA3: ("<|start|>", "<|end|>", "<|eot|>"),
    MISTRAL: (),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    THINKER: ("<|im_start|>", "<|im_end|>"),
}
ENDS = {CHATML: "<|im_end|>", LLAMA3: "<|eot|>", THINKER: "<|im_end|>"}


def chat_tokenizer(template, *, bos=True):
    """A byte-level tokenizer with a template and the special tokens that it writes."""
    tokenizer = byte_bpe_tokenizer(bos=bos)
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[template])})
    if template in ENDS:
        tokenizer.eos_token = ENDS[template]
    return tokenizer


def said(role, content):
    return {"role": role, "content": content}
