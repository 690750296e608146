"""Tiny models that can be asked, with and without a chat template."""

from tests.tiny import CHAT_TEMPLATE, byte_bpe_tokenizer, save_tiny


def save_chat(folder, template=CHAT_TEMPLATE, **settings):
    """A directory of a tiny model with a chat template and room for a conversation."""
    tokenizer = byte_bpe_tokenizer()
    tokenizer.chat_template = template
    return save_tiny(folder, tokenizer=tokenizer, max_position_embeddings=512, **settings)
