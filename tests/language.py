"""Tiny language models and a tokenizer for them, made on the spot: nothing is fetched."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = "the a fish swims in deep water shoal small blue turns and light follows every other until night".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<mask>"]


def text(words, seed=0):
    """Sentences of known words, parted by blank lines into documents of about 40 words."""
    rows = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed)).tolist()
    lines = [" ".join(WORDS[row] for row in rows[at : at + 40]) for at in range(0, words, 40)]
    return "\n\n".join(lines) + "\n"


def save_tokenizer(folder, vocabulary=120, *, begins=True, marks=False):
    """A byte-level BPE tokenizer: `<s>` before a text where it `begins`, `<s>` and `</s>` around it with `marks`."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False)
    inner.train_from_iterator([text(400)], trainer)
    if begins or marks:
        single = "<s> $A </s>" if marks else "<s> $A"
        known = [("<s>", 1), ("</s>", 2)]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    made.save_pretrained(folder)
    return made


def llama(layers=4, **changes):
    """A Llama of a few thousand weights, in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings)).eval()


def tokens(count=2, length=12, vocabulary=96, seed=0):
    """Token ids without the special ones."""
    return torch.randint(4, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
